//! Tokens to test against: real modules, each test in a process of its own, since settings, logins
//! and refused PINs are the whole process's.
#![allow(dead_code)] // each test file uses its part

use std::path::PathBuf;
use std::process::{Command, Output};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11 as Library};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use sqlite_tde::provider::conformance::Direct;
use sqlite_tde::provider::{Context, Pkcs11, ProviderError, SecretSource, Token};
use sqlite_tde::secret::Secret;
use sqlite_tde_testkit::process::only;

/// `NAME=PATH`, with a colon between several; the name is `softhsm` or `kryoptic`.
const MODULES: &str = "SQLITE_TDE_PKCS11_MODULES";
/// OpenSC's library that stands before a module and writes down each call.
const SPY: &str = "SQLITE_TDE_PKCS11_SPY";
/// The place of the test that runs in this process.
const PLACE: &str = "SQLITE_TDE_TEST_PKCS11";

pub const PIN: &str = "right-1234";
pub const SO_PIN: &str = "officer-5678";
pub const LABEL: &str = "tde";
pub const CONTEXT: Context = Context { file_id: [7; 16], dek_version: 1 };

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    SoftHsm,
    Kryoptic,
}

/// A directory with a token, and the module that reads it.
pub struct Place {
    pub kind: Kind,
    pub module: PathBuf,
    pub dir: PathBuf,
}

/// Runs `body` with each module, on a new token labelled [`LABEL`], in a process of its own: the
/// test called `test` of this binary.
pub fn on_each(test: &str, body: impl Fn(&Place)) {
    if let Ok(task) = std::env::var(PLACE) {
        let place = Place::from_task(&task);
        body(&place);
        std::fs::write(place.path("done"), "").unwrap();
        return;
    }
    let modules = std::env::var(MODULES).unwrap_or_else(|_| {
        panic!("no token to test with: {MODULES} is not set; scripts/test-pkcs11.sh sets it")
    });
    let mut run = 0;
    for module in modules.split(':') {
        let (name, path) = module.split_once('=').expect(MODULES);
        let dir = tempfile::tempdir().unwrap();
        let place = Place::from_task(&format!("{name}|{path}|{}", dir.path().display()));
        place.init(LABEL);
        let mut command = place.command(std::env::current_exe().unwrap());
        command.args(only(test));
        let output = command.env(PLACE, format!("{name}|{path}|{}", dir.path().display()));
        let output = output.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let erred = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {}\n{said}{erred}", output.status);
        assert!(place.path("done").exists(), "{name}: no test is called {test}");
        for line in said.lines().filter_map(|line| line.strip_prefix("@ ")) {
            println!("{name}: {line}");
        }
        run += 1;
    }
    assert!(run > 0);
}

impl Place {
    fn from_task(task: &str) -> Self {
        let parts: Vec<&str> = task.split('|').collect();
        let kind = match parts[0] {
            "softhsm" => Kind::SoftHsm,
            "kryoptic" => Kind::Kryoptic,
            other => panic!("{other}: no such module in the tests"),
        };
        let place = Self { kind, module: parts[1].into(), dir: parts[2].into() };
        if !place.path("pin").exists() {
            place.write_settings();
            place.write_pin("pin", PIN);
        }
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A file with a PIN that only its owner reads.
    pub fn write_pin(&self, name: &str, pin: &str) {
        std::fs::write(self.path(name), pin).unwrap();
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(self.path(name), mode).unwrap();
    }

    fn write_settings(&self) {
        let dir = self.dir.display();
        std::fs::create_dir(self.path("tokens")).unwrap();
        std::fs::write(
            self.path("softhsm.conf"),
            format!("directories.tokendir = {dir}/tokens\nobjectstore.backend = file\n"),
        )
        .unwrap();
        let slot = |number: u32| {
            format!(
                "[[slots]]\nslot = {number}\ndescription = \"{number}\"\ndbtype = \"sqlite\"\n\
                 dbargs = \"{dir}/tokens/{number}.sql\"\n"
            )
        };
        std::fs::write(self.path("kryoptic.conf"), slot(42) + &slot(43)).unwrap();
    }

    /// A command that finds the tokens.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env("SOFTHSM2_CONF", self.path("softhsm.conf"));
        command.env("KRYOPTIC_CONF", self.path("kryoptic.conf"));
        command.env("PKCS11SPY", &self.module).env("PKCS11SPY_OUTPUT", self.path("spy.log"));
        command
    }

    /// Initialises a token, which only processes started after it are sure to see.
    pub fn init(&self, label: &str) {
        self.init_without_pin(label);
        self.tool(&[
            "--token-label",
            label,
            "--init-pin",
            "--login",
            "--login-type",
            "so",
            "--so-pin",
            SO_PIN,
            "--new-pin",
            PIN,
        ]);
    }

