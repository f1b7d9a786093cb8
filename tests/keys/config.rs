//! The configuration: what a good file means, and that a wrong one is refused with the line and the
//! field, without a word of what stands there.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlite_tde::config::{
    Audit, BelowMin, Config, Layer, Policy, Provider, Source, duration, home,
};
#[cfg(unix)]
use sqlite_tde::provider::Command;
use sqlite_tde::provider::conformance::Direct;
use sqlite_tde::provider::{Context, Cost, KeystoreTable, PassphraseTable, RawKeyTable};
use sqlite_tde::secret::Secret;
use sqlite_tde::{AuditPolicy, Cipher, Error, Tuning};
use sqlite_tde_testkit::set_mode;
use zeroize::Zeroizing;

/// A directory with `text` as its configuration.
fn dir(text: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    set_mode(dir.path(), 0o700);
    write(&dir.path().join("config.toml"), text.as_bytes());
    dir
}

fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
    set_mode(path, 0o600);
}

fn load(text: &str) -> Config {
    Config::load(dir(text).path()).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn refusal(text: &str) -> String {
    match Config::load(dir(text).path()) {
        Ok(_) => panic!("{text}: this was accepted"),
        Err(Error::Config(what)) => what.to_string(),
        Err(error) => panic!("{text}: {error:?}"),
    }
}

/// What is wrong, the line, the field, and words that follow.
const WRONG: &[(&str, usize, &str, &str)] = &[
    // The file as a whole.
    ("a = ", 1, "", "this is not TOML: "),
    ("\n\ncipher = \"hunter2", 3, "", "this is not TOML: "),
    ("[access\nattempts = 3", 1, "", "this is not TOML: "),
    (
        "cipher = \"aes-256-gcm\"\ncipher = \"aes-256-gcm\"",
        2,
        "",
        "this is not TOML: duplicate key",
    ),
    (
        "\n[acces]\nattempts = 3",
        2,
        "acces",
        "there is no such field here; known are default_protector, cipher,",
    ),
    ("hunter2 = 1", 1, "hunter2", "there is no such field here"),
    ("access = 3", 1, "access", "expected a table"),
    // Single fields.
    ("default_protector = 3", 1, "default_protector", "expected text in quotes"),
    ("default_protector = \"\"", 1, "default_protector", "this is empty"),
    ("default_protector = \"hunter 2:key\"", 1, "default_protector", "expected PROVIDER:KEY"),
    ("default_protector = \"hunter2:\"", 1, "default_protector", "expected PROVIDER:KEY"),
    ("default_protector = \"a:\\u0000\"", 1, "default_protector", "this has a zero character"),
    (
        "cipher = \"hunter2\"",
        1,
        "cipher",
        "expected \"aes-256-gcm\" or \"aes-256-ctr-hmac-sha256\" or \"aegis-256x4\"",
    ),
    ("# yes\nallow_plaintext = \"yes\"", 2, "allow_plaintext", "expected true or false"),
    ("[io]\nread_ahead = 64", 2, "io.read_ahead", "expected true or false"),
    ("[io]\ngather = true", 2, "io.gather", "there is no such field here"),
    // Providers.
    ("providers = []", 1, "providers", "expected a table"),
    ("[providers]\nhsm = \"hunter2\"", 2, "providers.hsm", "expected a table"),
    ("[providers.\"a b\"]\ntype = \"raw\"", 1, "providers.a b", "a provider's name is 1 to 64 of"),
    ("[providers.\"a:b\"]\ntype = \"raw\"", 1, "providers.a:b", "a provider's name is 1 to 64 of"),
    ("\n[providers.a]\nkey = { fd = 3 }", 2, "providers.a.type", "this is missing"),
    (
        "[providers.a]\ntype = \"hsm\"",
        2,
        "providers.a.type",
        "expected \"keystore\" or \"passphrase\" or \"raw\"",
    ),
    (
        "[providers.a]\ntype = \"keystore\"\ndir = true",
        3,
        "providers.a.dir",
        "expected text in quotes",
    ),
    (
        "[providers.a]\ntype = \"keystore\"\npin = { fd = 3 }",
        3,
        "providers.a.pin",
        "there is no such field here; known are type, dir, passphrase",
    ),
    ("[providers.a]\ntype = \"passphrase\"", 1, "providers.a.passphrase", "this is missing"),
    (
        "[providers.a]\ntype = \"passphrase\"\npassphrase = \"hunter2\"",
        3,
        "providers.a.passphrase",
        "expected where the secret is: { file = \"..\" }",
    ),
    (
        "[providers.a]\ntype = \"passphrase\"\npassphrase = { text = \"hunter2\" }",
        3,
        "providers.a.passphrase.text",
        "there is no such field here; known are file, fd, env, prompt",
    ),
    (
        "[providers.a]\ntype = \"passphrase\"\npassphrase = {}",
        3,
        "providers.a.passphrase",
        "expected where the secret is",
    ),
    (
        "[providers.a]\ntype = \"passphrase\"\npassphrase = { fd = 3, env = \"A\" }",
        3,
        "providers.a.passphrase",
        "expected where the secret is",
    ),
    (
        "[providers.a]\ntype = \"passphrase\"\npassphrase = { prompt = false }",
        3,
        "providers.a.passphrase",
        "expected where the secret is",
    ),
    (
        "[providers.a]\ntype = \"passphrase\"\npassphrase = { prompt = true }\ncost = { memory_kib = 7 }",
        4,
        "providers.a.cost.memory_kib",
        "expected a whole number from 8 to 1048576",
    ),
    (
        "[providers.a]\ntype = \"passphrase\"\npassphrase = { prompt = true }\n[providers.a.cost]\nlanes = 1",
        5,
        "providers.a.cost.lanes",
        "there is no such field here; known are memory_kib, iterations, parallelism",
    ),
    (
        "[providers.a]\ntype = \"raw\"\nkey = { fd = -1 }",
        3,
        "providers.a.key.fd",
        "expected a whole number from 0 to",
    ),
    (
        "[providers.a]\ntype = \"raw\"\nkey = { env = \"A=B\" }",
        3,
        "providers.a.key.env",
        "no variable has =",
    ),
    (
        "[providers.a]\ntype = \"raw\"\nkey = { file = \"\" }",
        3,
        "providers.a.key.file",
        "this is empty",
    ),
    (
        "[providers.a]\ntype = \"raw\"\nkey = { file = 3 }",
        3,
        "providers.a.key.file",
        "expected text in quotes",
    ),
    (
        "[providers.a]\ntype = \"command\"\nwrap = [\"age\"]",
        1,
        "providers.a.unwrap",
        "this is missing",
    ),
    (
        "[providers.a]\ntype = \"command\"\nwrap = \"age -e\"\nunwrap = [\"age\"]",
        3,
        "providers.a.wrap",
        "expected a list in brackets",
    ),
    (
        "[providers.a]\ntype = \"command\"\nwrap = []\nunwrap = [\"age\"]",
        3,
        "providers.a.wrap",
        "expected a program and its arguments",
    ),
    (
        "[providers.a]\ntype = \"command\"\nwrap = [\"age\",\n  3]\nunwrap = [\"age\"]",
        4,
        "providers.a.wrap[1]",
        "expected text in quotes",
    ),
    (
        "[providers.a]\ntype = \"command\"\nwrap = [\"a\"]\nunwrap = [\"b\"]\ntime_out = \"0s\"",
        5,
        "providers.a.time_out",
        "expected a span of time above zero",
    ),
    // Access and rotation.
    ("[access]\nrevalidate = \"10\"", 2, "access.revalidate", "expected a span of time above zero"),
    ("[access]\nrevalidate = 10", 2, "access.revalidate", "expected a span of time"),
    ("[access]\ngrace = \"-1h\"", 2, "access.grace", "expected a span of time, such as"),
    ("[access]\ngrace = \"1 month\"", 2, "access.grace", "expected a span of time"),
    ("[access]\nattempts = 0", 2, "access.attempts", "expected a whole number from 1 to 100"),
    ("[access]\nattempts = 3.5", 2, "access.attempts", "expected a whole number"),
    ("[access]\ntime_out = \"0s\"", 2, "access.time_out", "expected a span of time above zero"),
    (
        "[access]\n\nretries = 3",
        3,
        "access.retries",
        "there is no such field here; known are revalidate, grace, attempts, retry_delay, time_out",
    ),
    ("[rotation]\nautomatic = 1", 2, "rotation.automatic", "expected true or false"),
    ("[rotation]\ninterval = \"0h\"", 2, "rotation.interval", "expected a span of time above zero"),
    // Audit and policy.
    ("[audit]\nenabled = \"on\"", 2, "audit.enabled", "expected true or false"),
    ("[audit]\nkey = \"hunter2\"", 2, "audit.key", "expected where the secret is"),
    ("[audit]\nmax_bytes = 100", 2, "audit.max_bytes", "expected a whole number from 4096 to"),
    ("[audit]\nmax_bytes = -1", 2, "audit.max_bytes", "expected a whole number"),
    ("[audit]\nkeep = 1001", 2, "audit.keep", "expected a whole number from 0 to 1000"),
    ("[audit]\non_failure = \"fail\"", 2, "audit.on_failure", "expected a table"),
    (
        "[audit.on_failure]\nopens = \"warn\"",
        2,
        "audit.on_failure.opens",
        "expected \"fail\" or \"continue\"",
    ),
    (
        "[audit.on_failure]\nopen = \"fail\"",
        2,
        "audit.on_failure.open",
        "there is no such field here; known are key_changes, opens",
    ),
    (
        "[policy]\nmin_protectors = 0",
        2,
        "policy.min_protectors",
        "expected a whole number from 1 to 8",
    ),
    ("[policy]\nbelow_min = \"hunter2\"", 2, "policy.below_min", "expected \"refuse\" or \"warn\""),
    (
        "[policy]\nallowed_providers = [\"hsm\", \"\"]",
        2,
        "policy.allowed_providers[1]",
        "this is empty",
    ),
    (
        "[policy]\nallowed_providers = [\"a b\"]",
        2,
        "policy.allowed_providers[0]",
        "a provider's name is",
    ),
    (
        "\ndefault_protector = \"payroll\"\n[policy]\nallowed_providers = [\"hsm\"]",
        2,
        "default_protector",
        "policy.allowed_providers does not allow this provider",
    ),
    (
        "[policy]\nallowed_ciphers = []",
        2,
        "policy.allowed_ciphers",
        "this leaves out aes-256-gcm, the cipher of new databases",
    ),
    (
        "[policy]\nallowed_ciphers = [\"aegis-256x4\"]",
        2,
        "policy.allowed_ciphers",
        "this leaves out aes-256-gcm, the cipher of new databases",
    ),
    (
        "cipher = \"aegis-256x4\"\n[policy]\nallowed_ciphers = [\"aes-256-gcm\"]",
        3,
        "policy.allowed_ciphers",
        "this leaves out aegis-256x4, the cipher of new databases",
    ),
    // What a terminal would obey.
    ("\"a\\u001b[31m\\n\" = 1", 1, "a\\u{1b}[31m\\n", "there is no such field here"),
];

#[test]
fn every_mistake_is_named_with_its_line_and_field_and_nothing_of_it_is_repeated() {
    for (text, line, field, words) in WRONG {
        let said = refusal(text);
        let field = if field.is_empty() { String::new() } else { format!(", {field}") };
        let expected = format!("config.toml, line {line}{field}: {words}");
        assert!(said.contains(&expected), "{text}:\n{said}\n{expected}");
        assert!(!said.contains("hunter2") || field.contains("hunter2"), "{text}: {said}");
    }
}

#[test]
fn tokens_need_a_build_that_knows_them() {
    let hsm = "[providers.hsm]\ntype = \"pkcs11\"\nmodule = \"m.so\"\n";
    let rest = "token = \"t\"\npin = { fd = 3 }\n";
    if cfg!(not(feature = "pkcs11")) {
        let said = refusal(&format!("{hsm}{rest}"));
        assert!(said.contains("line 2, providers.hsm.type: this build knows no tokens"), "{said}");
        return;
    }
    for (more, line, field, words) in [
        ("pin = { fd = 3 }", 1, "providers.hsm", "either `token`, a label, or `slot`"),
        ("slot = 1\ntoken = \"t\"\npin = { fd = 3 }", 4, "providers.hsm.slot", "`token` names"),
        ("slot = \"1\"\npin = { fd = 3 }", 4, "providers.hsm.slot", "expected a whole number"),
        ("token = \"t\"", 1, "providers.hsm.pin", "this is missing"),
        ("token = \"t\"\npin = \"1234\"", 5, "providers.hsm.pin", "expected where the secret is"),
        (
            "token = \"t\"\npin = { fd = 3 }\nmechanisms = [\"aes-gcm\", \"des\"]",
            6,
            "providers.hsm.mechanisms[1]",
            "expected \"aes-gcm\" or",
        ),
    ] {
        let said = refusal(&format!("{hsm}{more}"));
        let expected = format!("line {line}, {field}: {words}");
        assert!(said.contains(&expected) && !said.contains("1234"), "{said}\n{expected}");
    }
    let more = "mechanisms = [\"rsa-oaep-sha1\"]\nonly_user = true\n";
    let config = load(&format!("{hsm}{rest}{more}"));
    let names: Vec<_> = config.providers().unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["hsm", "keystore"]);
}

