//! A second connection of the process takes the keys and the decoded envelope of the first. It gets
//! what it would have got alone.

use std::mem::{Discriminant, discriminant};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rusqlite::{ErrorCode, OpenFlags};
use sqlite_tde::config::{Pins, Policy};
use sqlite_tde::provider::{
    Answer, KeyProvider, ProviderError, UnwrapRequest, VersionRequest, WrapRequest, Wrapped,
};
use sqlite_tde::secret::Secret;
use sqlite_tde::{Error, FileId, NewProtector, OpenOptions, Options, TdeConnection};
use sqlite_tde_testkit::Home;

/// Wraps by itself, so that every registration has the same keys.
struct Turned;

impl KeyProvider for Turned {
    fn wrap(&self, request: &WrapRequest<'_>) -> Result<Answer<Wrapped>, ProviderError> {
        let blob = request.dek.expose().iter().map(|byte| !byte).collect();
        Ok(Wrapped::new("1", "turned", blob).into())
    }

    fn unwrap(&self, request: &UnwrapRequest<'_>) -> Result<Answer<Secret>, ProviderError> {
        let dek: Vec<u8> = request.wrapped.blob.iter().map(|byte| !byte).collect();
        let dek = Secret::from_slice(&dek).map(Answer::from);
        dek.ok_or_else(|| ProviderError::Damaged("length".into()))
    }

    fn newest_version(&self, _: &VersionRequest<'_>) -> Result<Answer<String>, ProviderError> {
        Ok("1".into())
    }
}

fn with_providers(options: Options) -> Options {
    let (one, two) = (Arc::new(Turned), Arc::new(Turned));
    options.provider("one", one).provider("two", two).default_protector("one:writer")
}

fn allowing(provider: &str) -> Home {
    let mut policy = Policy::default();
    policy.allowed_providers = Some(vec![provider.into()]);
    Home::with(|options| with_providers(options).policy(policy))
}

fn pinned(key: &str, id: FileId) -> Home {
    let mut pins = Pins::default();
    pins.protectors.insert(key.into(), vec![id]);
    Home::with(|options| with_providers(options).pins(pins))
}

/// The protector, and whether it may write; or the kind of the refusal.
type Outcome = Result<(String, bool), Discriminant<Error>>;

fn outcome(path: &Path, options: &OpenOptions) -> Outcome {
    let db = sqlite_tde::open_with(path, options).map_err(|error| discriminant(&error))?;
    let read = db.query_row("SELECT a FROM t", [], |row| row.get::<_, i64>(0));
    assert_eq!(read.unwrap(), 1);
    let wrote = match db.execute("UPDATE t SET a = 1", []) {
        Ok(_) => true,
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::ReadOnly) => false,
        Err(error) => panic!("{error}"),
    };
    Ok((db.tde_status("main").unwrap().opened_through, wrote))
}

const COPY_B: u64 = 8192;

/// Byte `at` of copies A and B is changed.
fn damage(path: &Path, at: u64, copies: &[u64]) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    for copy in copies {
        let mut byte = [0];
        file.read_exact_at(&mut byte, copy + at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], copy + at).unwrap();
    }
}

#[test]
fn a_second_opening_is_answered_as_a_first_one() {
    let home = Home::with(with_providers);
    let original = home.path("original.db");
    let db = home.open(&original);
    db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1)").unwrap();
    db.tde_add_protector("main", NewProtector::new("two:reader").read_only(true)).unwrap();
    let id: FileId = db.tde_status("main").unwrap().file_id.parse().unwrap();
    drop(db);
    let other: FileId = "0123456789abcdef0123456789abcdef".parse().unwrap();

    let (first, second) = (allowing("one"), allowing("two"));
    let none = allowing("three");
    let (mine, another) = (pinned("one:writer", id), pinned("one:writer", other));
    let read_only = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let through = |name: &str| home.options().protector(name);
    let writer = || Some(("one:writer", true));
    let reader = || Some(("two:reader", false));
    let rows: Vec<(&str, OpenOptions, Option<(u64, &[u64])>, Option<(&str, bool)>)> = vec![
        ("as the first", home.options(), None, writer()),
        ("for reading", home.options().flags(read_only), None, Some(("one:writer", false))),
        ("through the writer", through("one:writer"), None, writer()),
        ("through the reader", through("two:reader"), None, reader()),
        ("through none of them", through("two:nobody"), None, None),
        ("with its id", home.options().file_id(id), None, writer()),
        ("with another id", home.options().file_id(other), None, None),
        ("policy: the writer", first.options(), None, writer()),
        ("policy: the reader", second.options(), None, reader()),
        ("policy: neither", none.options(), None, None),
        ("policy against wish", second.options().protector("one:writer"), None, None),
        ("its key is for this one", mine.options(), None, writer()),
        ("its key is for another one", another.options(), None, reader()),
        ("the same, by name", another.options().protector("one:writer"), None, None),
        ("copy A changed", home.options(), Some((30, &[0])), writer()),
        ("copy B changed", home.options(), Some((30, &[COPY_B])), writer()),
        ("magic", home.options(), Some((0, &[0, COPY_B])), None),
        ("generation", home.options(), Some((31, &[0, COPY_B])), None),
        ("file id", home.options(), Some((32, &[0, COPY_B])), None),
        ("page size", home.options(), Some((50, &[0, COPY_B])), None),
        ("flags", home.options(), Some((86, &[0, COPY_B])), None),
        ("a protector's name", home.options(), Some((100, &[0, COPY_B])), None),
        ("padding", home.options(), Some((7600, &[0, COPY_B])), None),
        ("padding of one copy", home.options(), Some((7600, &[COPY_B])), writer()),
        ("a slot", home.options(), Some((7700, &[0])), writer()),
    ];
    for (number, (what, options, changed, want)) in rows.iter().enumerate() {
        let [cold, warm] = [false, true].map(|is_warm| {
            let path = home.path(&format!("{number}-{is_warm}.db"));
            std::fs::copy(&original, &path).unwrap();
            let held = is_warm.then(|| home.open(&path));
            if let Some(held) = &held {
                // The keys have several records that gave them, and page 1 was opened.
                drop(sqlite_tde::open_with(&path, &through("two:reader")).unwrap());
                held.query_row("SELECT a FROM t", [], |_| Ok(())).unwrap();
            }
            if let Some((at, copies)) = changed {
                damage(&path, *at, copies);
            }
            let outcome = outcome(&path, options);
            if let (Some((at, copies)), Err(_)) = (changed, &outcome) {
                damage(&path, *at, copies);
                assert!(home.try_open(&path).is_ok(), "{what}: the bytes are back");
            }
            outcome
        });
        assert_eq!(cold, warm, "{what}");
        let got = cold.as_ref().ok().map(|(name, wrote)| (name.as_str(), *wrote));
        assert_eq!(got, *want, "{what}");
    }
}
