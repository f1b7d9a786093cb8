//! The key providers that need no server: each through the conformance suite, each with databases,
//! and some beside the programs that they are for.
//!
//! Rows that need a program say so where it is not installed. `scripts/test-providers.sh` installs
//! them and sets SQLITE_TDE_TEST_PROVIDERS=1, and then such a row fails.
#![cfg(unix)]

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::sync::Arc;

use rusqlite::types::Value;
use sqlite_tde::provider::conformance::Direct;
use sqlite_tde::provider::conformance::{Conformance, Outcome, Report, assert_conforms};
use sqlite_tde::provider::{
    Command, Context, Cost, KeyProvider, Keystore, Passphrase, ProviderError, RawKey, SecretSource,
};
use sqlite_tde::secret::Secret;
use sqlite_tde::{Error, Options, TdeConnection};
use sqlite_tde_testkit::{Home, found_in_files, one};

const CONTEXT: Context = Context { file_id: [7; 16], dek_version: 1 };
const PASSPHRASE: &str = "correct horse battery staple";
const CHEAP: Cost = Cost { memory_kib: 64, iterations: 1, parallelism: 1 };
const SWITCHED: [&str; 2] = [
    "denies a disabled key, and serves when it is enabled",
    "says that it is unreachable, and serves when it is back",
];

/// Whether the programs are there; if not, says so past the test's own output, or fails.
fn installed(row: &str, programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let missing = programs.iter().find(|name| !dirs.iter().any(|dir| dir.join(name).exists()));
    if let Some(missing) = missing {
        let text = format!("{row}: NOT RUN, {missing} is missing: see scripts/test-providers.sh\n");
        let required = std::env::var_os("SQLITE_TDE_TEST_PROVIDERS").is_some_and(|v| v == "1");
        assert!(!required, "{text}");
        std::io::stderr().write_all(text.as_bytes()).unwrap();
    }
    missing.is_none()
}

fn file(path: PathBuf, content: &[u8]) -> SecretSource {
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    SecretSource::File(path)
}

fn run(program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Process::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", output.status);
    output.stdout
}

/// Exactly these checks were not run; a row that silently loses one would fail.
fn assert_not_run(report: &Report, expected: &[&str]) {
    let not_run = report.checks.iter().filter(|c| matches!(c.outcome, Outcome::NotRun(_)));
    assert_eq!(not_run.map(|check| check.name).collect::<Vec<_>>(), expected, "\n{report}");
}

const MISSING: &str = "says that a missing key is not here";
const ROTATION: &str = "unwraps with the older version after a rotation";

#[test]
fn the_keystore_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let store = Keystore::at(dir.path().join("keys"));
    for key in ["app", "other"] {
        store.create(key).unwrap();
    }
    let away = dir.path().join("away");
    let path = store.path();
    let enable = |enabled| store.set_enabled("app", 1, enabled).unwrap();
    // A directory in the file's place is what the file system cannot read.
    let cut = || {
        fs::rename(&path, &away).unwrap();
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    };
    let restore = || {
        fs::remove_dir(&path).unwrap();
        fs::rename(&away, &path).unwrap();
    };
    let suite = Conformance::of(&store, "app")
        .missing_key("nobody")
        .other_key("other")
        .rotate(|| drop(store.rotate("app").unwrap()))
        .switch(|| enable(false), || enable(true))
        .outage(cut, restore);
    assert_not_run(&assert_conforms(suite), &[]);
}

