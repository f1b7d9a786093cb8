//! Writes a corpus of good files to `seeds/TARGET/`: what the targets start from.

use std::fs;

use sqlite_tde::internals::{self, File, Kind};

fn main() {
    let blocks = [1_u64, 7, u64::MAX].map(|number| {
        let block = internals::seal_block(number, &[number as u8; 464]).unwrap();
        [&number.to_be_bytes()[..], &block].concat()
    });
    for (number, block) in blocks.iter().enumerate() {
        write("page", number, block);
    }

    let mut database = File::new(Kind::Database, Vec::new());
    let mut first = vec![0; 1024];
    first[..24].copy_from_slice(b"SQLite format 3\0\x04\x00\x01\x01\x30\x40\x20\x20");
    database.write(&first, 0).unwrap();
    database.write(&[3; 1024], 1024).unwrap();
    let database = database.raw(|bytes| bytes.clone());
    write("envelope", 0, &database[..16384]);
    write("database", 0, &input(&database, &[3, 0, 3, 1, 6]));
    write("database", 1, &input(&[], &[0, 5, 1, 1, 1, 7, 0, 0, 1, 4, 9, 0, 0, 3, 1, 7, 3, 4, 6]));

    let mut log = File::new(Kind::Wal, Vec::new());
    let mut header = [5; 32];
    header[8..12].copy_from_slice(&1024_u32.to_be_bytes());
    log.write(&header, 0).unwrap();
    for (number, commit) in [(0_u64, 0), (1, 3), (2, 0)] {
        let mut frame = vec![number as u8; 24 + 1024];
        frame[..8].copy_from_slice(&[0, 0, 0, number as u8 + 1, 0, 0, 0, commit]);
        frame[8..16].fill(5);
        log.write(&frame, 32 + number * 1048).unwrap();
    }
    let log = log.raw(|bytes| bytes.clone());
    write("wal", 0, &input(&log, &[3, 0, 3, 1, 11, 5, 1, 3, 0, 3, 2, 6]));
    let steps = [
        0, 5, 1, 1, 0, 7, 1, 0, 24, 1, 1, 8, 2, 3, 0, 2, 0, 9, 3, 0, 3, 1, 11, 5, 1, 7, 3, 0, 3, 1,
        0, 6, 1, 1, 0, 4, 3, 1, 24, 11, 6, 3, 3, 0, 3, 1, 8, 4, 9, 1, 3, 0, 6, 5, 8, 72, 6,
    ];
    write("wal", 1, &input(&[], &steps));

    let mut journal = File::new(Kind::Journal, Vec::new());
    journal.write(&[6; 512], 0).unwrap();
    journal.write(&[8; 1032], 512).unwrap();
    let journal = journal.raw(|bytes| bytes.clone());
    write("journal", 0, &input(&journal, &[3, 0, 3, 1, 12, 0, 8, 0, 4, 2, 3, 0, 6]));
    let steps = [0, 5, 1, 12, 2, 0, 4, 8, 7, 12, 6, 8, 0, 4, 7, 3, 1, 7, 3, 1, 8, 3, 0, 1, 3, 1, 6];
    write("journal", 1, &input(&[], &steps));
}

/// A file and what happens to it, as `run` takes it.
fn input(file: &[u8], steps: &[u8]) -> Vec<u8> {
    [&(file.len() as u16).to_be_bytes()[..], file, steps].concat()
}

fn write(target: &str, number: usize, bytes: &[u8]) {
    let dir = format!("{}/seeds/{target}", env!("CARGO_MANIFEST_DIR"));
    fs::create_dir_all(&dir).unwrap();
    fs::write(format!("{dir}/{number}"), bytes).unwrap();
}
