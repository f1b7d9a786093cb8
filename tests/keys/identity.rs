//! Which database a file is. Key providers whose wrapping takes a public key alone unwrap what
//! anybody wrapped: an attacker can put a database of his own in place, with keys that he knows.
//! What tells it is the file id, where somebody expects one.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rusqlite::Connection;
use rusqlite::types::Value;
use sqlite_tde::config::{Config, Pins, Policy};
use sqlite_tde::provider::{
    Answer, KeyProvider, Keystore, ProviderError, UnwrapRequest, VersionRequest, WaitsFor,
    WrapRequest, Wrapped,
};
use sqlite_tde::secret::Secret;
use sqlite_tde::{
    Cipher, Error, FileId, NewProtector, OpenOptions, Options, RotateProtector, TdeConnection,
};
use sqlite_tde_testkit::{Home, one, plain};

/// As with `age`: anybody wraps, with nothing that is secret. Unwrapping takes the private key,
/// which this machine has.
struct Public;

impl KeyProvider for Public {
    fn waits_for(&self) -> WaitsFor {
        WaitsFor::Nothing
    }

    fn wrap(&self, request: &WrapRequest<'_>) -> Result<Answer<Wrapped>, ProviderError> {
        let WrapRequest { dek, .. } = *request;
        let blob = dek.expose().iter().map(|byte| byte ^ 0x55).collect();
        Ok(Wrapped::new("1", "public", blob).into())
    }

    fn unwrap(&self, request: &UnwrapRequest<'_>) -> Result<Answer<Secret>, ProviderError> {
        let UnwrapRequest { wrapped, .. } = *request;
        let dek: Vec<u8> = wrapped.blob.iter().map(|byte| byte ^ 0x55).collect();
        Secret::from_slice(&dek)
            .map(Answer::from)
            .ok_or_else(|| ProviderError::Damaged("length".into()))
    }

    fn newest_version(&self, _: &VersionRequest<'_>) -> Result<Answer<String>, ProviderError> {
        Ok("1".into())
    }
}

/// The same by a command: a pipe through `tr` stands for `age --encrypt` and `age --decrypt`.
#[cfg(unix)]
fn command() -> sqlite_tde::provider::Command {
    let turn = ["/bin/sh", "-c", "tr '\\000-\\377' '\\200-\\377\\000-\\177'"];
    sqlite_tde::provider::Command::new(turn, turn)
}

fn with_providers(options: Options) -> Options {
    #[cfg(unix)]
    let options = options.provider("age", Arc::new(command()));
    options.provider("public", Arc::new(Public)).default_protector("public:payroll")
}

fn create(home: &Home, name: &str, protector: &str) -> FileId {
    let options = home.options().protector(protector);
    let db = sqlite_tde::open_with(home.path(name), &options).unwrap();
    db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES('from the victim')").unwrap();
    db.tde_status("main").unwrap().file_id.parse().unwrap()
}

fn protectors() -> Vec<&'static str> {
    if cfg!(unix) { vec!["public:payroll", "age:payroll"] } else { vec!["public:payroll"] }
}

fn wrong_file<T>(answer: Result<T, Error>) -> (String, String) {
    match answer {
        Err(Error::WrongFile { found, expected }) => (found, expected),
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("it opened"),
    }
}

#[test]
fn a_database_that_an_attacker_made_is_told_by_its_id() {
    for protector in protectors() {
        let victim = Home::with(with_providers);
        let genuine = create(&victim, "a.db", protector);
        // Another machine: no secret of the victim's, the public key alone.
        let attacker = Home::with(with_providers);
        let forged = create(&attacker, "forged.db", protector);
        assert_ne!(genuine, forged);
        let aside = victim.path("aside.db");
        std::fs::rename(victim.path("a.db"), &aside).unwrap();
        std::fs::copy(attacker.path("forged.db"), victim.path("a.db")).unwrap();

        // Nothing in the file tells: a documented limit.
        let db = victim.open(&victim.path("a.db"));
        assert_eq!(one(&db, "SELECT count(*) FROM t"), Value::Integer(1), "{protector}");
        drop(db);

        let with_id = |id: FileId| victim.options().file_id(id);
        let both = (forged.to_string(), genuine.to_string());
        let opened = sqlite_tde::open_with(victim.path("a.db"), &with_id(genuine));
        assert_eq!(wrong_file(opened), both, "{protector}");
        assert!(sqlite_tde::open_with(&aside, &with_id(genuine)).is_ok());
        assert!(sqlite_tde::open_with(&aside, &with_id(forged)).is_err());

        // The words reach a host that knows no Rust, and name both.
        let uri = with_id(genuine).uri(victim.path("a.db")).unwrap();
        assert!(uri.contains(&format!("tde_file_id={genuine}")), "{uri}");
        let host = plain(Path::new(":memory:"));
        let said = host.execute_batch(&format!("ATTACH '{uri}' AS a")).unwrap_err();
        let Error::WrongFile { found, expected } = Error::from(said) else { panic!() };
        assert_eq!((found, expected), both);

        // A policy that leaves such providers out holds for what is opened, too.
        let mut policy = Policy::default();
        policy.allowed_providers = Some(vec!["keystore".into()]);
        let strict = Home::with(|options| with_providers(options).policy(policy));
        let refused = strict.try_open(&victim.path("a.db")).map(|_| ()).unwrap_err();
        assert!(matches!(refused, Error::KeyDisabled(_)), "{refused:?}");
        let provider = protector.split(':').next().unwrap();
        let words =
            format!("the policy allows no protectors of provider {provider}, only of keystore");
        assert!(refused.to_string().contains(&words), "{refused}");
        // Beside a connection of the process that has it open.
        let _held = victim.open(&victim.path("a.db"));
        assert!(strict.try_open(&victim.path("a.db")).is_err());
    }
}

