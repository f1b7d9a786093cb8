//! Settings that contradict each other are refused when they are said, and errors belong to calls.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags};
use sqlite_tde::audit::{AuditLog, AuditOptions};
use sqlite_tde::config::{Config, Policy};
use sqlite_tde::provider::{
    Answer, KeyProvider, Keystore, ProviderError, SecretSource, UnwrapRequest, VersionRequest,
    WrapRequest, Wrapped,
};
use sqlite_tde::secret::Secret;
use sqlite_tde::{AccessPolicy, AuditPolicy, Cipher, Error, OpenOptions, Options};
use sqlite_tde_testkit::{Home, one, plain};

fn usage<T: std::fmt::Debug>(what: &str, result: sqlite_tde::Result<T>, words: &[&str]) {
    let text = match result {
        Err(Error::Usage(text)) => Ok(text),
        Err(Error::Config(fault)) => Ok(fault.to_string()),
        other => Err(other),
    };
    match text {
        Ok(text) => {
            for words in words {
                assert!(text.contains(words), "{what}: {text}");
            }
        }
        other => panic!("{what}: {other:?}"),
    }
}

#[test]
fn names_and_parameters_that_would_be_passed_over_are_refused() {
    let home = Home::new();
    let path = home.path("a.db");
    usage("another VFS", sqlite_tde::register(Options::new().name("unix")), &["unix"]);
    usage("no name", sqlite_tde::register(Options::new().name("")), &["it needs one"]);
    usage(
        "opened in another VFS",
        sqlite_tde::open_with(&path, &home.options().vfs("unix").protector("a")),
        &["unix"],
    );
    usage(
        "a parameter for another VFS",
        sqlite_tde::open_with(&path, &home.options().vfs("unix").parameter("tde_protector", "a")),
        &["unix"],
    );
    for name in ["tde_fileid", "tde_plaintxt", "TDE_PLAINTEXT", "tde_", "Tde_protector"] {
        let options = home.options().parameter(name, "refuse");
        usage(name, sqlite_tde::open_with(&path, &options), &[name, "tde_plaintext"]);
    }
    let twice = [
        ("vfs", home.options().parameter("vfs", "unix")),
        ("tde_protector", home.options().protector("a").parameter("tde_protector", "b")),
        (
            "tde_plaintext",
            home.options().allow_plaintext(false).parameter("tde_plaintext", "allow"),
        ),
        ("immutable", home.options().parameter("immutable", "0").parameter("immutable", "1")),
        ("", home.options().parameter("", "1")),
    ];
    for (name, options) in twice {
        usage(name, options.uri(&path), &[name]);
        usage(name, sqlite_tde::open_with(&path, &options), &[name]);
    }
    assert_eq!(std::fs::read(&path).unwrap_or_default(), b"", "nothing was written");
}

#[test]
fn the_path_that_is_given_is_opened() {
    let home = Home::new();
    for (number, start) in ["/", "//localhost", "///"].into_iter().enumerate() {
        let path = home.path(&format!("{number}.db"));
        let text = format!("{start}{}", path.display());
        let opened = home.try_open(Path::new(&text));
        if start.contains("localhost") {
            assert!(opened.is_err() && !path.exists(), "{text}");
            continue;
        }
        opened.unwrap().execute_batch("CREATE TABLE t(a)").unwrap();
        assert!(path.exists(), "{text}");
    }
}

/// An error that a connection of rusqlite had is no other connection's.
#[test]
fn an_error_belongs_to_one_call() {
    let home = Home::new();
    let (secret, open) = (home.path("secret.db"), home.path("open.db"));
    let db = home.open(&secret);
    db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1)").unwrap();
    let writer = home.open(&secret);
    writer.execute_batch("BEGIN IMMEDIATE").unwrap();
    let busy = |db: &Connection, sql| {
        db.busy_timeout(Duration::ZERO).unwrap();
        db.query_row(sql, [], |_| Ok(())).unwrap_err()
    };
    // A provider's call, a protector's name and a file id would be somebody else's business.
    let ours = busy(&db, "SELECT tde_auto_rotate('off')");
    let (code, ours) = (ours.sqlite_error_code(), Error::from(ours));
    assert!(matches!(ours, Error::Busy(_)), "{code:?}, {ours:?}");
    let dropped = busy(&db, "SELECT tde_auto_rotate('off')");
    let others = [plain(&open), plain(&open)];
    others[0].execute_batch("CREATE TABLE p(a); BEGIN EXCLUSIVE").unwrap();
    let theirs = Error::from(busy(&others[1], "SELECT * FROM p"));
    assert!(matches!(theirs, Error::Sqlite(_)), "{theirs}, after {dropped}");
    let read_only = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let reader = sqlite_tde::open_with(&secret, &home.options().flags(read_only)).unwrap();
    let dropped = busy(&reader, "SELECT tde_auto_rotate('off')");
    let viewer = Connection::open_with_flags(&open, read_only).unwrap();
    others[0].execute_batch("COMMIT").unwrap();
    let theirs = Error::from(viewer.execute("INSERT INTO p VALUES(1)", []).unwrap_err());
    assert!(matches!(theirs, Error::Sqlite(_)), "{theirs}, after {dropped}");
    assert_eq!(one(&db, "SELECT a FROM t"), Value::Integer(1));
}

