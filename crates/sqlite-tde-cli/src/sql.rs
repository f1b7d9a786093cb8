//! `sql`: statements, and their rows as a table, CSV or JSON.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use comfy_table::{Table, presets};
use rusqlite::fallible_iterator::FallibleIterator;
use rusqlite::types::ValueRef;
use rusqlite::{Batch, Connection, OpenFlags, Row, Rows, Statement};
use sqlite_tde::OpenOptions;

use crate::copy::{file_len, read_only};
use crate::failure::{Failure, OTHER};

/// Arguments of `sql`.
#[derive(Args)]
pub struct Arguments {
    /// The database
    db: PathBuf,
    /// SQL statements [default: standard input]
    statements: Vec<String>,
    /// Output format of rows
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Refuse to write
    #[arg(long)]
    read_only: bool,
    /// Create the database if it does not exist
    #[arg(long, conflicts_with = "read_only")]
    create: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// For people: a header and aligned columns
    Table,
    /// A header, then a line per row; NULL is empty, a blob is x'hex'
    Csv,
    /// One array of objects per statement that has columns; a blob is "x'hex'"
    Json,
}

/// Runs the statements in order, up to the first that fails.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let connection = open(arguments)?;
    let mut printer =
        Printer { out: io::stdout().lock(), format: arguments.format, printed: false };
    if arguments.statements.is_empty() {
        let mut text = String::new();
        io::stdin()
            .read_to_string(&mut text)
            .map_err(|error| Failure::new(OTHER, format!("standard input: {error}")))?;
        run_text(&connection, &text, &mut printer)?;
    }
    for text in &arguments.statements {
        run_text(&connection, text, &mut printer)?;
    }
    printer.out.flush()?;
    if !connection.is_autocommit() {
        return Err(Failure::new(OTHER, "a transaction was left open, and is rolled back"));
    }
    Ok(())
}

fn open(arguments: &Arguments) -> Result<Connection, Failure> {
    let mut flags = match arguments.read_only {
        true => read_only(),
        false => OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    };
    if arguments.create {
        flags |= OpenFlags::SQLITE_OPEN_CREATE;
    } else {
        let missing = !arguments.db.exists();
        file_len(&arguments.db).map_err(|failure| match missing {
            true => failure.hint("--create makes a new database"),
            false => failure,
        })?;
    }
    sqlite_tde::open_with(&arguments.db, &OpenOptions::new().flags(flags))
        .map_err(|error| Failure::from(error).about(&arguments.db))
}

fn run_text(
    connection: &Connection,
    text: &str,
    printer: &mut Printer<impl Write>,
) -> Result<(), Failure> {
    let mut batch = Batch::new(connection, text);
    while let Some(mut statement) = batch.next()? {
        match statement.column_count() {
            0 => statement.execute([]).map(drop)?,
            _ => printer.print(&mut statement)?,
        }
    }
    Ok(())
}

struct Printer<W> {
    out: W,
    format: Format,
    printed: bool,
}

impl<W: Write> Printer<W> {
    fn print(&mut self, statement: &mut Statement<'_>) -> Result<(), Failure> {
        let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
        let rows = statement.query([])?;
        if self.printed && !matches!(self.format, Format::Json) {
            writeln!(self.out)?;
        }
        self.printed = true;
        match self.format {
            Format::Table => self.table(columns, rows),
            Format::Csv => self.csv(&columns, rows),
            Format::Json => self.json(&columns, rows),
        }
    }

    fn table(&mut self, columns: Vec<String>, mut rows: Rows<'_>) -> Result<(), Failure> {
        let width = columns.len();
        let mut table = Table::new();
        table.load_style(presets::ASCII_FULL_CONDENSED).set_header(columns);
        while let Some(row) = rows.next()? {
            table.add_row(cells(row, width, "NULL")?);
        }
        Ok(writeln!(self.out, "{table}")?)
    }

    fn csv(&mut self, columns: &[String], mut rows: Rows<'_>) -> Result<(), Failure> {
        let mut writer = csv::Writer::from_writer(&mut self.out);
        writer.write_record(columns)?;
        while let Some(row) = rows.next()? {
            writer.write_record(cells(row, columns.len(), "")?)?;
        }
        Ok(writer.flush()?)
    }

    /// Written by hand, row by row: columns keep their order, and two may have one name.
    fn json(&mut self, columns: &[String], mut rows: Rows<'_>) -> Result<(), Failure> {
        let keys: Vec<String> =
            columns.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
        let mut before = "[";
        while let Some(row) = rows.next()? {
            write!(self.out, "{before}{{")?;
            for (index, key) in keys.iter().enumerate() {
                let comma = if index > 0 { "," } else { "" };
                write!(self.out, "{comma}{key}:{}", json_value(row.get_ref(index)?)?)?;
            }
            write!(self.out, "}}")?;
            before = ",\n";
        }
        let open = if before == "[" { "[" } else { "" };
        Ok(writeln!(self.out, "{open}]")?)
    }
}

fn cells(row: &Row<'_>, width: usize, null: &str) -> Result<Vec<String>, Failure> {
    let cell = |index| Ok(plain_value(row.get_ref(index)?, null));
    (0..width).map(cell).collect()
}

fn plain_value(value: ValueRef<'_>, null: &str) -> String {
    match value {
        ValueRef::Null => null.into(),
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) => real(number),
        ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
        ValueRef::Blob(bytes) => blob(bytes),
    }
}

fn json_value(value: ValueRef<'_>) -> Result<String, Failure> {
    Ok(match value {
        ValueRef::Null => "null".into(),
        ValueRef::Integer(_) | ValueRef::Real(_) => plain_value(value, "null"),
        ValueRef::Text(_) | ValueRef::Blob(_) => serde_json::to_string(&plain_value(value, ""))?,
    })
}

/// Infinity as SQLite's shell writes it, which JSON and SQL can read.
fn real(number: f64) -> String {
    match number.is_infinite() {
        true if number < 0.0 => "-9e999".into(),
        true => "9e999".into(),
        false => format!("{number:?}"),
    }
}

fn blob(bytes: &[u8]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("x'{hex}'")
}
