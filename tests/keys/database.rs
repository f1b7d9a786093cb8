//! Keys that are missing, wrong, refused or damaged: each has its own error, opening creates
//! nothing, and no error shows a key.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags};
use sqlite_tde::provider::{
    Answer, KeyProvider, Keystore, ProviderError, UnwrapRequest, VersionRequest, WrapRequest,
    Wrapped,
};
use sqlite_tde::secret::Secret;
use sqlite_tde::{Error, OpenOptions, TdeConnection};
use sqlite_tde_testkit::{Home, one, plain};

/// A provider that keeps every DEK it was given, counts, and fails as it is told.
#[derive(Default)]
struct Spy {
    deks: Mutex<Vec<Vec<u8>>>,
    unwraps: AtomicUsize,
    failure: Mutex<Option<ProviderError>>,
}

impl Spy {
    fn fail_with(&self, failure: Option<ProviderError>) {
        *self.failure.lock().unwrap() = failure;
    }

    fn failure(&self) -> Result<(), ProviderError> {
        self.failure.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    fn unwraps(&self) -> usize {
        self.unwraps.load(Ordering::SeqCst)
    }
}

impl KeyProvider for Spy {
    fn wrap(&self, request: &WrapRequest<'_>) -> Result<Answer<Wrapped>, ProviderError> {
        let WrapRequest { dek, .. } = *request;
        self.failure()?;
        let mut deks = self.deks.lock().unwrap();
        deks.push(dek.expose().to_vec());
        let blob = vec![deks.len() as u8];
        Ok(Wrapped::new("7", "spy", blob).into())
    }

    fn unwrap(&self, request: &UnwrapRequest<'_>) -> Result<Answer<Secret>, ProviderError> {
        let UnwrapRequest { wrapped, .. } = *request;
        self.unwraps.fetch_add(1, Ordering::SeqCst);
        self.failure()?;
        let deks = self.deks.lock().unwrap();
        let dek = &deks[usize::from(wrapped.blob[0]) - 1];
        Secret::from_slice(dek)
            .map(Answer::from)
            .ok_or_else(|| ProviderError::Damaged("length".into()))
    }

    fn newest_version(&self, _: &VersionRequest<'_>) -> Result<Answer<String>, ProviderError> {
        self.failure().map(|()| "7".into())
    }
}

fn spied() -> (Home, Arc<Spy>) {
    let spy = Arc::new(Spy::default());
    let provider = Arc::clone(&spy);
    let home = Home::with(|options| options.provider("spy", provider).default_protector("spy:key"));
    (home, spy)
}

fn create(home: &Home, name: &str) -> PathBuf {
    let path = home.path(name);
    home.open(&path).execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1)").unwrap();
    path
}

fn keystore(home: &Home) -> Keystore {
    Keystore::at(home.path("keys"))
}

/// Every file under `dir` with its content, in order.
fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.push((path.clone(), Vec::new()));
            found.extend(files(&path));
        } else {
            let bytes = fs::read(&path).unwrap();
            found.push((path, bytes));
        }
    }
    found.sort();
    found
}

type Class = fn(&Error) -> bool;
const NO_KEY: Class = |error| matches!(error, Error::NoKey(_));
const WRONG_KEY: Class = |error| matches!(error, Error::WrongKey(_));
const DISABLED: Class = |error| matches!(error, Error::KeyDisabled(_));
const UNREACHABLE: Class = |error| matches!(error, Error::ProviderUnreachable(_));
const PROVIDER_DAMAGED: Class = |error| matches!(error, Error::ProviderDamaged(_));
#[cfg(unix)]
const LOOSE: Class = |error| matches!(error, Error::LoosePermissions(_));

const AUTH: i32 = 23;
const CANTOPEN: i32 = 14;
const CORRUPT: i32 = 11;
const IOERR: i32 = 10;
const NOTADB: i32 = 26;
const IOERR_DATA: i32 = IOERR | 32 << 8;

const fn extended(primary: i32, number: i32) -> i32 {
    primary | (0x70 + number) << 8
}