    pub fn init_without_pin(&self, label: &str) {
        let fresh = self.fresh_slot();
        let arguments = ["--slot", &fresh, "--init-token", "--label", label, "--so-pin", SO_PIN];
        self.tool(&arguments);
    }

    fn fresh_slot(&self) -> String {
        if self.kind == Kind::Kryoptic {
            return if self.path("tokens/42.sql").exists() { "43" } else { "42" }.to_owned();
        }
        // The last one is always free.
        let list = self.tool(&["--list-slots"]);
        let free = list.lines().rfind(|line| line.starts_with("Slot ")).unwrap();
        let number = free.split("(0x").nth(1).unwrap().split(')').next().unwrap();
        u64::from_str_radix(number, 16).unwrap().to_string()
    }

    /// Runs pkcs11-tool. It must succeed.
    pub fn tool(&self, arguments: &[&str]) -> String {
        let mut command = self.command("pkcs11-tool");
        succeed(command.arg("--module").arg(&self.module).args(arguments))
    }

    /// The same, logged in to the token.
    pub fn user_tool(&self, arguments: &[&str]) -> String {
        self.tool(&[&["--token-label", LABEL, "--login", "--pin", PIN], arguments].concat())
    }

    pub fn pin(&self) -> SecretSource {
        SecretSource::File(self.path("pin"))
    }

    pub fn token(&self) -> Token {
        Token::Label(LABEL.into())
    }

    pub fn provider(&self) -> Pkcs11 {
        Pkcs11::new(&self.module, self.token(), self.pin())
    }

    /// A provider whose calls are written down, where the spy can do that: for kryoptic it cannot.
    pub fn spied(&self, pin: SecretSource) -> Pkcs11 {
        let module = match self.kind {
            Kind::SoftHsm => std::env::var(SPY).expect(SPY).into(),
            Kind::Kryoptic => self.module.clone(),
        };
        Pkcs11::new(module, self.token(), pin)
    }

    /// How many logins there were through [`Place::spied`]. With kryoptic it is enough that it is
    /// not locked.
    pub fn assert_logins(&self, count: usize) {
        if self.kind == Kind::SoftHsm {
            assert_eq!(self.calls("C_Login"), count);
        }
    }

    /// How often `call` was made through [`Place::spied`]; 0 for kryoptic.
    pub fn calls(&self, call: &str) -> usize {
        if self.kind == Kind::Kryoptic {
            return 0;
        }
        let log = std::fs::read_to_string(self.path("spy.log")).unwrap();
        log.lines().filter(|line| line.ends_with(&format!(": {call}"))).count()
    }

    /// A session beside the provider's: what an administrator, or the host, does in this process.
    pub fn session(&self) -> Session {
        let library = self.library();
        let slot = library.get_slots_with_initialized_token().unwrap()[0];
        let session = library.open_rw_session(slot).unwrap();
        // The provider may have done so already.
        let _ = session.login(UserType::User, Some(&AuthPin::new(PIN.into())));
        session
    }

    pub fn library(&self) -> Library {
        let library = Library::new(&self.module).unwrap();
        let _ = library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK));
        library
    }
}

/// What `command` printed. It must succeed.
pub fn succeed(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(status.success(), "{command:?}: {}{}", text(&stdout), text(&stderr));
    text(&stdout)
}

/// In a word, what a provider answered; `ok` only for the right key.
pub fn outcome(answer: Result<Secret, ProviderError>, dek: &Secret) -> &'static str {
    match answer {
        Ok(key) if key.expose() == dek.expose() => "ok",
        Ok(_) => "another key",
        Err(error) => kind(&error),
    }
}

pub fn kind(error: &ProviderError) -> &'static str {
    match error {
        ProviderError::NotHere(_) => "not here",
        ProviderError::Denied(_) => "denied",
        ProviderError::Unreachable(_) => "unreachable",
        ProviderError::Damaged(_) => "damaged",
        ProviderError::LoosePermissions { .. } | ProviderError::OtherOwner { .. } => "loose",
        ProviderError::WrongKey(_) => "wrong key",
        _ => "something else",
    }
}

/// Wrapping a new DEK under `key` ends so, and in a message with `words`.
pub fn wrap_fails(provider: &Pkcs11, key: &str, want: &str, words: &str) {
    let error = provider.wrap_key(key, &Secret::random().unwrap(), &CONTEXT).expect_err(words);
    assert_eq!(kind(&error), want, "{error}");
    assert!(error.to_string().contains(words), "{words:?} is not in {error}");
    let newest = provider.newest_of(key);
    assert!(newest.is_err() || want == "denied", "{newest:?}");
}

/// Tells the process that started this one.
pub fn report(line: &str) {
    println!("\n@ {line}");
}