#[test]
fn without_a_file_the_defaults_hold() {
    let empty = tempfile::tempdir().unwrap();
    let config = Config::load(empty.path()).unwrap();
    assert_eq!(config.settings, Layer::default());
    let values = config.settings.values();
    assert_eq!((values.default_protector.as_str(), values.allow_plaintext), ("default", false));
    assert!(values.tuning.read_ahead && values.tuning.gather_writes);
    assert_eq!(values.rotation, duration("24h"));
    assert_eq!(
        (values.access.revalidate, values.access.grace),
        (duration("10m"), duration("24h").unwrap())
    );
    assert_eq!((values.access.attempts, values.access.time_out), (3, Duration::from_secs(10)));
    assert_eq!(values.policy, Policy::default());
    let mut audit = Audit::default();
    audit.dir = Some(empty.path().join("audit"));
    assert_eq!((config.audit.clone(), values.audit), (audit, AuditPolicy::default()));
    assert!(!config.audit.enabled && values.policy.allows("anything"));
    let keystore = KeystoreTable { dir: Some(empty.path().to_owned()), passphrase: None }.into();
    assert_eq!(config.providers.into_iter().collect::<Vec<_>>(), [("keystore".into(), keystore)]);
    assert!(fs::read_dir(empty.path()).unwrap().next().is_none(), "loading creates nothing");
    assert!(home().unwrap().is_absolute());
}

