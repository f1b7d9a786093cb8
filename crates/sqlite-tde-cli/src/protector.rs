//! `protector`: the protectors of a database.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::SystemTime;

use clap::{Args, Subcommand, ValueEnum};
use comfy_table::{Table, presets};
use rusqlite::{Connection, OpenFlags};
use sqlite_tde::{
    Change, NewProtector, OpenOptions, ProtectorCheck, ProtectorStatus, RotateProtector,
    TdeConnection,
};

use crate::copy::{file_len, read_only};
use crate::failure::{DONE, Failure, KEY, say};
use crate::key::time;
use crate::report::{date, print_json};

#[derive(Subcommand)]
pub enum Protector {
    /// List the protectors of a database
    List(Database),
    /// Add a protector: another key that opens the database by itself
    Add {
        #[command(flatten)]
        database: Database,
        /// `KEY` of the keystore, or `PROVIDER:KEY`
        name: String,
        /// Allow only reads through it
        #[arg(long)]
        read_only: bool,
        /// Time of its end: 2027-01-31, or 2027-01-31T12:00:00Z
        #[arg(long, value_name = "TIME", value_parser = time)]
        not_after: Option<SystemTime>,
    },
    /// Wrap the database encryption key under the newest version of the keys, or under another key
    Rotate {
        #[command(flatten)]
        database: Database,
        /// The protector to re-wrap, or another key for it: `KEY` or `PROVIDER:KEY`
        #[arg(long, value_name = "NAME")]
        to: Option<String>,
        /// Protector to replace [default: the first]
        #[arg(long, value_name = "NAME", requires = "to")]
        replace: Option<String>,
    },
    /// Remove a protector and its wrapped key from the file
    Remove {
        #[command(flatten)]
        database: Database,
        name: String,
    },
    /// Whether protectors are re-wrapped by themselves when their key has a newer version
    AutoRotate {
        #[command(flatten)]
        database: Database,
        switch: Switch,
    },
    /// Ask each protector's provider for the key, and compare it with the one in use
    Check(Database),
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

#[derive(Args)]
pub struct Database {
    /// The database
    db: PathBuf,
    /// The only protector to open it through
    #[arg(long, value_name = "NAME")]
    through: Option<String>,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// Runs the verb; returns the exit code.
pub fn run(verb: Protector) -> Result<u8, Failure> {
    let main = "main";
    match verb {
        Protector::List(database) => {
            let connection = database.open(read_only())?;
            let found = connection.tde_protectors(main);
            database.list(&database.about(found)?)?;
        }
        Protector::Add { database, name, read_only, not_after } => {
            let new = NewProtector::new(name).read_only(read_only).not_after(not_after);
            database.change(|connection| connection.tde_add_protector(main, new))?;
        }
        Protector::Rotate { database, to, replace } => {
            let mut request = to.map_or_else(RotateProtector::all, RotateProtector::to);
            if let Some(replace) = replace {
                request = request.in_place_of(replace);
            }
            database.change(|connection| connection.tde_rotate_protector(main, request))?;
        }
        Protector::Remove { database, name } => {
            database.change(|connection| connection.tde_remove_protector(main, &name))?;
        }
        Protector::AutoRotate { database, switch } => {
            let on = matches!(switch, Switch::On);
            database.change(|connection| connection.tde_set_auto_rotate(main, on))?;
        }
        Protector::Check(database) => {
            let connection = database.open(read_only())?;
            let found = connection.tde_check_protectors(main);
            return database.checks(&database.about(found)?);
        }
    }
    Ok(DONE)
}

impl Database {
    fn open(&self, flags: OpenFlags) -> Result<Connection, Failure> {
        file_len(&self.db)?;
        let mut options = OpenOptions::new().flags(flags);
        if let Some(name) = &self.through {
            options = options.protector(name);
        }
        self.about(sqlite_tde::open_with(&self.db, &options))
    }

    fn about<T>(&self, answer: sqlite_tde::Result<T>) -> Result<T, Failure> {
        answer.map_err(|error| Failure::from(error).about(&self.db))
    }

    fn change(
        &self,
        change: impl FnOnce(&Connection) -> sqlite_tde::Result<Change>,
    ) -> Result<(), Failure> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = self.open(flags)?;
        let change = self.about(change(&connection))?;
        for skipped in &change.skipped {
            say(format!("warning: {} is unchanged: {}\n", skipped.name, skipped.reason));
        }
        for warning in &change.warnings {
            say(format!("warning: {warning}\n"));
        }
        if self.json {
            return print_json(&change);
        }
        if !change.changed && change.warnings.is_empty() {
            say("nothing to change\n");
        }
        self.list(&change.protectors)
    }

    fn list(&self, protectors: &[ProtectorStatus]) -> Result<(), Failure> {
        if self.json {
            return print_json(&protectors);
        }
        let mut table = Table::new();
        table.load_style(presets::ASCII_FULL_CONDENSED);
        table.set_header(["protector", "provider", "key", "version", "until", "rights"]);
        for protector in protectors {
            table.add_row([
                protector.name.as_str(),
                &protector.provider,
                &protector.key,
                &protector.key_version,
                &protector.not_after.map_or_else(String::new, date),
                if protector.read_only { "read" } else { "all" },
            ]);
        }
        Ok(writeln!(io::stdout(), "{table}")?)
    }

    fn checks(&self, checks: &[ProtectorCheck]) -> Result<u8, Failure> {
        if self.json {
            print_json(&checks)?;
        } else {
            let mut table = Table::new();
            table.load_style(presets::ASCII_FULL_CONDENSED);
            table.set_header([
                "protector",
                "configured",
                "reachable",
                "present",
                "unwraps",
                "matches",
                "newest",
                "error",
            ]);
            for check in checks {
                let words = |yes: bool| if yes { "yes" } else { "no" };
                table.add_row([
                    check.name.as_str(),
                    words(check.configured),
                    words(check.reachable),
                    words(check.present),
                    words(check.unwraps),
                    words(check.matches),
                    check.newest_version.as_deref().unwrap_or_default(),
                    check.error.as_deref().unwrap_or_default(),
                ]);
            }
            writeln!(io::stdout(), "{table}")?;
        }
        let good = |check: &ProtectorCheck| check.matches && check.error.is_none();
        Ok(if checks.iter().all(good) { DONE } else { KEY })
    }
}