/// `path` is refused with this class, this code in SQLite and the same words in
/// `tde_last_error()`; it and the home are left alone, and what ends the trouble ends the refusal.
fn assert_refused(home: &Home, path: &Path, options: &OpenOptions, want: (Class, i32), what: &str) {
    let before = (files(home.dir.path()), fs::read(path).unwrap());
    let error = sqlite_tde::open_with(path, options).map(drop).expect_err(what);
    assert!(want.0(&error), "{what}: {error:?}");
    assert_eq!(error.sqlite_code(), want.1, "{what}");

    // The same through rusqlite alone, as another host sees it.
    let uri = options.uri(path).unwrap();
    let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
    let raw = Connection::open_with_flags(uri, flags).map(drop).expect_err(what);
    assert_eq!(raw.sqlite_error().unwrap().extended_code, want.1, "{what}");
    let host = Connection::open_in_memory().unwrap();
    let words = one(&host, "SELECT tde_last_error()");
    assert_eq!(words, Value::Text(error.to_string()), "{what}");
    assert_eq!(sqlite_tde::last_error(), Some(error.to_string()), "{what}");
    assert!(want.0(&Error::from(raw)), "{what}");

    assert!((files(home.dir.path()), fs::read(path).unwrap()) == before, "{what}: left traces");
}

#[test]
fn keys_that_do_not_serve() {
    let home = Home::new();
    let path = create(&home, "a.db");
    let stranger = Home::new();
    keystore(&stranger).create("default").unwrap();
    let empty = Home::new();
    keystore(&home).create("other").unwrap();
    let (spied_home, _spy) = spied();
    let spied_path = create(&spied_home, "spied.db");

    let auth = |number| extended(AUTH, number);
    let rows: [(&str, &Home, &Path, OpenOptions, (Class, i32)); 6] = [
        ("keystore of another home", &stranger, &path, stranger.options(), (WRONG_KEY, auth(2))),
        ("keystore missing", &empty, &path, empty.options(), (NO_KEY, auth(1))),
        ("provider not set up", &home, &spied_path, home.options(), (NO_KEY, auth(1))),
        (
            "protector is another key",
            &home,
            &path,
            home.options().protector("other"),
            (WRONG_KEY, auth(2)),
        ),
        (
            "protector is no key",
            &home,
            &path,
            home.options().protector("nobody"),
            (WRONG_KEY, auth(2)),
        ),
        (
            "protector of a provider not set up",
            &home,
            &path,
            home.options().protector("spy:key"),
            (WRONG_KEY, auth(2)),
        ),
    ];
    for (what, home, path, options, want) in rows {
        assert_refused(home, path, &options, want, what);
    }
    for name in ["default", "keystore:default"] {
        let options = home.options().protector(name);
        assert_eq!(
            one(&sqlite_tde::open_with(&path, &options).unwrap(), "SELECT a FROM t"),
            Value::Integer(1),
            "{name}"
        );
    }
}

#[test]
fn a_disabled_key_is_refused_until_it_is_enabled() {
    let home = Home::new();
    let path = create(&home, "a.db");
    keystore(&home).set_enabled("default", 1, false).unwrap();
    let want = (DISABLED, extended(AUTH, 3));
    assert_refused(&home, &path, &home.options(), want, "disabled");
    keystore(&home).set_enabled("default", 1, true).unwrap();
    assert_eq!(one(&home.open(&path), "SELECT a FROM t"), Value::Integer(1));
}

#[test]
fn a_damaged_keystore_is_refused() {
    let home = Home::new();
    let path = create(&home, "a.db");
    let file = keystore(&home).path();
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).unwrap();
    let want = (PROVIDER_DAMAGED, extended(CANTOPEN, 2));
    assert_refused(&home, &path, &home.options(), want, "damaged keystore");
}

#[cfg(unix)]
#[test]
fn a_keystore_that_others_may_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new();
    let path = create(&home, "a.db");
    let file = keystore(&home).path();
    let dir = home.path("keys");
    for (what, loosened, loose, strict) in
        [("file", &file, 0o644, 0o600), ("directory", &dir, 0o755, 0o700)]
    {
        let set = |mode| fs::set_permissions(loosened, fs::Permissions::from_mode(mode)).unwrap();
        set(loose);
        let want = (LOOSE, extended(CANTOPEN, 3));
        assert_refused(&home, &path, &home.options(), want, what);
        set(strict);
        assert_eq!(one(&home.open(&path), "SELECT a FROM t"), Value::Integer(1), "{what}");
    }
}

