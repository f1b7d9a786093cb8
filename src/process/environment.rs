//! The environment of the process. A host may change it at any moment, and reading it meanwhile is
//! undefined in C. So it is read on the host's thread, when the host loads or registers the
//! library; threads of ours use that copy.
//!
//! A process that its caller must not steer (`secure_getenv(3)`: its user, group or capabilities
//! are more than the caller's) has none. Neither has it a home: its files are in [`SYSTEM_DIR`].

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};

use etcetera::BaseStrategy;

use super::lock;

/// The files of a process with more rights than its caller.
pub(crate) const SYSTEM_DIR: &str = "/etc/sqlite-tde";
/// The programs that such a process finds by their names.
const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

type Environment = Arc<Vec<(OsString, OsString)>>;

static LAST: Mutex<Option<Environment>> = Mutex::new(None);

/// Reads the environment, on a thread of the host's.
pub(crate) fn read_environment() -> Environment {
    let read = match is_privileged() {
        true => vec![("PATH".into(), SYSTEM_PATH.into())],
        false => std::env::vars_os().collect(),
    };
    Arc::clone(lock(&LAST).insert(Arc::new(read)))
}

/// The environment as it was last read.
pub(crate) fn environment() -> Environment {
    let last = lock(&LAST).clone();
    last.unwrap_or_else(read_environment)
}

/// The variable `name`, if it was set when the environment was last read.
pub(crate) fn variable(name: &str) -> Option<OsString> {
    let environment = environment();
    let mut found = environment.iter().filter(|(known, _)| known == OsStr::new(name));
    found.next().map(|(_, value)| value.clone())
}

/// The directory for the data of users, or the error of a platform without one.
pub(crate) fn data_dir() -> Result<PathBuf, String> {
    if is_privileged() {
        return Ok(Path::new(SYSTEM_DIR).to_owned());
    }
    let platform = etcetera::base_strategy::choose_native_strategy();
    Ok(platform.map_err(|error| error.to_string())?.data_dir().join("sqlite-tde"))
}

/// Whether the process has more rights than whoever started it.
pub(crate) fn is_privileged() -> bool {
    static ANSWER: LazyLock<bool> = LazyLock::new(|| told_by_system().unwrap_or_else(differs));
    *ANSWER
}

/// What the system says of this process; `None` where it does not.
fn told_by_system() -> Option<bool> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        match std::fs::read("/proc/self/auxv") {
            Ok(vector) => secure_in(&vector),
            // A process that must not be looked into, as one with file capabilities.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                let has_rights =
                    has_capabilities(&std::fs::read_to_string("/proc/self/status").ok()?);
                Some(differs() || has_rights)
            }
            Err(_) => None,
        }
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    None
}

/// AT_SECURE in the auxiliary vector (`getauxval(3)`): pairs of words, a type and a value.
#[cfg(any(target_os = "linux", target_os = "android", test))]
fn secure_in(vector: &[u8]) -> Option<bool> {
    const AT_SECURE: usize = 23;
    const WORD: usize = size_of::<usize>();
    let word = |bytes: &[u8]| bytes.try_into().map(usize::from_ne_bytes).ok();
    vector.chunks_exact(2 * WORD).find_map(|pair| {
        let (kind, value) = pair.split_at(WORD);
        (word(kind)? == AT_SECURE).then(|| word(value)).flatten().map(|value| value != 0)
    })
}

/// Whether the status of a process other than the superuser's shows capabilities.
#[cfg(any(target_os = "linux", target_os = "android", test))]
fn has_capabilities(status: &str) -> bool {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let user = field("Uid:").and_then(|ids| ids.split_whitespace().nth(1));
    let permitted = field("CapPrm:").and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    user != Some("0") && permitted != Some(0)
}

/// Whether user or group are others than the caller's.
fn differs() -> bool {
    #[cfg(unix)]
    {
        use rustix::process::{getegid, geteuid, getgid, getuid};
        getuid() != geteuid() || getgid() != getegid()
    }
    #[cfg(not(unix))]
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_auxiliary_vector_tells_a_privileged_process() {
        let vector = |pairs: &[[usize; 2]]| -> Vec<u8> {
            pairs.iter().flatten().flat_map(|word| word.to_ne_bytes()).collect()
        };
        for (what, pairs, answer) in [
            ("none", &[][..], None),
            ("not secure", &[[6, 4096], [23, 0], [0, 0]], Some(false)),
            ("secure", &[[6, 4096], [23, 1], [0, 0]], Some(true)),
            ("not told", &[[6, 4096], [0, 0]], None),
            ("a value that looks like the type", &[[6, 23], [1, 1]], None),
        ] {
            assert_eq!(secure_in(&vector(pairs)), answer, "{what}");
        }
        assert_eq!(secure_in(&vector(&[[23, 1]])[..12]), None, "cut short");
        for (uid, capabilities, answer) in
            [("1000", "0", false), ("1000", "400", true), ("0", "1ffffffffff", false)]
        {
            let status = format!("Name:\tx\nUid:\t5\t{uid}\t5\t5\nCapPrm:\t{capabilities:0>16}\n");
            assert_eq!(has_capabilities(&status), answer, "{status}");
        }
        assert!(!is_privileged(), "tests are started by who runs them");
    }

    #[test]
    fn a_variable_is_the_one_that_was_read() {
        let path = std::env::var_os("PATH");
        assert!(path.is_some());
        assert_eq!(variable("PATH"), path);
        assert_eq!(variable("SQLITE_TDE_NO_SUCH_VARIABLE"), None);
    }
}