#[test]
fn every_field_is_taken_over() {
    let dir = dir(r#"
        default_protector = "ops:nightly"
        cipher = "aes-256-ctr-hmac-sha256"
        allow_plaintext = true
        [providers.keystore]
        type = "keystore"
        dir = "keys"
        passphrase = { env = "KEYSTORE_PASSPHRASE" }
        [providers.recovery]
        type = "passphrase"
        passphrase = { prompt = true }
        cost = { memory_kib = 8, iterations = 1, parallelism = 1 }
        [providers.raw]
        type = "raw"
        key = { file = "/run/key" }
        [providers.ops]
        type = "command"
        wrap = ["ops-wrap", "--key", "{key_id}"]
        unwrap = ["ops-unwrap"]
        newest = ["ops-newest"]
        time_out = "3s"
        [io]
        read_ahead = false
        gather_writes = false
        [access]
        revalidate = "never"
        grace = "0s"
        attempts = 7
        retry_delay = "1s 500ms"
        time_out = "1m"
        [rotation]
        automatic = false
        interval = "7d"
        [audit]
        enabled = true
        dir = "log"
        key = { fd = 5 }
        max_bytes = 65536
        keep = 3
        on_failure = { key_changes = "continue", opens = "fail" }
        [policy]
        min_protectors = 2
        below_min = "warn"
        allowed_providers = ["ops", "recovery"]
    "#);
    let config = Config::load(dir.path()).unwrap();
    let here = |name: &str| dir.path().join(name);
    let values = config.settings.values();
    assert_eq!(values.default_protector, "ops:nightly");
    assert_eq!((values.cipher, values.allow_plaintext), (Cipher::Aes256CtrHmacSha256, true));
    assert_eq!(values.tuning, Tuning::OFF);
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    for (name, provider) in [
        (
            "keystore",
            Provider::from(KeystoreTable {
                dir: Some(here("keys")),
                passphrase: Some(Source::Environment("KEYSTORE_PASSPHRASE".into())),
            }),
        ),
        (
            "recovery",
            PassphraseTable {
                passphrase: Source::Prompt,
                cost: Cost { memory_kib: 8, iterations: 1, parallelism: 1 },
            }
            .into(),
        ),
        ("raw", RawKeyTable { key: Source::File("/run/key".into()) }.into()),
        #[cfg(unix)]
        (
            "ops",
            Command::new(["ops-wrap", "--key", "{key_id}"], ["ops-unwrap"])
                .newest(["ops-newest"])
                .timeout(duration("3s").unwrap())
                .into(),
        ),
    ] {
        assert_eq!(config.providers[name], provider);
    }
    assert_eq!((values.access.revalidate, values.access.grace), (None, Duration::ZERO));
    assert_eq!(
        (values.access.attempts, values.access.retry_delay),
        (7, Duration::from_millis(1500))
    );
    assert_eq!((values.access.time_out, values.rotation), (Duration::from_secs(60), None));
    let mut on_failure = AuditPolicy::default();
    (on_failure.fail_key_changes, on_failure.fail_opens) = (false, true);
    let mut audit = Audit::default();
    (audit.enabled, audit.dir, audit.key) = (true, Some(here("log")), Some(Source::Descriptor(5)));
    (audit.max_bytes, audit.keep) = (65536, 3);
    assert_eq!((&config.audit, values.audit), (&audit, on_failure));
    let options = config.audit_options().unwrap();
    assert_eq!((options.dir, options.max_bytes, options.keep), (here("log"), 65536, 3));
    let allowed = Some(words(&["ops", "recovery"]));
    let mut policy = Policy::default();
    (policy.min_protectors, policy.below_min) = (2, BelowMin::Warn);
    policy.allowed_providers = allowed;
    assert_eq!(values.policy, policy);
    assert!(values.policy.allows("ops") && !values.policy.allows("keystore"));
    assert_eq!(load("[rotation]\ninterval = \"7d\"").settings.values().rotation, duration("7d"));
}

/// Each kind of provider, as configured, wraps a key and unwraps it again.
#[test]
fn configured_providers_work() {
    let dir = dir(r#"
        [providers.recovery]
        type = "passphrase"
        passphrase = { prompt = true }
        cost = { memory_kib = 8, iterations = 1, parallelism = 1 }
        [providers.raw]
        type = "raw"
        key = { file = "raw.key" }
        [providers.store]
        type = "keystore"
        dir = "other"
        passphrase = { file = "store.passphrase" }
    "#);
    let mut config = Config::load(dir.path()).unwrap();
    write(&dir.path().join("raw.key"), &[7; 32]);
    write(&dir.path().join("store.passphrase"), b"battery staple\n");
    #[cfg(unix)]
    {
        let tool = Command::new(["base64"], ["base64", "-d"]).timeout(Duration::from_secs(60));
        config.providers.insert("tool".into(), tool.into());
    }
    config.prompt = Some(Arc::new(|what| {
        assert!(what.contains("passphrase for k"), "{what}");
        Ok(Zeroizing::new("correct horse".to_owned()))
    }));
    let dek = Secret::random().unwrap();
    let context = Context { file_id: [7; 16], dek_version: 1 };
    let providers = config.providers().unwrap();
    let names: Vec<&str> = providers.iter().map(|(name, _)| name.as_str()).collect();
    let with_commands = ["keystore", "raw", "recovery", "store", "tool"];
    assert_eq!(names, with_commands[..names.len()]);
    assert_eq!(names.len(), if cfg!(unix) { 5 } else { 4 });
    for (name, provider) in &providers {
        let key = if name.contains("store") { "default" } else { "k" };
        let wrapped =
            provider.wrap_key(key, &dek, &context).unwrap_or_else(|e| panic!("{name}: {e}"));
        let again = config.providers().unwrap();
        let (_, again) = again.iter().find(|(other, _)| other == name).unwrap();
        let unwrapped = again.unwrap_key(key, &wrapped, &context).unwrap();
        assert_eq!(unwrapped.expose(), dek.expose(), "{name}");
    }
    for store in ["keystore.json", "other/keystore.json"] {
        assert!(dir.path().join(store).exists(), "{store}");
    }
    // Under its passphrase, the keystore's keys are not there in the clear.
    let stored = |name| fs::read_to_string(dir.path().join(name)).unwrap();
    assert_ne!(
        stored("keystore.json").contains("argon2"),
        stored("other/keystore.json").contains("argon2")
    );
    // Nobody to ask.
    config.prompt = None;
    let (_, recovery) = config.providers().unwrap().remove(2);
    let error = recovery.wrap_key("k", &dek, &context).unwrap_err().to_string();
    assert!(error.contains("this program cannot ask"), "{error}");
}

#[cfg(unix)]
#[test]
fn a_file_that_others_may_write_is_refused() {
    for (dir_mode, file_mode, refused) in [
        (0o700, 0o600, None),
        (0o755, 0o644, None),
        (0o700, 0o620, Some("config.toml: it has mode 620")),
        (0o700, 0o602, Some("config.toml: it has mode 602")),
        (0o770, 0o600, Some("has mode 770")),
        (0o1777, 0o600, Some("has mode 777")),
    ] {
        let dir = dir("allow_plaintext = true");
        let file = dir.path().join("config.toml");
        set_mode(&file, file_mode);
        set_mode(dir.path(), dir_mode);
        let loaded = Config::load(dir.path()).map(drop).map_err(|error| error.to_string());
        match refused {
            None => assert_eq!(loaded, Ok(()), "{dir_mode:o} {file_mode:o}"),
            Some(words) => {
                let said = loaded.unwrap_err();
                assert!(said.contains(words) && said.contains("lets others write"), "{said}");
            }
        }
    }
    // Another user's file could say anything, too. Only the superuser can give one away.
    let dir = dir("allow_plaintext = true");
    let file = dir.path().join("config.toml");
    if std::os::unix::fs::chown(&file, Some(65534), None).is_ok() {
        let said = Config::load(dir.path()).unwrap_err().to_string();
        assert!(
            said.contains("config.toml: it belongs to user 65534, neither to root nor to user "),
            "{said}"
        );
    }
}

#[test]
fn what_cannot_be_read_is_an_error() {
    let place = tempfile::tempdir().unwrap();
    fs::create_dir(place.path().join("config.toml")).unwrap();
    let large = dir(&" ".repeat((1 << 20) + 1));
    let bytes = tempfile::tempdir().unwrap();
    write(&bytes.path().join("config.toml"), b"# one\n# two \xff\n");
    for (dir, words) in [
        (place.path(), "config.toml: this is a directory, not a regular file"),
        (large.path(), "config.toml: it has over 1048576 bytes"),
        (bytes.path(), "config.toml, line 2: this is not UTF-8"),
    ] {
        let error = Config::load(dir).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(error.sqlite_code(), 0x780e);
    }
}

/// The examples in the documentation, as they stand there.
#[test]
fn the_documented_examples_load() {
    let text = include_str!("../../docs/config.md");
    let blocks: Vec<&str> =
        text.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(blocks.len(), 2);
    let config = load(blocks[0]);
    assert!(config.audit.enabled && config.providers.len() == 5, "{config:?}");
    config.providers().unwrap();
    // What is commented out is an example, too.
    let all: String = blocks[0]
        .lines()
        .map(|line| line.strip_prefix("#= ").unwrap_or(line))
        .map(|line| format!("{line}\n"))
        .collect();
    load(&all);
    if cfg!(feature = "pkcs11") {
        assert_eq!(load(blocks[1]).providers.len(), 2);
    } else {
        assert!(refusal(blocks[1]).contains("this build knows no tokens"));
    }
}
