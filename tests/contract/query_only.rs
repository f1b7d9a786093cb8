//! A connection that asked to read only, by `PRAGMA query_only`, changes no protectors by any road.

use rusqlite::Connection;
use rusqlite::types::Value;
use sqlite_tde::{Error, NewProtector, RotateProtector, TdeConnection};
use sqlite_tde_testkit::{Home, one};

type Change = fn(&Connection) -> Result<(), Error>;

fn sql(db: &Connection, sql: &str) -> Result<(), Error> {
    Ok(db.query_row(sql, [], |_| Ok(()))?)
}

const CHANGES: [(&str, Change); 14] = [
    ("PRAGMA add", |db| sql(db, "PRAGMA tde_add_protector='b'")),
    ("PRAGMA ADD", |db| sql(db, "PRAGMA main.TDE_ADD_PROTECTOR('b')")),
    ("PRAGMA remove", |db| sql(db, "PRAGMA tde_remove_protector='c'")),
    ("PRAGMA rotate", |db| sql(db, "PRAGMA tde_rotate_protector")),
    ("PRAGMA rotate to", |db| sql(db, "PRAGMA tde_rotate_protector='b'")),
    ("PRAGMA rules", |db| sql(db, "PRAGMA tde_auto_rotate=OFF")),
    ("add", |db| sql(db, "SELECT tde_add_protector('b')")),
    ("add to another", |db| sql(db, "SELECT tde_add_protector('b', 'other')")),
    ("remove", |db| sql(db, "SELECT tde_remove_protector('c')")),
    ("rotate", |db| sql(db, "SELECT tde_rotate_protector()")),
    ("rules", |db| sql(db, "SELECT tde_auto_rotate('off', 'other')")),
    ("Rust add", |db| db.tde_add_protector("other", NewProtector::new("b")).map(drop)),
    ("Rust rotate", |db| db.tde_rotate_protector("main", RotateProtector::all()).map(drop)),
    ("Rust rules", |db| db.tde_set_auto_rotate("main", false).map(drop)),
];

const QUESTIONS: [&str; 8] = [
    "PRAGMA tde_status",
    "PRAGMA tde_protectors",
    "PRAGMA tde_auto_rotate",
    "PRAGMA tde_check_protectors",
    "PRAGMA tde_lock",
    "SELECT tde_status('other')",
    "SELECT count(*) FROM tde_database_encryption_keys",
    "SELECT count(*) FROM t",
];

#[test]
fn protectors_are_not_changed_where_query_only_is_on() {
    let home = Home::new();
    let keystore = sqlite_tde::provider::Keystore::at(home.path("keys"));
    for key in ["b", "c"] {
        keystore.create(key).unwrap();
    }
    for mode in ["DELETE", "WAL"] {
        let paths = [home.path(&format!("{mode}.db")), home.path(&format!("{mode}2.db"))];
        let db = home.open(&paths[0]);
        db.execute("ATTACH ?1 AS other", [home.uri(&paths[1])]).unwrap();
        one(&db, &format!("PRAGMA journal_mode={mode}"));
        db.execute_batch("CREATE TABLE t(a); CREATE TABLE other.t(a)").unwrap();
        db.tde_add_protector("main", NewProtector::new("c")).unwrap();
        let envelope = |n: usize| std::fs::read(&paths[n]).unwrap()[..16384].to_vec();
        let before = [envelope(0), envelope(1)];
        db.execute_batch("PRAGMA query_only=ON").unwrap();
        for (what, change) in CHANGES {
            let refused = change(&db).expect_err(what).to_string();
            assert!(refused.contains("PRAGMA query_only is on"), "{mode}, {what}: {refused}");
            assert!(refused.contains("turn it off"), "{mode}, {what}: {refused}");
            assert!([envelope(0), envelope(1)] == before, "{mode}, {what}: written");
        }
        for question in QUESTIONS {
            sql(&db, question).unwrap_or_else(|error| panic!("{mode}, {question}: {error}"));
        }
        db.execute_batch("PRAGMA query_only=OFF").unwrap();
        for (what, change) in CHANGES.into_iter().filter(|(what, _)| what.contains("add")) {
            change(&db).unwrap_or_else(|error| panic!("{mode}, {what}: {error}"));
        }
        assert_eq!(db.tde_protectors("main").unwrap().len(), 3);
        assert_eq!(one(&db, "SELECT count(*) FROM t"), Value::Integer(0));
    }
}

/// Where the question is refused, nothing says that changes are allowed.
#[test]
fn an_authorizer_that_refuses_the_question_refuses_the_change() {
    use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
    let home = Home::new();
    let mut db = home.open(&home.path("a.db"));
    db.execute_batch("CREATE TABLE t(a)").unwrap();
    db.authorizer(Some(|context: AuthContext<'_>| match context.action {
        AuthAction::Pragma { pragma_name: "query_only", .. } => Authorization::Deny,
        _ => Authorization::Allow,
    }))
    .unwrap();
    for change in ["PRAGMA tde_auto_rotate=OFF", "SELECT tde_auto_rotate('off')"] {
        let words = sql(&db, change).unwrap_err().to_string();
        assert!(words.contains("could not be asked"), "{change}: {words}");
    }
    for question in QUESTIONS.iter().filter(|question| !question.contains("other")) {
        sql(&db, question).unwrap_or_else(|error| panic!("{question}: {error}"));
    }
    db.authorizer(None::<fn(AuthContext<'_>) -> Authorization>).unwrap();
    db.progress_handler(1, Some(|| true)).unwrap();
    sql(&db, "SELECT tde_auto_rotate('off')").unwrap_err();
    db.progress_handler(1, None::<fn() -> bool>).unwrap();
    assert_eq!(one(&db, "PRAGMA tde_auto_rotate"), Value::Text("on".into()));
}