/// A cipher that the policy leaves out is neither written nor read, whoever asks for it and whoever
/// has the database open.
#[test]
fn a_policy_holds_for_the_ciphers_of_databases() {
    let free = Home::with(|options| options);
    for cipher in Cipher::ALL {
        let mut policy = Policy::default();
        policy.allowed_ciphers = Some(vec![cipher]);
        let strict = Home::with(|options| {
            options.keystore(Keystore::at(free.path("keys"))).policy(policy).cipher(cipher)
        });
        for other in Cipher::ALL {
            let path = free.path(&format!("{}-{}.db", cipher.name(), other.name()));
            let made = sqlite_tde::open_with(&path, &strict.options().cipher(other))
                .and_then(|db| Ok(db.execute_batch("CREATE TABLE t(a)")?));
            assert_eq!(made.is_ok(), other == cipher, "{cipher:?} {other:?}: {made:?}");
            let held = sqlite_tde::open_with(&path, &free.options().cipher(other)).unwrap();
            held.execute_batch("CREATE TABLE IF NOT EXISTS t(a)").unwrap();
            for opened in [strict.try_open(&path), {
                drop(held);
                strict.try_open(&path)
            }] {
                match opened.map(|db| db.execute_batch("SELECT * FROM t")) {
                    Ok(read) => assert!(read.is_ok() && other == cipher, "{cipher:?} {other:?}"),
                    Err(error) => {
                        let (name, only) = (other.name(), cipher.name());
                        let words = format!("the policy allows no cipher {name}, only {only}");
                        assert_eq!(error.to_string(), words);
                        assert_ne!(other, cipher);
                    }
                }
            }
        }
    }
}

#[test]
fn a_file_without_an_id_is_not_the_one_that_is_expected() {
    let home = Home::with(with_providers);
    let id = create(&home, "a.db", "public:payroll");
    let options = home.options().file_id(id);
    plain(&home.path("plain.db")).execute_batch("CREATE TABLE t(a)").unwrap();
    std::fs::write(home.path("empty.db"), b"").unwrap();
    for (name, words) in [
        ("missing.db", "none, for the file is empty"),
        ("empty.db", "none, for the file is empty"),
        ("plain.db", "none, for the database is not encrypted"),
    ] {
        let options = options.clone().allow_plaintext(true);
        let opened = sqlite_tde::open_with(home.path(name), &options);
        assert_eq!(wrong_file(opened), (words.to_owned(), id.to_string()), "{name}");
        if name != "plain.db" {
            let len = std::fs::metadata(home.path(name)).map_or(0, |meta| meta.len());
            assert_eq!(len, 0, "{name}: something was made");
        }
    }
    for bad in ["", "00", "zz", &"0".repeat(31), &"0".repeat(33), &"g".repeat(32)] {
        let options = home.options().parameter("tde_file_id", bad);
        let refused = sqlite_tde::open_with(home.path("a.db"), &options).map(|_| ()).unwrap_err();
        assert!(refused.to_string().contains("expected 32 hexadecimal digits"), "{bad}: {refused}");
    }
    let upper = home.options().parameter("tde_file_id", id.to_string().to_uppercase());
    assert!(sqlite_tde::open_with(home.path("a.db"), &upper).is_ok());
}

/// A file that is exchanged while it is open: the keys of the connection were locked, and come from
/// another one.
#[test]
fn a_file_that_is_exchanged_gives_no_other_keys() {
    let home = Home::with(with_providers);
    create(&home, "a.db", "public:payroll");
    create(&home, "b.db", "public:payroll");
    let db = home.open(&home.path("a.db"));
    db.tde_lock("main").unwrap();
    let genuine = std::fs::read(home.path("a.db")).unwrap();
    std::fs::write(home.path("a.db"), std::fs::read(home.path("b.db")).unwrap()).unwrap();
    let refused = db.query_row("SELECT count(*) FROM t", [], |_| Ok(())).unwrap_err();
    assert!(matches!(Error::from(refused), Error::EnvelopeDamaged(_)));
    std::fs::write(home.path("a.db"), genuine).unwrap();
    assert_eq!(one(&db, "SELECT count(*) FROM t"), Value::Integer(1));
}

