//! Code of the application that runs within a call: progress functions, SQL functions in statements
//! that write, and providers that panic.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rusqlite::types::Value;
use sqlite_tde::provider::{
    Answer, KeyProvider, Keystore, ProviderError, UnwrapRequest, VersionRequest, WrapRequest,
    Wrapped,
};
use sqlite_tde::secret::Secret;
use sqlite_tde::{Error, TdeConnection};
use sqlite_tde_testkit::{Home, one};

/// What verifies slice by slice holds nothing between two slices but a read transaction.
#[test]
fn the_progress_of_a_verification_may_use_the_connection() {
    for mode in ["DELETE", "WAL"] {
        let home = Home::new();
        let db = home.open(&home.path("main.db"));
        db.execute("ATTACH ?1 AS aux", [home.uri(&home.path("aux.db"))]).unwrap();
        for schema in ["main", "aux"] {
            db.execute_batch(&format!(
                "PRAGMA {schema}.journal_mode={mode}; CREATE TABLE {schema}.t(a, b);
                 WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < 600)
                 INSERT INTO {schema}.t SELECT i, randomblob(3000) FROM i;
                 PRAGMA {schema}.wal_checkpoint(TRUNCATE)"
            ))
            .unwrap();
        }
        let mut calls = 0;
        let found = db.tde_verify("aux", |done, all| {
            assert!(done <= all, "{done} of {all}");
            calls += 1;
            let detached = db.execute_batch("DETACH aux").unwrap_err().to_string();
            assert!(detached.contains("locked"), "{mode}: {detached}");
            db.execute("UPDATE aux.t SET b = randomblob(3000) WHERE a % 50 = ?1", [calls]).unwrap();
            assert_eq!(one(&db, "SELECT count(*) FROM aux.t"), Value::Integer(600));
            db.tde_status("aux").unwrap();
        });
        assert!(found.unwrap().is_clean() && calls > 5, "{mode}: {calls}");
        // A panic in it leaves no lock behind.
        let other = home.open(&home.path("main.db"));
        let stopped =
            catch_unwind(AssertUnwindSafe(|| db.tde_verify("main", |_, _| panic!("enough"))));
        assert!(stopped.is_err());
        other.execute_batch("BEGIN EXCLUSIVE; UPDATE t SET b = 1 WHERE a = 1; COMMIT").unwrap();
        if mode == "WAL" {
            assert_eq!(one(&other, "PRAGMA wal_checkpoint(TRUNCATE)"), Value::Integer(0));
        }
        // Where damage keeps the transaction from beginning, the database may be detached. In WAL
        // mode page 1 is in SQLite's cache.
        if mode == "WAL" {
            continue;
        }
        let path = home.path("aux.db");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[16384 + 200] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let mut again = false;
        let gone = db.tde_verify("aux", |_, _| {
            if !again {
                again = true;
                db.execute_batch("DETACH aux").unwrap();
                db.execute("ATTACH ?1 AS aux", [home.uri(&home.path("main.db"))]).unwrap();
            }
        });
        assert!(
            matches!(&gone, Err(Error::Usage(words)) if words.contains("detached")),
            "{gone:?}"
        );
    }
}

/// A key provider may take its time: nobody waits for the lock of a statement that asks it.
#[test]
fn protectors_are_not_changed_while_a_statement_writes() {
    for mode in ["DELETE", "WAL"] {
        let home = Home::new();
        Keystore::at(home.path("keys")).create("second").unwrap();
        let db = home.open(&home.path("a.db"));
        one(&db, &format!("PRAGMA journal_mode={mode}"));
        db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1)").unwrap();
        for sql in [
            "INSERT INTO t SELECT tde_add_protector('second')",
            "UPDATE t SET a = tde_add_protector('second')",
            "CREATE TABLE u AS SELECT tde_add_protector('second')",
            "BEGIN; SELECT tde_add_protector('second'); COMMIT",
        ] {
            let refused = db.execute_batch(sql);
            let _ = db.execute_batch("ROLLBACK");
            let words = refused.expect_err(sql).to_string();
            assert!(words.contains("within a transaction"), "{mode}, {sql}: {words}");
        }
        assert_eq!(db.tde_protectors("main").unwrap().len(), 1, "{mode}");
        one(&db, "SELECT tde_add_protector('second')");
        assert_eq!(db.tde_protectors("main").unwrap().len(), 2, "{mode}");
    }
}

/// A provider that panics is a provider that failed, whoever asks it.
#[test]
fn a_provider_that_panics_is_an_error_that_names_it() {
    struct Panics;
    impl KeyProvider for Panics {
        fn wrap(&self, _: &WrapRequest<'_>) -> Result<Answer<Wrapped>, ProviderError> {
            panic!("out of order")
        }
        fn unwrap(&self, _: &UnwrapRequest<'_>) -> Result<Answer<Secret>, ProviderError> {
            panic!("out of order")
        }
        fn newest_version(&self, _: &VersionRequest<'_>) -> Result<Answer<String>, ProviderError> {
            panic!("out of order")
        }
    }
    let home = Home::with(|options| options.provider("broken", Arc::new(Panics)));
    let db = home.open(&home.path("a.db"));
    db.execute_batch("CREATE TABLE t(a)").unwrap();
    for sql in ["SELECT tde_add_protector('broken:key')", "PRAGMA tde_add_protector='broken:key'"] {
        let words = db.query_row(sql, [], |_| Ok(())).unwrap_err().to_string();
        assert!(words.contains("broken"), "{sql}: {words}");
    }
    let new = sqlite_tde::NewProtector::new("broken:key");
    let words = db.tde_add_protector("main", new).unwrap_err().to_string();
    assert!(words.contains("broken"), "{words}");
}
