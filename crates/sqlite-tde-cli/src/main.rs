//! The command `sqlite-tde`: encrypts, decrypts, queries and checks databases from a shell.
//!
//! `copy` makes databases, `sql` runs statements, `report` answers questions, `key` keeps keys,
//! `audit` reads the audit log, `config` shows the configuration, `failure` turns errors into words
//! and exit codes, `progress` and `prompt` use a terminal.

mod audit;
mod config;
mod copy;
mod failure;
mod interrupt;
mod key;
mod progress;
mod prompt;
mod protector;
mod report;
mod settings;
mod sql;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, CommandFactory, Parser, Subcommand};
use sqlite_tde::audit::EventKind;
use sqlite_tde::{Cipher, OpenOptions, Options};

use failure::{DONE, Failure};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  verify, or audit verify, found damage
  2  usage: the arguments make no sense
  3  a key or its provider: none, wrong, disabled, unreachable, damaged, readable by others
  4  the file is not what was expected: no database, not encrypted, plaintext, damaged, too new
  5  anything else: files, disks, SQL

Environment:
  SQLITE_TDE_HOME                      where the local keystore is, instead of the platform's
                                       data directory
  SQLITE_TDE_KEYSTORE_PASSPHRASE_FILE  a file with the passphrase of the local keystore
  SQLITE_TDE_KEYSTORE_PASSPHRASE_FD    or an open descriptor to read it from";

/// Transparent database encryption for SQLite
#[derive(Parser)]
#[command(name = "sqlite-tde", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Copy an unencrypted database into a new encrypted one
    Encrypt(Encrypt),
    /// Copy an encrypted database into a new unencrypted one
    Decrypt(Decrypt),
    /// Copy an encrypted database into a new one with keys of its own
    ///
    /// After `cp` both files have one key and one identity, and pages and logs of one are accepted
    /// in the other. This copy has an encryption key and a file id of its own, under the same
    /// protectors.
    Copy(Copy),
    /// Run SQL on an encrypted database
    Sql(sql::Arguments),
    /// Show encryption settings and keys
    Status(Question),
    /// Authenticate every page and both copies of the envelope
    Verify(Question),
    /// Protectors of a database: the keys that wrap its encryption key
    #[command(subcommand)]
    Protector(protector::Protector),
    /// Keys of the local keystore
    #[command(subcommand)]
    Key(key::Key),
    /// Read and verify the audit log
    #[command(subcommand)]
    Audit(audit::Audit),
    /// The configuration
    #[command(subcommand)]
    Config(config::Verb),
    /// Print a completion script
    Completions {
        /// The shell that will read it
        shell: clap_complete::Shell,
    },
    /// Print the manual, in roff
    Man,
}

#[derive(Args)]
struct Encrypt {
    #[command(flatten)]
    ends: copy::Ends,
    /// Cipher suite of the new database
    #[arg(long, value_name = "NAME", value_parser = ciphers())]
    cipher: Option<Cipher>,
    /// Key that wraps the database encryption key: `NAME` in the keystore, or `PROVIDER:KEY`
    #[arg(long, value_name = "NAME")]
    protector: Option<String>,
    /// Page size in bytes [default: as in SRC]
    #[arg(long, value_name = "N", value_parser = page_size)]
    page_size: Option<u32>,
}

#[derive(Args)]
struct Decrypt {
    #[command(flatten)]
    ends: copy::Ends,
    /// The only protector to try
    #[arg(long, value_name = "NAME")]
    protector: Option<String>,
}

#[derive(Args)]
struct Copy {
    #[command(flatten)]
    ends: copy::Ends,
    /// The only protector to open SRC through
    #[arg(long, value_name = "NAME")]
    through: Option<String>,
    /// A protector to leave out of the copy; may be given several times
    #[arg(long, value_name = "NAME")]
    without: Vec<String>,
    /// Page size in bytes [default: as in SRC]
    #[arg(long, value_name = "BYTES", value_parser = page_size)]
    page_size: Option<u32>,
}

#[derive(Args)]
struct Question {
    /// The database
    db: PathBuf,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

fn ciphers() -> impl TypedValueParser<Value = Cipher> {
    let names = Cipher::ALL.map(Cipher::name);
    PossibleValuesParser::new(names).try_map(|name| name.parse::<Cipher>())
}

fn page_size(text: &str) -> Result<u32, String> {
    let size = text.parse::<u32>().ok();
    size.filter(|size| size.is_power_of_two() && (1024..=65536).contains(size))
        .ok_or_else(|| "expected a power of two from 1024 to 65536".into())
}

fn main() -> ExitCode {
    stay_private();
    match run(Cli::parse().command) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            failure::say(&failure);
            ExitCode::from(failure.code)
        }
    }
}

/// Forbids core dumps of this process, and debuggers except the superuser's. If the system refuses,
/// the command runs all the same.
fn stay_private() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, setrlimit};
        _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    }
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    }
}

fn run(command: Command) -> Result<u8, Failure> {
    match command {
        Command::Encrypt(encrypt) => {
            register()?;
            let mut target = OpenOptions::new();
            if let Some(cipher) = encrypt.cipher {
                target = target.cipher(cipher);
            }
            let target = with_protector(target, encrypt.protector);
            copy::encrypt(&encrypt.ends, target, encrypt.page_size)?;
        }
        Command::Decrypt(decrypt) => {
            register()?;
            let options = with_protector(OpenOptions::new(), decrypt.protector);
            let (kind, path) = (EventKind::Export, decrypt.ends.src().to_owned());
            settings::audited(&settings::load()?, kind, "decrypt", None, Some(&path), || {
                copy::decrypt(&decrypt.ends, options)
            })?;
        }
        Command::Copy(Copy { ends, through, without, page_size }) => {
            register()?;
            let options = with_protector(OpenOptions::new(), through);
            copy::duplicate(&ends, options, &without, page_size)?;
        }
        Command::Sql(arguments) => {
            register()?;
            sql::run(&arguments)?;
        }
        Command::Status(Question { db, json }) => {
            register()?;
            report::status(&db, json)?;
        }
        Command::Verify(Question { db, json }) => {
            register()?;
            return report::verify(&db, json);
        }
        Command::Protector(verb) => {
            register()?;
            return protector::run(verb);
        }
        Command::Key(verb) => key::run(verb)?,
        Command::Audit(command) => return audit::run(command),
        Command::Config(verb) => return config::run(verb),
        Command::Completions { shell } => completions(shell)?,
        Command::Man => manual()?,
    }
    Ok(DONE)
}

fn register() -> Result<(), Failure> {
    let config = settings::load()?;
    let options = Options::new().config(&config)?.keystore(settings::keystore(&config)?);
    Ok(sqlite_tde::register(options)?)
}

fn with_protector(options: OpenOptions, name: Option<String>) -> OpenOptions {
    match name {
        Some(name) => options.protector(name),
        None => options,
    }
}

/// Built in memory first: clap_complete panics if a write fails.
fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "sqlite-tde", &mut script);
    Ok(io::stdout().lock().write_all(&script)?)
}

/// The page of the command, then those of its subcommands.
fn manual() -> Result<(), Failure> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    manual_of(&command, &mut io::stdout().lock())
}

fn manual_of(command: &clap::Command, out: &mut impl Write) -> Result<(), Failure> {
    clap_mangen::Man::new(command.clone()).render(out)?;
    command.get_subcommands().try_for_each(|sub| manual_of(sub, out))
}