#[test]
fn pins_hold_for_paths_and_protectors() {
    let home = Home::with(with_providers);
    let id = create(&home, "a.db", "public:payroll");
    let other = create(&home, "b.db", "public:payroll");
    let pinned = |paths: &[(&str, FileId)], protectors: &[(&str, FileId)]| {
        let mut pins = Pins::default();
        pins.paths = paths.iter().map(|&(name, id)| (home.path(name), id)).collect();
        pins.protectors =
            protectors.iter().map(|&(name, id)| (name.to_owned(), vec![id])).collect();
        Home::with(|options| with_providers(options).pins(pins))
    };
    let open = |pinned: &Home, name: &str| pinned.try_open(&home.path(name));
    let by_path = pinned(&[("a.db", id), ("b.db", id), ("new.db", id)], &[]);
    assert!(open(&by_path, "a.db").is_ok());
    assert_eq!(wrong_file(open(&by_path, "b.db")), (other.to_string(), id.to_string()));
    assert_eq!(wrong_file(open(&by_path, "new.db")).0, "none, for the file is empty");
    // The URI may say it again, not otherwise.
    let said = |id| by_path.options().file_id(id);
    assert!(sqlite_tde::open_with(home.path("a.db"), &said(id)).is_ok());
    let refused = sqlite_tde::open_with(home.path("a.db"), &said(other)).map(|_| ()).unwrap_err();
    assert!(refused.to_string().contains("the configuration expects"), "{refused}");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(home.path("b.db"), home.path("link.db")).unwrap();
        let by_link = pinned(&[("link.db", id)], &[]);
        assert!(open(&by_link, "link.db").is_err() && open(&by_link, "b.db").is_err());
    }
    #[cfg(unix)]
    {
        // Links to directories, which SQLite before 3.39 leaves in the path that it passes.
        std::fs::create_dir(home.path("real")).unwrap();
        std::fs::copy(home.path("b.db"), home.path("real/b.db")).unwrap();
        std::os::unix::fs::symlink(home.path("real"), home.path("dir")).unwrap();
        std::os::unix::fs::symlink("dir", home.path("again")).unwrap();
        for pin in ["real", "dir", "again"] {
            for through in ["real", "dir", "again"] {
                let both = [(format!("{pin}/b.db"), id), (format!("{pin}/new.db"), id)];
                let both: Vec<_> = both.iter().map(|(name, id)| (name.as_str(), *id)).collect();
                let pinned = pinned(&both, &[]);
                let refused = wrong_file(open(&pinned, &format!("{through}/b.db")));
                assert_eq!(refused, (other.to_string(), id.to_string()), "{pin}, {through}");
                let none = wrong_file(open(&pinned, &format!("{through}/new.db"))).0;
                assert_eq!(none, "none, for the file is empty", "{pin}, {through}");
                assert!(open(&pinned, &format!("{through}/none.db")).is_ok(), "{pin}, {through}");
            }
        }
    }
    for name in ["public:payroll", "public:*"] {
        let by_protector = pinned(&[], &[(name, id)]);
        assert!(open(&by_protector, "a.db").is_ok(), "{name}");
        let both = (other.to_string(), id.to_string());
        assert_eq!(wrong_file(open(&by_protector, "b.db")), both, "{name}");
        let created = open(&by_protector, "new.db").unwrap();
        let refused = Error::from(created.execute_batch("CREATE TABLE t(a)").unwrap_err());
        assert!(matches!(refused, Error::WrongFile { .. }), "{name}: {refused:?}");
    }
    let for_others = pinned(&[], &[("public:others", id), ("keystore:default", id)]);
    assert!(open(&for_others, "b.db").is_ok());
}