#[test]
fn what_a_provider_answers_is_what_the_caller_gets() {
    let (home, spy) = spied();
    let path = create(&home, "a.db");
    let text = || "the service said so".to_owned();
    let rows: [(ProviderError, Class, i32); 5] = [
        (ProviderError::not_here(text()), NO_KEY, extended(AUTH, 1)),
        (ProviderError::wrong_key(text()), WRONG_KEY, extended(AUTH, 2)),
        (ProviderError::denied(text()), DISABLED, extended(AUTH, 3)),
        (ProviderError::unreachable(text()), UNREACHABLE, extended(CANTOPEN, 1)),
        (ProviderError::damaged(text()), PROVIDER_DAMAGED, extended(CANTOPEN, 2)),
    ];
    for (failure, class, code) in rows {
        let what = format!("{failure:?}");
        spy.fail_with(Some(failure.clone()));
        assert_refused(&home, &path, &home.options(), (class, code), &what);

        // A new database needs a key when it is first written, and stays empty without one.
        let fresh = home.path("fresh.db");
        let db = home.open(&fresh);
        let error = db.execute_batch("CREATE TABLE t(a)").map_err(Error::from).unwrap_err();
        assert!(class(&error), "{what}, new database: {error:?}");
        drop(db);
        assert_eq!(fs::metadata(&fresh).unwrap().len(), 0, "{what}");
        fs::remove_file(&fresh).unwrap();
        let _ = fs::remove_file(home.path("fresh.db-journal"));

        spy.fail_with(None);
        assert_eq!(one(&home.open(&path), "SELECT a FROM t"), Value::Integer(1), "{what}");
    }
}

/// SQLite opens the journal before it writes the database, and that is where the key is missing.
#[test]
fn a_creation_without_a_key_leaves_no_journal() {
    let (home, spy) = spied();
    spy.fail_with(Some(ProviderError::Unreachable("outage".into())));
    let path = home.path("a.db");
    let db = home.open(&path);
    let error = db.execute_batch("CREATE TABLE t(a)").map_err(Error::from).unwrap_err();
    assert!(UNREACHABLE(&error), "{error:?}");
    let left = files(home.dir.path());
    drop(db);
    assert_eq!(left, [(path, Vec::new())]);
}

/// "One unwrap per process and file id" for as long as somebody has the database open.
#[test]
fn one_unwrap_serves_every_connection() {
    let (home, spy) = spied();
    let path = create(&home, "a.db");
    assert_eq!(spy.unwraps(), 1, "creating wraps, and unwraps once to prove it");
    for round in 1..=3 {
        let connections: Vec<_> = (0..10).map(|_| home.open(&path)).collect();
        for db in &connections {
            assert_eq!(one(db, "SELECT a FROM t"), Value::Integer(1));
        }
        assert_eq!(spy.unwraps(), 1 + round, "ten connections");
        drop(connections);
    }

    // The creator's own connection serves those that come after it.
    let other = home.path("b.db");
    let creator = home.open(&other);
    creator.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1)").unwrap();
    assert_eq!(one(&home.open(&other), "SELECT a FROM t"), Value::Integer(1));
    assert_eq!(spy.unwraps(), 5, "one more, of its creation");

    // An outage does not reach a database that is open, and reaches one that is not.
    spy.fail_with(Some(ProviderError::Unreachable("outage".into())));
    assert_eq!(one(&home.open(&other), "SELECT a FROM t"), Value::Integer(1));
    creator.execute_batch("INSERT INTO t VALUES(2)").unwrap();
    assert!(UNREACHABLE(&home.try_open(&path).map(drop).unwrap_err()));
}

