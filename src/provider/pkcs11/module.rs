//! The libraries that speak PKCS#11: each is loaded and initialised once in a process, for all
//! providers.
//!
//! Invariants:
//! 1. None is ever unloaded. One is finalized only if it was initialised here, the application
//!    declared that it has no other users, and no call of ours is in progress.
//! 2. A forked child initialises it again, as the standard demands, before anything else.
//! 3. A PIN that a token refused is not shown to that token again by this process: after a few
//!    wrong ones a token locks. It is remembered here, not in a provider, of which there can be
//!    several.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, RwLock, RwLockReadGuard};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11 as Library};
use cryptoki::error::{Error, RvError};
use cryptoki::session::{Session, UserType};
use cryptoki::types::RawAuthPin;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::failure::Failure;
use crate::process::lock;
use crate::provider::ProviderError;

/// A PIN that a slot's token refused.
struct Refused {
    slot: u64,
    pin: Zeroizing<Vec<u8>>,
}

/// A loaded library.
pub(super) struct Module {
    library: Library,
    state: Mutex<State>,
    /// Shared by calls, exclusive for finalizing the library.
    calls: RwLock<()>,
    refused: Mutex<Vec<Refused>>,
}

#[derive(Default)]
struct State {
    /// The process that initialised it.
    process: Option<u32>,
    /// Whether that was done here, not by the host.
    is_ours: bool,
    /// Whether it may have been finalized since.
    is_doubted: bool,
    /// Counts initialisations: sessions and logins of an earlier one are invalid.
    epoch: u64,
}

/// Outcome of an attempt to log in.
pub(super) enum Login {
    Done,
    /// The token knows this PIN not to be the right one, now or from an earlier attempt.
    WrongPin,
    /// Too many wrong ones: the token takes none any more.
    Locked,
    /// It refuses the login for another reason.
    Refused(Error),
}

static MODULES: LazyLock<Mutex<BTreeMap<PathBuf, Arc<Module>>>> = LazyLock::new(Mutex::default);

/// The library at `path`, loaded if it was not.
///
/// # Errors
/// [`ProviderError::NotHere`] if it is missing, [`ProviderError::Damaged`] if it is another kind of
/// file.
pub(super) fn load(path: &Path) -> Result<Arc<Module>, ProviderError> {
    let name = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut modules = lock(&MODULES);
    if let Some(module) = modules.get(&name) {
        return Ok(Arc::clone(module));
    }
    let library = Library::new(path).map_err(|error| not_loaded(path, &error))?;
    let module = Arc::new(Module {
        library,
        state: Mutex::default(),
        calls: RwLock::default(),
        refused: Mutex::default(),
    });
    modules.insert(name, Arc::clone(&module));
    Ok(module)
}

fn not_loaded(path: &Path, error: &Error) -> ProviderError {
    let path_text = path.display();
    if path.exists() {
        return ProviderError::damaged(format!("{path_text} is no PKCS#11 module: {error}"));
    }
    ProviderError::not_here(format!(
        "no PKCS#11 module at {path_text}: install the token's library, or set its right path"
    ))
}

impl Module {
    /// Keeps the library from being finalized meanwhile.
    pub(super) fn hold(&self) -> RwLockReadGuard<'_, ()> {
        self.calls.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The library, initialised in this process.
    pub(super) fn library(&self) -> Result<&Library, Failure> {
        let mut state = lock(&self.state);
        let process = crate::process::id();
        let is_known = state.process == Some(process);
        if !is_known || state.is_doubted {
            let arguments = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
            state.is_ours = match self.library.initialize(arguments) {
                // By the host, by us, or by the parent if the library ignores forks.
                Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {
                    is_known && state.is_ours
                }
                result => result.map(|()| true)?,
            };
            state.process = Some(process);
            state.is_doubted = false;
            state.epoch += 1;
        }
        Ok(&self.library)
    }

    /// The number of the present initialisation.
    pub(super) fn epoch(&self) -> u64 {
        lock(&self.state).epoch
    }

    /// Whether sessions of the initialisation `epoch` are good in this process.
    pub(super) fn is_at(&self, epoch: u64) -> bool {
        let state = lock(&self.state);
        state.epoch == epoch && !state.is_doubted && state.process == Some(crate::process::id())
    }

    /// Initialises the library again when it is next used, unless that was done since `epoch`: the
    /// host may have finalized it. If we are its only user, it is finalized, too: some libraries
    /// find a returned token only then. The caller holds no [`Module::hold`].
    pub(super) fn renew(&self, epoch: u64, is_only_ours: bool) {
        let _alone = self.calls.write().unwrap_or_else(PoisonError::into_inner);
        let mut state = lock(&self.state);
        if state.epoch != epoch || state.process != Some(crate::process::id()) {
            return;
        }
        state.is_doubted = true;
        if is_only_ours && state.is_ours {
            // If it does not, it is as it was, and initialised.
            let _ = self.library.clone().finalize();
        }
    }

    /// Logs in, unless this PIN was refused before. The lock is held throughout, so that threads do
    /// not show the token the same wrong PIN one after another.
    pub(super) fn log_in(
        &self,
        session: &Session,
        slot: u64,
        pin: &Zeroizing<Vec<u8>>,
    ) -> Result<Login, Failure> {
        let mut refused = lock(&self.refused);
        let is_same = |known: &Refused| known.slot == slot && bool::from(known.pin.ct_eq(pin));
        if refused.iter().any(is_same) {
            return Ok(Login::WrongPin);
        }
        // Wiped by its owner when it is dropped.
        let shown = RawAuthPin::new(Box::new(pin.to_vec()));
        match session.login_with_raw(UserType::User, &shown) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(Login::Done),
            Err(Error::Pkcs11(
                RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange,
                _,
            )) => {
                refused.push(Refused { slot, pin: pin.clone() });
                Ok(Login::WrongPin)
            }
            Err(Error::Pkcs11(RvError::PinLocked, _)) => Ok(Login::Locked),
            Err(
                error @ Error::Pkcs11(
                    RvError::PinExpired
                    | RvError::UserPinNotInitialized
                    | RvError::UserTypeInvalid
                    | RvError::UserAnotherAlreadyLoggedIn
                    | RvError::UserTooManyTypes,
                    _,
                ),
            ) => Ok(Login::Refused(error)),
            Err(error) => Err(error.into()),
        }
    }
}