#[test]
fn passphrases_conform() {
    let dir = tempfile::tempdir().unwrap();
    let source = file(dir.path().join("passphrase"), PASSPHRASE.as_bytes());
    let provider = Passphrase::new(source).cost(CHEAP);
    let (here, away) = (dir.path().join("passphrase"), dir.path().join("away"));
    let cut = || {
        fs::rename(&here, &away).unwrap();
        fs::create_dir(&here).unwrap();
        fs::set_permissions(&here, fs::Permissions::from_mode(0o700)).unwrap();
    };
    let restore = || {
        fs::remove_dir(&here).unwrap();
        fs::rename(&away, &here).unwrap();
    };
    // Any label is a key, and there is one version. It is known without asking.
    let suite = Conformance::of(&provider, "app").other_key("other").secret(PASSPHRASE.as_bytes());
    assert_not_run(&assert_conforms(suite), &[MISSING, SWITCHED[0], SWITCHED[1], ROTATION]);

    let wrapped = provider.wrap_key("app", &Secret::random().unwrap(), &CONTEXT).unwrap();
    for (what, serves) in [("kept", true), ("forgotten", false)] {
        cut();
        let answer = provider.unwrap_key("app", &wrapped, &CONTEXT).map(drop);
        let unreachable = matches!(answer, Err(ProviderError::Unreachable(_)));
        assert_eq!((answer.is_ok(), unreachable), (serves, !serves), "{what}: {answer:?}");
        restore();
        provider.forget();
    }
}

#[test]
fn raw_keys_conform() {
    let dir = tempfile::tempdir().unwrap();
    let key = Secret::random().unwrap();
    let path = dir.path().join("key");
    let provider = RawKey::new(file(path.clone(), key.expose()));
    let loosen = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    let suite = Conformance::of(&provider, "app").other_key("other").secret(key.expose());
    assert_not_run(&assert_conforms(suite), &[MISSING, SWITCHED[0], SWITCHED[1], ROTATION]);

    loosen(0o644);
    let answer = provider.newest_of("app");
    assert!(matches!(answer, Err(ProviderError::LoosePermissions { .. })), "{answer:?}");
    fs::remove_file(&path).unwrap();
    let answer = provider.newest_of("app");
    assert!(matches!(answer, Err(ProviderError::NotHere(_))), "{answer:?}");
}

/// `examples/command/age.sh` with the keys in `dir`.
fn age(dir: &Path) -> Command {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/command/age.sh");
    let argv = |verb| [script.into(), OsString::from(verb), dir.into()];
    Command::new(argv("wrap"), argv("unwrap")).newest(argv("newest"))
}

fn age_key(dir: &Path, name: &str) {
    run("age-keygen", &["-o", dir.join(name).to_str().unwrap()], b"");
}