#[test]
fn reading_and_failing_create_nothing() {
    let home = Home::new();
    let missing = home.path("missing.db");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let error = sqlite_tde::open_with(&missing, &home.options().flags(flags)).unwrap_err();
    assert!(matches!(error, Error::Sqlite(_)), "{error:?}");
    assert_eq!(error.sqlite_code() & 0xff, CANTOPEN, "SQLite's own answer");
    assert!(files(home.dir.path()).is_empty());

    // SQLite makes the file when it opens it; keys come with the first write.
    let db = home.open(&missing);
    assert_eq!(one(&db, "SELECT count(*) FROM sqlite_schema"), Value::Integer(0));
    assert!(matches!(db.tde_verify("main", |_, _| ()), Err(Error::NotEncrypted)));
    drop(db);
    assert_eq!(files(home.dir.path()), [(missing.clone(), Vec::new())]);

    // Reading an encrypted database without its keystore makes no keystore either.
    let path = create(&home, "a.db");
    fs::remove_dir_all(home.path("keys")).unwrap();
    let gone = home.try_open(&path).map(drop).unwrap_err();
    assert!(UNREACHABLE(&gone) && gone.to_string().contains("was there and is gone"), "{gone}");
    assert!(!home.path("keys").exists());

    // A key that is not the default one is never made by itself.
    let options = home.options().protector("nobody");
    let db = sqlite_tde::open_with(home.path("b.db"), &options).unwrap();
    let error = db.execute_batch("CREATE TABLE t(a)").map_err(Error::from).unwrap_err();
    assert!(UNREACHABLE(&error), "{error:?}");
    assert!(!home.path("keys").exists());
}

#[test]
fn files_and_parameters_that_cannot_be() {
    let home = Home::new();
    let path = create(&home, "a.db");
    let bytes = fs::read(&path).unwrap();
    let plain_path = home.path("a.plain");
    plain(&plain_path).execute_batch("CREATE TABLE t(a)").unwrap();
    let plain_bytes = fs::read(&plain_path).unwrap();
    let both = |at: usize, value: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = value;
        bytes[8192 + at] = value;
        bytes
    };
    let rows: [(&str, Vec<u8>, OpenOptions, (Class, i32)); 8] = [
        (
            "plaintext",
            plain_bytes,
            home.options(),
            (|error| matches!(error, Error::PlaintextRefused), extended(NOTADB, 2)),
        ),
        (
            "rubbish",
            vec![1; 20_000],
            home.options(),
            (|error| matches!(error, Error::NotADatabase(_)), extended(NOTADB, 3)),
        ),
        (
            "a later format",
            both(19, 9),
            home.options(),
            (
                |error| matches!(error, Error::FormatTooNew { found: 9, supported: 1 }),
                extended(NOTADB, 1),
            ),
        ),
        (
            "bad envelope",
            both(7679, 1),
            home.options(),
            (|error| matches!(error, Error::EnvelopeDamaged(_)), extended(CORRUPT, 1)),
        ),
        (
            "unknown cipher",
            bytes.clone(),
            home.options().parameter("tde_cipher", "rot13"),
            (|error| matches!(error, Error::Usage(_)), extended(CANTOPEN, 6)),
        ),
        (
            "unknown answer",
            bytes.clone(),
            home.options().parameter("tde_plaintext", "perhaps"),
            (|error| matches!(error, Error::Usage(_)), extended(CANTOPEN, 6)),
        ),
        (
            "neither on nor off",
            bytes.clone(),
            home.options().parameter("tde_read_ahead", "64"),
            (|error| matches!(error, Error::Usage(_)), extended(CANTOPEN, 6)),
        ),
        (
            "the same of the other switch",
            bytes.clone(),
            home.options().parameter("tde_gather_writes", ""),
            (|error| matches!(error, Error::Usage(_)), extended(CANTOPEN, 6)),
        ),
    ];
    for (what, bytes, options, want) in rows {
        fs::write(&path, bytes).unwrap();
        assert_refused(&home, &path, &options, want, what);
    }
    let mut bad_page = bytes;
    bad_page[16384 + 200] ^= 1;
    fs::write(&path, bad_page).unwrap();
    let raw = home.open(&path).execute_batch("SELECT * FROM t").unwrap_err();
    assert_eq!(raw.sqlite_error().unwrap().extended_code, IOERR_DATA);
    assert_eq!(sqlite_tde::last_error().as_deref(), Some("page 1 failed authentication"));
}