/// A pin that would hold for nothing is no pin.
#[test]
fn pins_that_hold_for_nothing_are_refused() {
    let id = FileId([7; 16]);
    let pins = |path: Option<&str>, protector: Option<&str>| {
        let mut pins = Pins::default();
        pins.paths = path.map(|path| (path.into(), id)).into_iter().collect();
        pins.protectors = protector.map(|name| (name.to_owned(), vec![id])).into_iter().collect();
        pins
    };
    for (path, protector, words) in [
        (Some("b.db"), None, "full path"),
        (Some("~/b.db"), None, "full path"),
        (None, Some("agee:*"), "no such provider is set up"),
        (None, Some("public"), "expected PROVIDER:KEY"),
        (None, Some("*"), "expected PROVIDER:KEY"),
        (None, Some("public:"), "expected PROVIDER:KEY"),
    ] {
        let options = with_providers(sqlite_tde::Options::new()).name("refused");
        let refused = sqlite_tde::register(options.pins(pins(path, protector)));
        let error = refused.expect_err(words).to_string();
        assert!(error.contains(words), "{path:?}, {protector:?}: {error}");
    }
    // Nor does a database get a protector that would not open it.
    let home =
        Home::with(|options| with_providers(options).pins(pins(None, Some("public:others"))));
    create(&home, "a.db", "public:payroll");
    let db = home.open(&home.path("a.db"));
    let added = db.tde_add_protector("main", NewProtector::new("public:others"));
    let rotated = db.tde_rotate_protector("main", RotateProtector::to("public:others"));
    for refused in [added, rotated] {
        assert!(matches!(refused, Err(Error::WrongFile { .. })), "{refused:?}");
    }
}

#[test]
fn a_configuration_says_pins_and_budget() {
    let dir = tempfile::tempdir().unwrap();
    let load = |text: &str| {
        std::fs::write(dir.path().join("config.toml"), text).unwrap();
        #[cfg(unix)]
        for (path, mode) in
            [(dir.path().to_owned(), 0o700), (dir.path().join("config.toml"), 0o600)]
        {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        }
        Config::load(dir.path())
    };
    let id = "00112233445566778899aabbccddeeff";
    let config = load(&format!(
        "[pins.paths]\n\"/srv/a.db\" = \"{id}\"\n\"/srv/b.db\" = \"{}\"\n[pins.protectors]\n\"age:*\" = \
         [\"{id}\"]\n\"keystore:payroll\" = []\n[access]\nopen_time_out = \"5s\"\n\
         derivation = {{ work_kib = 262144 }}",
        id.to_uppercase()
    ))
    .unwrap();
    let parsed: FileId = id.parse().unwrap();
    let paths: BTreeMap<_, _> = [("/srv/a.db".into(), parsed), ("/srv/b.db".into(), parsed)].into();
    assert_eq!(config.settings.values().pins.paths, paths);
    let protectors: BTreeMap<String, Vec<FileId>> =
        [("age:*".to_owned(), vec![parsed]), ("keystore:payroll".to_owned(), vec![])].into();
    assert_eq!(config.settings.values().pins.protectors, protectors);
    assert_eq!(config.settings.values().access.open_time_out, std::time::Duration::from_secs(5));
    assert_eq!(config.settings.values().access.derivation.work_kib, 262_144);
    assert_eq!(config.settings.values().access.derivation.memory_kib, 1 << 20);
    for (text, line, field) in [
        ("[pins.paths]\n\"/a\" = \"0011\"", 2, "pins.paths./a: expected a file id"),
        ("[pins.paths]\n\"/a\" = 5", 2, "pins.paths./a"),
        ("[pins]\nfiles = {}", 2, "pins.files: there is no such field"),
        ("[pins.protectors]\n\"age:\" = []", 2, "expected PROVIDER:KEY"),
        ("[pins.protectors]\nage = []", 2, "expected PROVIDER:KEY or PROVIDER:*"),
        ("[pins.protectors]\n\"*\" = []", 2, "expected PROVIDER:KEY or PROVIDER:*"),
        ("[pins.protectors]\n\":key\" = []", 2, "expected PROVIDER:KEY or PROVIDER:*"),
        ("[pins.paths]\n\"b.db\" = \"0011\"", 2, "expected a full path"),
        ("[pins.paths]\n\"~/b.db\" = \"0011\"", 2, "expected a full path"),
        ("[pins.protectors]\n\"age:*\" = \"x\"", 2, "expected a list"),
        ("[access]\nderivation = { memory_kib = 1 }", 2, "access.derivation.memory_kib"),
        ("[access]\nopen_time_out = \"0s\"", 2, "access.open_time_out"),
    ] {
        let error = load(text).unwrap_err().to_string();
        assert!(
            error.contains(&format!("line {line}")) && error.contains(field),
            "{text}: {error}"
        );
    }
}

/// The id follows from the key: no two databases have one, however they came to be.
#[test]
fn each_database_has_an_id_of_its_own() {
    let home = Home::with(with_providers);
    let mut seen = std::collections::BTreeSet::new();
    for number in 0..20 {
        assert!(seen.insert(create(&home, &format!("{number}.db"), "public:payroll")));
    }
    let db: Connection = home.open(&home.path("0.db"));
    db.execute("VACUUM INTO ?1", [home.uri(&home.path("into.db"))]).unwrap();
    let into =
        sqlite_tde::open_with(home.path("into.db"), &OpenOptions::new().vfs(&home.vfs)).unwrap();
    let id = into.tde_status("main").unwrap().file_id.parse().unwrap();
    assert!(seen.insert(id));
}
