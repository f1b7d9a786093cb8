//! `audit`: shows and verifies the audit log.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use sqlite_tde::audit::{self, AuditOptions, Entry, EventKind, Filter};
use sqlite_tde::config::{self, Config};
use sqlite_tde::provider::SecretSource;

use crate::failure::{DAMAGED, DONE, Failure, say};
use crate::prompt;

#[derive(Subcommand)]
pub enum Audit {
    /// Print entries, oldest first, without checking them
    Show(Show),
    /// Check that no line was changed, removed, moved or added since it was recorded
    Verify(Verify),
}

#[derive(Args)]
pub struct Place {
    /// Directory of the log, instead of the configured one
    #[arg(long)]
    dir: Option<PathBuf>,
    /// File with the log's key, instead of the configured one
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

#[derive(Args)]
pub struct Show {
    #[command(flatten)]
    place: Place,
    /// One JSON object for each entry
    #[arg(long)]
    json: bool,
    /// Not before: a time such as 2026-11-24T10:00:00Z, or how long ago, such as 2h or 7days
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<SystemTime>,
    /// Not after
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<SystemTime>,
    /// The kind of event
    #[arg(long, value_parser = kinds())]
    kind: Option<EventKind>,
    /// File id, path or file name of a database
    #[arg(long)]
    db: Option<String>,
    /// Name of a protector
    #[arg(long, value_name = "NAME")]
    protector: Option<String>,
    /// No more than the newest N of these
    #[arg(long, value_name = "N")]
    last: Option<usize>,
}

#[derive(Args)]
pub struct Verify {
    #[command(flatten)]
    place: Place,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// Runs the verb; returns the exit code.
pub fn run(command: Audit) -> Result<u8, Failure> {
    match command {
        Audit::Show(show) => print_entries(show),
        Audit::Verify(Verify { place, json }) => verify(place, json),
    }
}

fn kinds() -> impl TypedValueParser<Value = EventKind> {
    PossibleValuesParser::new(EventKind::ALL.map(EventKind::name))
        .try_map(|name| name.parse::<EventKind>())
}

/// A time as text, or how long ago.
fn moment(text: &str) -> Result<SystemTime, String> {
    let ago = |duration: Duration| SystemTime::now().checked_sub(duration);
    let time = text.parse::<Timestamp>().and_then(SystemTime::try_from).ok();
    time.or_else(|| config::duration(text).and_then(ago))
        .ok_or_else(|| "expected a time such as 2026-11-24T10:00:00Z, or a span such as 2h".into())
}

/// The log of the arguments, else of the configuration.
fn options(place: Place) -> Result<AuditOptions, Failure> {
    let mut options = match place.dir {
        Some(dir) => AuditOptions::at(dir),
        None => {
            let mut config = Config::load_default()?;
            config.prompt = Some(Arc::new(prompt::ask));
            config.audit_options()?
        }
    };
    if let Some(key) = place.key {
        options.key = Some(SecretSource::File(key));
    }
    Ok(options)
}

fn print_entries(show: Show) -> Result<u8, Failure> {
    let Show { place, json, since, until, kind, db, protector, last } = show;
    let options = options(place)?;
    let filter = Filter { since, until, kind, db, protector };
    let (mut newest, mut bad) = (VecDeque::new(), false);
    let mut out = io::BufWriter::new(io::stdout().lock());
    for entry in audit::entries(&options)? {
        match entry {
            Ok(entry) if !filter.fits(&entry) => {}
            Ok(entry) if last.is_none() => print_entry(&mut out, &entry, json)?,
            Ok(entry) => newest.push_back(entry),
            Err(error) => {
                bad = true;
                say(format_args!("warning: {error}\n"));
            }
        }
        if last.is_some_and(|last| newest.len() > last) {
            newest.pop_front();
        }
    }
    newest.iter().try_for_each(|entry| print_entry(&mut out, entry, json))?;
    out.flush()?;
    if bad {
        say("hint: `sqlite-tde audit verify` finds the first change of the log\n");
    }
    Ok(if bad { DAMAGED } else { DONE })
}

fn print_entry(out: &mut impl Write, entry: &Entry, json: bool) -> Result<(), Failure> {
    if json {
        return Ok(writeln!(out, "{}", serde_json::to_string(entry)?)?);
    }
    // Text from a log must not steer the terminal that shows it.
    let plain = |text: &str| text.escape_debug().to_string();
    write!(out, "{:>6}  {}  {}", entry.seq, plain(&entry.time), plain(&entry.kind))?;
    write!(out, "  {}", plain(&entry.outcome))?;
    for (label, value) in [
        ("error", &entry.error),
        ("path", &entry.path),
        ("db", &entry.db),
        ("protector", &entry.protector),
        ("provider", &entry.provider),
        ("key", &entry.key),
        ("version", &entry.key_version),
        ("detail", &entry.detail),
        ("recovered", &entry.recovered),
        ("suspect", &entry.suspect),
    ] {
        if let Some(value) = value {
            write!(out, "  {label}={}", quoted(&plain(value)))?;
        }
    }
    if let Some(duration) = entry.duration {
        write!(out, "  took={}us", duration.as_micros())?;
    }
    let uid = entry.uid.map_or_else(String::new, |uid| format!("uid={uid} "));
    Ok(writeln!(out, "  {uid}pid={} program={}", entry.pid, plain(&entry.program))?)
}

fn quoted(text: &str) -> String {
    if text.is_empty() || text.contains(' ') { format!("'{text}'") } else { text.to_owned() }
}

fn verify(place: Place, json: bool) -> Result<u8, Failure> {
    let verdict = audit::verify(&options(place)?)?;
    let mut out = io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&verdict)?)?;
    } else {
        for note in &verdict.notes {
            writeln!(out, "note: {note}")?;
        }
        if let Some(problem) = &verdict.problem {
            writeln!(out, "{problem}")?;
        }
        let end =
            if verdict.problem.is_some() { ", then not as they were recorded" } else { ": ok" };
        writeln!(out, "{} files, {} entries{end}", verdict.files, verdict.lines)?;
    }
    Ok(if verdict.problem.is_some() { DAMAGED } else { DONE })
}