/// The table in `Error::sqlite_code`'s documentation.
#[test]
fn each_error_has_its_code() {
    let text = String::new;
    let io = std::io::Error::other("x");
    let loose = ProviderError::LoosePermissions { path: "k".into(), mode: 0o644, expected: 0o600 };
    let rows = [
        (Error::from(ProviderError::not_here(text())), extended(AUTH, 1)),
        (ProviderError::wrong_key(text()).into(), extended(AUTH, 2)),
        (ProviderError::denied(text()).into(), extended(AUTH, 3)),
        (ProviderError::unreachable(text()).into(), extended(CANTOPEN, 1)),
        (ProviderError::damaged(text()).into(), extended(CANTOPEN, 2)),
        (loose.into(), extended(CANTOPEN, 3)),
        (Error::Random(text().into()), extended(CANTOPEN, 4)),
        (Error::Unsupported(text()), extended(CANTOPEN, 5)),
        (Error::Usage(text()), extended(CANTOPEN, 6)),
        (Error::KeyExists { name: text() }, extended(CANTOPEN, 6)),
        (Error::EnvelopeDamaged(text()), extended(CORRUPT, 1)),
        (Error::DamagedInUse(text()), IOERR_DATA),
        (Error::PageAuthentication { page: 1 }, IOERR_DATA),
        (Error::FrameAuthentication { frame: 1 }, IOERR_DATA),
        (Error::JournalAuthentication { record: 1 }, IOERR_DATA),
        (Error::ScratchAuthentication { block: 1 }, IOERR_DATA),
        (Error::FormatTooNew { found: 2, supported: 1 }, extended(NOTADB, 1)),
        (Error::PlaintextRefused, extended(NOTADB, 2)),
        (Error::NotADatabase(text()), extended(NOTADB, 3)),
        (Error::NotEncrypted, extended(NOTADB, 4)),
        (Error::PageSize(512), extended(IOERR, 1)),
        (Error::PageSizeChange, extended(IOERR, 2)),
        (Error::ReserveBytes(0), extended(IOERR, 3)),
        (Error::NotAPage { offset: 0, len: 1 }, extended(IOERR, 4)),
        (Error::Io { path: PathBuf::new(), source: io }, IOERR),
        (Error::Base(13), 13),
    ];
    for (error, code) in rows {
        assert_eq!(error.sqlite_code(), code, "{error:?}");
    }
}

/// Whatever goes wrong, no text has the DEK in hexadecimal, base64 or as Rust prints bytes.
#[test]
fn no_error_shows_a_key() {
    let (home, spy) = spied();
    let path = create(&home, "a.db");
    let bytes = fs::read(&path).unwrap();
    let dek = spy.deks.lock().unwrap()[0].clone();
    let mut texts = Vec::new();
    let mut take = |error: Error| texts.push(format!("{error} {error:?} {error:#?}"));

    for failure in [
        ProviderError::Denied("no".into()),
        ProviderError::Unreachable("no".into()),
        ProviderError::Damaged("no".into()),
        ProviderError::WrongKey("no".into()),
    ] {
        spy.fail_with(Some(failure));
        take(home.try_open(&path).map(drop).unwrap_err());
    }
    spy.fail_with(None);
    for at in [16384 + 100, 8, 18, 30, 90, 110] {
        let mut bad = bytes.clone();
        bad[at] ^= 1;
        bad[at % 8192 + 8192] ^= 1;
        fs::write(&path, &bad).unwrap();
        match home.try_open(&path) {
            Err(error) => take(error),
            Ok(db) => {
                if let Err(error) = db.execute_batch("SELECT * FROM t") {
                    take(Error::from(error));
                }
            }
        }
    }
    fs::write(&path, &bytes).unwrap();
    let db = home.open(&path);
    let status = db.tde_status("main").unwrap();
    texts.push(format!("{status:?} {:?} {:?}", home.options(), Secret::from_slice(&dek)));
    texts.push(format!("{:?}", one(&db, "PRAGMA tde_status")));

    assert!(texts.len() >= 8, "{texts:?}");
    for text in texts {
        let lower = text.to_lowercase();
        for (encoding, key) in encodings(&dek) {
            let part = &key[..key.len() / 2];
            assert!(!text.contains(part) && !lower.contains(part), "{encoding}: {text}");
        }
    }
}

fn encodings(key: &[u8]) -> [(&'static str, String); 4] {
    use base64ct::{Base64, Base64Url, Encoding};
    let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let list = format!("{key:?}").trim_matches(['[', ']']).to_owned();
    [
        ("hexadecimal", hex),
        ("base64", Base64::encode_string(key)),
        ("base64url", Base64Url::encode_string(key)),
        ("a list", list),
    ]
}