#[test]
fn a_script_around_age_conforms() {
    if !installed("a script around age", &["age", "age-keygen"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (keys, away) = (dir.path().join("keys"), dir.path().join("away"));
    fs::create_dir(&keys).unwrap();
    for name in ["app.1", "app.2.old", "app-2.7", "other.1"] {
        age_key(&keys, name);
    }
    let disabled = keys.join("app.disabled");
    let provider = age(&keys);
    let suite = Conformance::of(&provider, "app")
        .missing_key("nobody")
        .other_key("other")
        .rotate(|| (2..=10).for_each(|version| age_key(&keys, &format!("app.{version}"))))
        .switch(|| fs::write(&disabled, "").unwrap(), || fs::remove_file(&disabled).unwrap())
        .outage(|| fs::rename(&keys, &away).unwrap(), || fs::rename(&away, &keys).unwrap())
        .envelope_binds();
    assert_not_run(&assert_conforms(suite), &[]);
    assert_eq!(provider.newest_of("app").unwrap(), "10");
}

/// Without a script, an exit code says no more than that it did not work.
#[test]
fn age_alone_conforms() {
    if !installed("age alone", &["age", "age-keygen"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    age_key(dir.path(), "app");
    let identity = dir.path().join("app").to_str().unwrap().to_owned();
    let recipient = String::from_utf8(run("age-keygen", &["-y", &identity], b"")).unwrap();
    let provider =
        Command::new(["age", "-r", recipient.trim()], ["age", "-d", "-i", identity.as_str()]);
    let report = assert_conforms(Conformance::of(&provider, "app").envelope_binds().vague());
    let other = "refuses a blob of another key";
    assert_not_run(&report, &[other, MISSING, SWITCHED[0], SWITCHED[1], ROTATION]);
}

/// `systemd-creds` with a host key of the test's own instead of the machine's.
fn systemd_creds(dir: &Path, arguments: &[&str]) -> Vec<OsString> {
    let mut argv: Vec<OsString> = vec!["env".into()];
    argv.push(format!("SYSTEMD_CREDENTIAL_SECRET={}/host-key", dir.display()).into());
    argv.push("systemd-creds".into());
    argv.extend(arguments.iter().map(OsString::from));
    argv
}

#[test]
fn systemd_creds_conforms() {
    if !installed("systemd-creds", &["systemd-creds"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let provider = Command::new(
        systemd_creds(dir.path(), &["encrypt", "--with-key=host", "--name={key_id}", "-", "-"]),
        systemd_creds(dir.path(), &["decrypt", "--name={key_id}", "-", "-"]),
    );
    // It prints base64 in lines, and binds the name alone.
    let suite =
        Conformance::of(&provider, "app").other_key("other").envelope_binds().malleable().vague();
    assert_not_run(&assert_conforms(suite), &[MISSING, SWITCHED[0], SWITCHED[1], ROTATION]);
    let wrapped = provider.wrap_key("app", &Secret::random().unwrap(), &CONTEXT).unwrap();
    let error = provider.unwrap_key("other", &wrapped, &CONTEXT).unwrap_err().to_string();
    assert!(error.contains("Embedded credential name 'app' does not match"), "{error}");
    assert!(dir.path().join("host-key").exists(), "the machine's own key was not touched");
}

/// A service finds its credentials decrypted in a directory of files with mode 0400.
#[test]
fn a_credential_of_systemds_is_a_passphrase() {
    if !installed("a credential of systemd's", &["systemd-creds"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let creds = |arguments: &[&str], input: &[u8]| {
        let argv = systemd_creds(dir.path(), arguments);
        let words: Vec<&str> = argv.iter().map(|word| word.to_str().unwrap()).collect();
        run(words[0], &words[1..], input)
    };
    let plain = format!("{PASSPHRASE}\n");
    let sealed = creds(&["encrypt", "--with-key=host", "--name=tde", "-", "-"], plain.as_bytes());
    assert!(!sealed.windows(5).any(|window| window == b"horse"));
    let path = dir.path().join("tde");
    let source = file(path.clone(), &creds(&["decrypt", "--name=tde", "-", "-"], &sealed));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();

    let provider = Passphrase::new(source).cost(CHEAP);
    let suite = Conformance::of(&provider, "tde").secret(PASSPHRASE.as_bytes());
    let _ = assert_conforms(suite);
    // The same passphrase from elsewhere opens what it wrapped.
    let dek = Secret::random().unwrap();
    let wrapped = provider.wrap_key("tde", &dek, &CONTEXT).unwrap();
    let typed = Passphrase::new(file(dir.path().join("typed"), PASSPHRASE.as_bytes()));
    assert!(typed.unwrap_key("tde", &wrapped, &CONTEXT).unwrap().expose() == dek.expose());
}

/// How systemd gives a credential to a service of another user: an access list on root's file.
#[test]
fn an_access_list_on_a_credential_is_roots_affair() {
    use std::os::unix::fs::MetadataExt;
    if !installed("an access list on a credential", &["setfacl"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tde");
    let source = file(path.clone(), PASSPHRASE.as_bytes());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    run("setfacl", &["-m", "u:nobody:r", path.to_str().unwrap()], b"");
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(metadata.mode() & 0o777, 0o440, "the mask shows as the group's permissions");
    let answer = source.read("a passphrase").map(|secret| secret.to_vec());
    if metadata.uid() == 0 && metadata.gid() == 0 {
        assert_eq!(answer.unwrap(), PASSPHRASE.as_bytes());
    } else {
        assert!(matches!(answer, Err(ProviderError::LoosePermissions { .. })), "{answer:?}");
    }
}

/// Providers of one kind: the right one, made anew for each use, and one with another key.
struct Kind {
    name: &'static str,
    right: Box<dyn Fn() -> Arc<dyn KeyProvider>>,
    wrong: Arc<dyn KeyProvider>,
}

fn kinds(dir: &Path) -> Vec<Kind> {
    let path = |name: &str| dir.join(name);
    let raw = [1, 2].map(|byte: u8| format!("{byte:02x}").repeat(32));
    let passphrase = |source| Arc::new(Passphrase::new(source).cost(CHEAP));
    let mut kinds = vec![
        Kind {
            name: "passphrase",
            right: {
                let source = file(path("passphrase"), PASSPHRASE.as_bytes());
                Box::new(move || passphrase(source.clone()))
            },
            wrong: passphrase(file(path("no passphrase"), b"incorrect horse")),
        },
        Kind {
            name: "raw",
            right: {
                let source = file(path("raw"), raw[0].as_bytes());
                Box::new(move || Arc::new(RawKey::new(source.clone())))
            },
            wrong: Arc::new(RawKey::new(file(path("other raw"), raw[1].as_bytes()))),
        },
    ];
    if installed("databases under age", &["age", "age-keygen"]) {
        let (keys, others) = (path("age"), path("other age"));
        for dir in [&keys, &others] {
            fs::create_dir(dir).unwrap();
            age_key(dir, "app.1");
        }
        let wrong = Arc::new(age(&others));
        kinds.push(Kind { name: "command", right: Box::new(move || Arc::new(age(&keys))), wrong });
    }
    kinds
}

fn home(kind: &Kind, provider: Arc<dyn KeyProvider>) -> Home {
    let default = format!("{}:app", kind.name);
    Home::with(|options| options.provider(kind.name, provider).default_protector(&default))
}

#[test]
fn databases_open_with_the_right_key_alone() {
    let dir = tempfile::tempdir().unwrap();
    for kind in kinds(dir.path()) {
        let what = kind.name;
        let first = home(&kind, (kind.right)());
        let path = first.path("a.db");
        let db = first.open(&path);
        db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES('the treasure')").unwrap();
        let protector = &db.tde_status("main").unwrap().protectors[0];
        assert_eq!((&*protector.provider, &*protector.key), (what, "app"));
        drop(db);
        assert_eq!(found_in_files(first.dir.path(), b"the treasure"), None, "{what}");

        let wrong = home(&kind, Arc::clone(&kind.wrong));
        let error = wrong.try_open(&path).map(drop).unwrap_err();
        assert!(matches!(error, Error::WrongKey(_)), "{what}: {error:?}");

        let again = home(&kind, (kind.right)());
        let text = one(&again.open(&path), "SELECT a FROM t");
        assert_eq!(text, Value::Text("the treasure".into()), "{what}");
    }
}

/// Where the provider binds no context, the envelope's MAC does.
#[test]
fn a_blob_of_another_database_opens_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for kind in kinds(dir.path()) {
        let what = kind.name;
        let home = home(&kind, (kind.right)());
        let [one, two] = ["one.db", "two.db"].map(|name| {
            let path = home.path(name);
            home.open(&path).execute_batch("CREATE TABLE t(a)").unwrap();
            path
        });
        let [from, to] = [&one, &two].map(|path| blob_in(&fs::read(path).unwrap(), what));
        let bytes = fs::read(&two).unwrap();
        assert_eq!(from.len(), to.len(), "{what}");
        fs::write(&two, replace(&bytes, &to, &from)).unwrap();
        let error = home.try_open(&two).map(drop).unwrap_err();
        let expected = match what {
            "command" => matches!(error, Error::EnvelopeDamaged(_)),
            _ => matches!(error, Error::WrongKey(_)),
        };
        assert!(expected, "{what}: {error:?}");
        fs::write(&two, bytes).unwrap();
        home.open(&two);
    }
}

/// The wrapped key in a database: by docs/format.md it ends the last record, which a MAC follows.
fn blob_in(bytes: &[u8], what: &str) -> Vec<u8> {
    let copies = [&bytes[..8192], &bytes[8192..16384]];
    let copy = copies.into_iter().find(|copy| copy.iter().any(|&byte| byte != 0)).unwrap();
    let end = u32::from_be_bytes(copy[20..24].try_into().unwrap()) as usize - 32;
    let len = match what {
        "raw" => 72,
        "passphrase" => 96,
        _ => 232,
    };
    assert_eq!(copy[end - len - 2..end - len], (len as u16).to_be_bytes(), "{what}");
    copy[end - len..end].to_vec()
}

fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = bytes.to_vec();
    let mut found = 0;
    for at in 0..bytes.len().saturating_sub(from.len()) {
        if bytes[at..].starts_with(from) {
            bytes[at..at + from.len()].copy_from_slice(to);
            found += 1;
        }
    }
    assert!(found > 0);
    bytes
}

/// "Opening a file never executes, connects to or reads anything that the file names."
#[test]
fn a_database_file_names_nothing_that_runs() {
    let dir = tempfile::tempdir().unwrap();
    let marker = dir.path().join("marker");
    let unwrap = ["sh", "-c", "touch \"$0\"; cat"].map(OsString::from);
    let unwrap = unwrap.into_iter().chain([marker.clone().into()]);
    let provider = Arc::new(Command::new(["cat"], unwrap));
    let home = Home::with(|options| {
        options.provider("command", provider).default_protector("command:payroll-key")
    });
    let path = home.path("a.db");
    home.open(&path).execute_batch("CREATE TABLE t(a)").unwrap();
    fs::remove_file(&marker).unwrap();
    let bytes = fs::read(&path).unwrap();
    for (what, from, to) in [
        ("a path for a key", "payroll-key", "../../../x/"),
        ("a shell's words for a key", "payroll-key", "$(touch m);"),
        ("an option for a key", "payroll-key", "--output=xy"),
        ("a path for a provider", "command", "/bin/sh"),
        ("a shell's words for a provider", "command", "`touch`"),
    ] {
        fs::write(&path, replace(&bytes, from.as_bytes(), to.as_bytes())).unwrap();
        let error = home.try_open(&path).map(drop).unwrap_err();
        assert!(matches!(error, Error::NoKey(_)), "{what}: {error:?}");
        assert!(!marker.exists(), "{what}: something ran");
    }
    // The one that was configured would have.
    fs::write(&path, bytes).unwrap();
    home.try_open(&path).unwrap();
    assert!(marker.exists());
}

/// A database names its provider as `NAME:KEY`, so a name must be one, and of one provider.
#[test]
fn a_name_that_no_provider_can_have_is_refused_when_it_is_registered() {
    let raw = || Arc::new(RawKey::new(SecretSource::Environment("UNSET".into())));
    let long = "n".repeat(65);
    let rows: [(&str, &[&str], Option<&str>); 9] = [
        ("two", &["corp", "kms"], None),
        ("beside Options::keystore", &["keystore"], Some("two providers are called \"keystore\"")),
        ("with a blank", &["corp kms"], None),
        ("with the separator", &["corp:kms"], Some("no provider can be called \"corp:kms\"")),
        ("empty", &[""], Some("no provider can be called \"\"")),
        ("a line feed", &["a\nb"], Some("\"a\\nb\"")),
        ("an escape", &["a\u{9b}31m"], Some("\"a\\u{9b}31m\"")),
        ("too long", &[&long], Some("use 1 to 64 characters")),
        ("twice", &["kms", "other", "kms"], Some("two providers are called \"kms\"")),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (what, names, expected) in rows {
        let keystore = Keystore::at(dir.path().join("keys"));
        let mut options = Options::new().name("names").replace(true).keystore(keystore);
        for name in names {
            options = options.provider(name, raw());
        }
        match (sqlite_tde::register(options), expected) {
            (Ok(()), None) => {}
            (Err(Error::Usage(words)), Some(expected)) if words.contains(expected) => {}
            (answer, _) => panic!("{what}: {answer:?} instead of {expected:?}"),
        }
    }
}
