//! Answers: `status` and `verify`.

use std::io::{self, Write};
use std::path::Path;
use std::time::SystemTime;

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode};
use serde::Serialize;
use sqlite_tde::{OpenOptions, Status, TdeConnection, Verification};

use crate::copy::{file_len, read_only, with_suffix};
use crate::failure::{DAMAGED, DONE, Failure, say};
use crate::progress::Pages;

/// Prints the encryption settings and keys of `db`.
pub fn status(db: &Path, json: bool) -> Result<(), Failure> {
    let connection = open(db)?;
    let status = connection.tde_status("main").map_err(|e| Failure::from(e).about(db))?;
    match json {
        true => print_json(&status),
        false => print_status(&status),
    }
}

fn print_status(status: &Status) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    for (label, value) in [
        ("format", status.format.to_string()),
        ("file id", status.file_id.clone()),
        ("cipher", status.cipher.to_string()),
        ("page size", status.page_size.to_string()),
        ("pages", status.pages.to_string()),
        ("key version", status.key_version.to_string()),
        ("generation", status.generation.to_string()),
        ("created", date(status.created)),
        ("rotated", status.rotated.map_or_else(|| "never".into(), date)),
        ("regenerated", status.regenerated.map_or_else(|| "never".into(), date)),
        ("auto-rotate", if status.auto_rotate { "on" } else { "off" }.to_string()),
        ("opened by", status.opened_through.clone()),
    ] {
        writeln!(out, "{label:<12} {value}")?;
    }
    for protector in &status.protectors {
        writeln!(
            out,
            "{:<12} {} ({}:{}, version {}, {})",
            "protector",
            protector.name,
            protector.provider,
            protector.key,
            protector.key_version,
            protector.mechanism
        )?;
    }
    for copy in &status.faulty_envelope_copies {
        let words = "is damaged or older than the other: see `sqlite-tde verify`";
        writeln!(out, "{:<12} {copy} {words}", "envelope")?;
    }
    Ok(())
}

#[derive(Serialize)]
struct Report {
    clean: bool,
    /// Whether the file has no pages, or fewer than its first one counts; the present ones may all
    /// be good.
    truncated: bool,
    #[serde(flatten)]
    found: Verification,
}

/// Prints the damage in `db`; returns the exit code.
pub fn verify(db: &Path, json: bool) -> Result<u8, Failure> {
    let connection = open(db)?;
    let bar = Pages::new();
    let found = connection
        .tde_verify("main", |done, all| bar.show(done, all))
        .map_err(|error| Failure::from(error).about(db))?;
    drop(bar);
    let truncated = found.pages == 0 || found.bad_pages.is_empty() && is_truncated(&connection);
    let report = Report { clean: found.is_clean() && !truncated, truncated, found };
    match json {
        true => print_json(&report)?,
        false => print_report(&report)?,
    }
    if report.clean {
        return Ok(DONE);
    }
    if !report.found.stale_envelope_copies.is_empty() {
        say("hint: open the database once for writing: that finishes the change\n");
    }
    if with_suffix(db, "-journal").exists() {
        say("hint: a journal is beside it: open the database once for writing to recover it\n");
    }
    Ok(DAMAGED)
}

fn print_report(report: &Report) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    for page in &report.found.bad_pages {
        writeln!(out, "page {page} failed authentication")?;
    }
    for frame in &report.found.bad_frames {
        writeln!(out, "write-ahead log frame {frame} failed authentication")?;
    }
    for copy in &report.found.bad_envelope_copies {
        writeln!(out, "envelope copy {copy} failed authentication")?;
    }
    for copy in &report.found.stale_envelope_copies {
        writeln!(out, "envelope copy {copy} is older: a change of protectors was interrupted")?;
    }
    if let Some(refused) = &report.found.refused {
        writeln!(out, "{refused}")?;
    }
    if report.truncated {
        writeln!(out, "truncated: the file has no pages, or fewer than its first page says")?;
    }
    let (pages, bad) = (report.found.pages, report.found.bad_page_count);
    Ok(writeln!(out, "{pages} pages, {bad} bad{}", if report.clean { ": ok" } else { "" })?)
}

/// SQLite compares the file with the number of pages in page 1 whenever it starts to read.
fn is_truncated(connection: &Connection) -> bool {
    let answer = connection.query_row("PRAGMA schema_version", [], |_| Ok(()));
    answer.is_err_and(|error| error.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt))
}

fn open(db: &Path) -> Result<Connection, Failure> {
    file_len(db)?;
    sqlite_tde::open_with(db, &OpenOptions::new().flags(read_only()))
        .map_err(|error| Failure::from(error).about(db))
}

/// Prints `value` as JSON.
pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    Ok(writeln!(io::stdout(), "{}", serde_json::to_string_pretty(value)?)?)
}

/// A time in UTC, in whole seconds.
pub fn date(time: SystemTime) -> String {
    Timestamp::try_from(time).map_or_else(|_| format!("{time:?}"), |time| format!("{time:.0}"))
}