/// A directory with `text` as its configuration, loaded.
fn configuration(text: &str) -> (tempfile::TempDir, Config) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.toml"), text).unwrap();
    #[cfg(unix)]
    for (path, mode) in [(dir.path().to_owned(), 0o700), (dir.path().join("config.toml"), 0o600)] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    }
    let config = Config::load(dir.path()).unwrap();
    (dir, config)
}

/// A configuration that says nothing leaves what the application said, in either order.
#[test]
fn an_empty_configuration_takes_nothing_away() {
    for configured_first in [false, true] {
        let (dir, empty) = configuration("");
        let log = dir.path().join("log");
        let audit = Arc::new(AuditLog::open(AuditOptions::at(&log)).unwrap());
        let mut policy = Policy::default();
        policy.min_protectors = 2;
        policy.allowed_providers = Some(vec!["keystore".into()]);
        let said = |options: Options| {
            options
                .audit(audit.clone(), AuditPolicy::default())
                .policy(policy.clone())
                .allow_plaintext(false)
        };
        let home = Home::with(|options| match configured_first {
            true => said(options.config(&empty).unwrap()),
            false => said(options).config(&empty).unwrap(),
        });
        home.open(&home.path("a.db")).execute_batch("CREATE TABLE t(a)").unwrap();
        assert!(std::fs::read_to_string(log.join("audit.jsonl")).unwrap().contains("\"create\""));
        let db = home.open(&home.path("a.db"));
        let refused = db.query_row("SELECT tde_add_protector('recovery:key')", [], |_| Ok(()));
        assert!(refused.unwrap_err().to_string().contains("the policy allows"));
        // Nor may the URI allow what was refused.
        std::fs::remove_file(home.path("a.db")).unwrap();
        plain(&home.path("plain.db")).execute_batch("CREATE TABLE t(a)").unwrap();
        let options = home.options().allow_plaintext(true);
        let words = ["allow_plaintext", "the URI", "the registration"];
        usage("plaintext", sqlite_tde::open_with(home.path("plain.db"), &options), &words);
    }
}

#[test]
fn an_application_does_not_weaken_what_the_configuration_demands() {
    type Change = fn(Options) -> Options;
    let mut policy = AccessPolicy::default();
    policy.grace = Duration::from_secs(7);
    let stricter = Options::new().name("stricter").access(policy);
    let cases: &[(&str, &str, Change)] = &[
        ("allow_plaintext", "allow_plaintext = false", |options| options.allow_plaintext(true)),
        ("access.grace", "[access]\ngrace = \"1m\"", |o| o.access(AccessPolicy::default())),
        ("access.revalidate", "[access]\nrevalidate = \"1m\"", |o| {
            o.access(AccessPolicy::default())
        }),
        ("access.derivation", "[access.derivation]\nmemory_kib = 8", |o| {
            o.access(AccessPolicy::default())
        }),
        ("policy.min_protectors", "[policy]\nmin_protectors = 2", |o| o.policy(Policy::default())),
        ("policy.allowed_providers", "[policy]\nallowed_providers = [\"keystore\"]", |options| {
            options.policy(Policy::default())
        }),
        ("policy.allowed_ciphers", "[policy]\nallowed_ciphers = [\"aes-256-gcm\"]", |options| {
            options.policy(Policy::default())
        }),
        ("policy.below_min", "[policy]\nbelow_min = \"refuse\"", |options| {
            let mut policy = Policy::default();
            policy.below_min = sqlite_tde::config::BelowMin::Warn;
            options.policy(policy)
        }),
        ("audit_log", "[audit]\nenabled = true", |options| {
            let other = AuditLog::open(AuditOptions::at(std::env::temp_dir().join("other-log")));
            options.audit(Arc::new(other.unwrap()), AuditPolicy::default())
        }),
        ("pins", "[pins.paths]\n\"/a.db\" = \"00112233445566778899aabbccddeeff\"", |options| {
            let mut pins = sqlite_tde::config::Pins::default();
            pins.paths.insert("/a.db".into(), sqlite_tde::FileId([7; 16]));
            options.pins(pins)
        }),
    ];
    for (name, text, change) in cases {
        let (dir, config) = configuration(text);
        let keys = || Keystore::at(dir.path().join("keys"));
        let words = [*name, "the application", "the configuration"];
        let said = Options::new().name("weaker").keystore(keys());
        let late = change(said.clone()).config(&config).and_then(sqlite_tde::register);
        usage(name, late, &words);
        usage(name, said.config(&config).and_then(|o| sqlite_tde::register(change(o))), &words);
    }
    let (dir, config) = configuration("[access]\ngrace = \"1m\"\n");
    let stricter = stricter.keystore(Keystore::at(dir.path().join("keys"))).config(&config);
    sqlite_tde::register(stricter.unwrap()).unwrap();
    // Two configurations are one after the other.
    let weaker = configuration("[access]\ngrace = \"2m\"\n").1;
    let both = Options::new().config(&config).and_then(|options| options.config(&weaker));
    usage("two configurations", both.map(drop), &["access.grace", "second", "first"]);
}

