//! Creates and uses an encrypted database, searches its bytes for plaintext, tampers with a copy.
//!
//! Everything happens in a temporary directory, the keystore included.

use std::error::Error;
use std::path::Path;

use sqlite_tde::provider::Keystore;
use sqlite_tde::{Options, TdeConnection, open, register};

const SECRET: &str = "the treasure is under the old oak";
/// Offset of page 2, behind the envelope of 16 KiB and page 1 of 4 KiB.
const PAGE_2: usize = 16 * 1024 + 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let (path, keys) = (dir.path().join("notes.db"), dir.path().join("keys"));
    register(Options::new().keystore(Keystore::at(&keys)))?;

    println!("1. An ordinary rusqlite connection, through the VFS `tde`");
    let db = open(&path)?;
    db.execute_batch("CREATE TABLE note(id INTEGER PRIMARY KEY, text TEXT)")?;
    for id in 1..=1000 {
        db.execute("INSERT INTO note VALUES(?1, ?2)", (id, format!("{id}: {SECRET}")))?;
    }
    let found: i64 = db.query_row("SELECT count(*) FROM note", [], |row| row.get(0))?;
    println!("   wrote and read {found} rows");

    println!("2. What is on disk");
    for file in [&path, &dir.path().join("keys/keystore.json")] {
        println!("   {}: {} bytes", name(file), std::fs::metadata(file)?.len());
    }
    let bytes = std::fs::read(&path)?;
    for text in [SECRET, "SQLite format 3", "CREATE TABLE"] {
        if bytes.windows(text.len()).any(|window| window == text.as_bytes()) {
            return Err(format!("{text:?} is in {}", name(&path)).into());
        }
        println!("   {text:?} is not in {}", name(&path));
    }

    println!("3. One bit flipped in page 2 of a copy");
    let copy = dir.path().join("tampered.db");
    let mut tampered = bytes;
    tampered[PAGE_2 + 100] ^= 1;
    std::fs::write(&copy, tampered)?;
    let damaged = open(&copy)?;
    match damaged.query_row("SELECT max(text) FROM note", [], |row| row.get::<_, String>(0)) {
        Ok(text) => return Err(format!("a tampered page was read: {text}").into()),
        Err(error) => println!("   reading it is refused: {}", sqlite_tde::Error::from(error)),
    }
    println!(
        "   verify names the bad pages: {:?}",
        damaged.tde_verify("main", |_, _| ())?.bad_pages
    );

    println!("4. What is known about its encryption, none of which is secret");
    let status = db.tde_status("main")?;
    println!("   cipher {}, {} pages of {} bytes", status.cipher, status.pages, status.page_size);
    for protector in &status.protectors {
        println!(
            "   key version {} wrapped by {} key {:?}, version {}",
            status.key_version, protector.provider, protector.key, protector.key_version
        );
    }
    Ok(())
}

fn name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}
