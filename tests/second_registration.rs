//! A VFS of ours is never the base of another: by itself, as everything here concerns the default
//! VFS.

use std::ffi::CString;
use std::sync::Arc;

use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, ffi};
use sqlite_tde::provider::{
    Answer, KeyProvider, Keystore, ProviderError, UnwrapRequest, VersionRequest, WrapRequest,
    Wrapped,
};
use sqlite_tde::secret::Secret;
use sqlite_tde::{Error, OpenOptions};
use sqlite_tde_testkit::platform::{PlatformVfs, platform};
use sqlite_tde_testkit::{found_in_files, one, options};

#[test]
fn no_vfs_of_ours_is_the_base_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let keys = || Keystore::at(dir.path().join("keys"));
    let register = |name: &str, base: Option<&str>, default: bool| {
        let options = options(name).keystore(keys()).as_default(default).allow_plaintext(true);
        sqlite_tde::register(if let Some(base) = base { options.base(base) } else { options })
    };
    let usage = |what: &str, result: sqlite_tde::Result<()>, words: &str| match result {
        Err(Error::Usage(text)) => assert!(text.contains(words), "{what}: {text}"),
        other => panic!("{what}: {other:?}"),
    };

    register("one", None, true).unwrap();
    register("two", None, true).unwrap();
    register("three", None, true).unwrap();
    // What the last one writes, the first reads, and each sees only one layer.
    let path = dir.path().join("main.db");
    let db = Connection::open(&path).unwrap();
    db.execute_batch(
        "PRAGMA journal_mode=WAL; CREATE TABLE t(a); INSERT INTO t VALUES('a marker')",
    )
    .unwrap();
    assert!(one(&db, "PRAGMA tde_cipher") != Value::Null);
    drop(db);
    for name in ["one", "two", "three"] {
        let db = sqlite_tde::open_with(&path, &OpenOptions::new().vfs(name)).unwrap();
        assert_eq!(one(&db, "SELECT a FROM t"), Value::Text("a marker".into()), "{name}");
    }
    assert_eq!(found_in_files(dir.path(), b"a marker"), None);

    usage("named as a base", register("four", Some("one"), false), "name the VFS below it");
    // A shim between them that passes questions on, and one that does not.
    let open_shim = PlatformVfs::new(platform("unix"), "one");
    usage("below a shim", register("five", Some(open_shim.name), false), "encrypts already");
    let name = CString::new(open_shim.name).unwrap();
    // SAFETY: the VFS is registered.
    unsafe { ffi::sqlite3_vfs_register(ffi::sqlite3_vfs_find(name.as_ptr()), 1) };
    usage("below a default shim", register("six", None, true), "stands on one");
    let mute_shim = PlatformVfs::new(platform("version 1"), "one");
    register("seven", Some(mute_shim.name), false).unwrap();
    let uri = format!("file:{}?vfs=seven", dir.path().join("seven.db").display());
    let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
    assert!(Connection::open_with_flags(uri, flags).is_err(), "enciphered twice");
    let words = sqlite_tde::last_error().unwrap();
    assert!(words.contains("enciphered twice"), "{words}");
    // A shim above one of ours is no base, and keeps working.
    let uri = format!("file:{}?vfs={}", path.display(), open_shim.name);
    let db = Connection::open_with_flags(uri, flags).unwrap();
    assert_eq!(one(&db, "SELECT a FROM t"), Value::Text("a marker".into()));
    assert!(one(&db, "SELECT tde_status()") != Value::Null);
}

/// The providers of a registration that is replaced are done with, and use the library for the last
/// time.
#[test]
fn a_provider_that_is_replaced_may_register_and_open() {
    struct Last(std::path::PathBuf, std::sync::mpsc::Sender<bool>);
    impl KeyProvider for Last {
        fn wrap(&self, _: &WrapRequest<'_>) -> Result<Answer<Wrapped>, ProviderError> {
            Err(ProviderError::NotHere("no key".into()))
        }
        fn unwrap(&self, _: &UnwrapRequest<'_>) -> Result<Answer<Secret>, ProviderError> {
            Err(ProviderError::NotHere("no key".into()))
        }
        fn newest_version(&self, _: &VersionRequest<'_>) -> Result<Answer<String>, ProviderError> {
            Err(ProviderError::NotHere("no key".into()))
        }
    }
    impl Drop for Last {
        fn drop(&mut self) {
            let keys = Keystore::at(self.0.join("keys"));
            let registered = sqlite_tde::register(options("later").keystore(keys));
            let own = OpenOptions::new().vfs("replaced");
            let opened = sqlite_tde::open_with(self.0.join("a.db"), &own);
            self.1.send(registered.is_ok() && opened.is_ok()).unwrap();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let again = || options("replaced").keystore(Keystore::at(dir.path().join("keys")));
    let (send, told) = std::sync::mpsc::channel();
    let last = Arc::new(Last(dir.path().to_owned(), send));
    sqlite_tde::register(again().provider("last", last)).unwrap();
    sqlite_tde::register(again().replace(true)).unwrap();
    assert!(told.recv().unwrap());
}