/// The same again is fine; other settings are an error that names them, and change nothing.
#[test]
fn a_second_registration_with_other_settings_is_refused() {
    struct Nobody;
    impl KeyProvider for Nobody {
        fn wrap(&self, _: &WrapRequest<'_>) -> Result<Answer<Wrapped>, ProviderError> {
            Err(ProviderError::NotHere("nobody".into()))
        }
        fn unwrap(&self, _: &UnwrapRequest<'_>) -> Result<Answer<Secret>, ProviderError> {
            Err(ProviderError::NotHere("nobody".into()))
        }
        fn newest_version(&self, _: &VersionRequest<'_>) -> Result<Answer<String>, ProviderError> {
            Err(ProviderError::NotHere("nobody".into()))
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let nobody = Arc::new(Nobody);
    let mut policy = Policy::default();
    policy.min_protectors = 2;
    let keys = || Keystore::at(dir.path().join("keys"));
    let prompt = || SecretSource::prompt(|_| Err(std::io::ErrorKind::Unsupported.into()));
    let in_file = |name: &str| keys().passphrase(SecretSource::File(dir.path().join(name)));
    let log = |change: fn(&mut AuditOptions)| {
        let mut options = AuditOptions::at(dir.path().join("log"));
        change(&mut options);
        Arc::new(AuditLog::open(options).unwrap())
    };
    let first = Options::new()
        .name("twice")
        .keystore(keys())
        .audit(log(|_| ()), AuditPolicy::default())
        .provider("nobody", nobody)
        .policy(policy)
        .cipher(Cipher::Aes256CtrHmacSha256);
    sqlite_tde::register(first.clone()).unwrap();
    sqlite_tde::register(first.clone()).unwrap();
    let same = first.clone().audit(log(|_| ()), AuditPolicy::default());
    sqlite_tde::register(same).unwrap();
    let others: [(&str, Options); 10] = [
        ("allow_plaintext", first.clone().allow_plaintext(true)),
        ("policy.min_protectors", first.clone().policy(Policy::default())),
        ("as_default", first.clone().as_default(true)),
        ("base", first.clone().base("unix-dotfile")),
        ("provider other", first.clone().provider("other", Arc::new(Nobody))),
        ("provider keystore", first.clone().keystore(Keystore::at(dir.path().join("other")))),
        ("provider keystore", first.clone().keystore(in_file("passphrase"))),
        ("provider keystore", first.clone().keystore(keys().passphrase(prompt()))),
        ("audit_log", first.clone().audit(log(|log| log.keep = 1), AuditPolicy::default())),
        (
            "audit_log",
            first.clone().audit(
                log(|log| log.key = Some(SecretSource::File(log.dir.join("audit.key")))),
                AuditPolicy::default(),
            ),
        ),
    ];
    for (name, options) in others {
        let words = [name, "the VFS twice is registered with other settings"];
        usage(name, sqlite_tde::register(options.clone()), &words);
    }
    // Of several passphrases, each is another, but for the same prompt.
    let asking = keys().passphrase(prompt());
    sqlite_tde::register(Options::new().name("asks").keystore(asking.clone())).unwrap();
    sqlite_tde::register(Options::new().name("asks").keystore(asking)).unwrap();
    for other in [keys(), in_file("passphrase"), keys().passphrase(prompt())] {
        let options = Options::new().name("asks").keystore(other);
        usage("another passphrase", sqlite_tde::register(options), &["provider keystore"]);
    }
    let least = Options::new().name("twice").keystore(keys());
    let words = ["policy.min_protectors (2, not 1)", "cipher", "provider nobody"];
    usage("nothing said", sqlite_tde::register(least.clone()), &words);
    let path = dir.path().join("a.db");
    let db = sqlite_tde::open_with(&path, &OpenOptions::new().vfs("twice")).unwrap();
    db.execute_batch("CREATE TABLE t(a)").unwrap();
    assert_eq!(one(&db, "PRAGMA tde_cipher"), "aes-256-ctr-hmac-sha256".to_owned().into());
    sqlite_tde::register(least.replace(true)).unwrap();
    let path = dir.path().join("b.db");
    let db = sqlite_tde::open_with(&path, &OpenOptions::new().vfs("twice")).unwrap();
    db.execute_batch("CREATE TABLE t(a)").unwrap();
    assert_eq!(one(&db, "PRAGMA tde_cipher"), "aes-256-gcm".to_owned().into());
}
