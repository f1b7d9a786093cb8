//! From a module, a token and a PIN to a session that is logged in.
//!
//! Each call has a session of its own. One more, the anchor, is kept open for the login alone: a
//! token logs the process out when its last session closes, and the PIN would have to be asked for
//! again.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use cryptoki::context::Function;
use cryptoki::error::{Error, RvError};
use cryptoki::session::{Session, SessionState};
use cryptoki::slot::Slot;
use zeroize::Zeroizing;

use super::Token;
use super::failure::{Failure, words};
use super::module::{self, Login, Module};
use crate::process::lock;
use crate::provider::derived::Derived;
use crate::provider::{ProviderError, SecretSource, WaitsFor};

/// A token with its module and PIN.
pub(super) struct Access {
    module_path: PathBuf,
    token: Token,
    pin: SecretSource,
    /// Holds back those who need the PIN while someone is asked for it; empty but then.
    pins: Derived<(), Zeroizing<Vec<u8>>>,
    /// Whether the module is used here alone.
    is_only_ours: bool,
    open: Mutex<Option<Open>>,
}

/// A token that this process is logged in to.
struct Open {
    slot: Slot,
    anchor: Session,
    /// The module's initialisation that it is of.
    epoch: u64,
}

/// A call's session.
pub(super) struct Call<'a> {
    /// The token, in words.
    pub(super) place: &'a Access,
    pub(super) module: &'a Module,
    pub(super) slot: Slot,
    pub(super) session: Session,
}

impl Call<'_> {
    /// Whether an empty result is reliable. A token hides its keys without a login, and a removed
    /// one may answer as if it were empty.
    ///
    /// # Errors
    /// Errors that show that the token is away or the login is lost.
    pub(super) fn is_in(&self) -> Result<(), Failure> {
        // An answer that cannot be read is one.
        if let Err(error @ Error::Pkcs11(..)) = self.module.library()?.get_token_info(self.slot) {
            return Err(error.into());
        }
        match self.session.get_session_info()?.session_state() {
            SessionState::RoUser | SessionState::RwUser => Ok(()),
            _ => Err(Error::Pkcs11(RvError::UserNotLoggedIn, Function::FindObjects).into()),
        }
    }
}

impl Access {
    pub(super) fn new(module_path: PathBuf, token: Token, pin: SecretSource) -> Self {
        let (pins, open) = (Derived::default(), Mutex::default());
        Self { module_path, token, pin, pins, is_only_ours: false, open }
    }

    pub(super) fn set_only_ours(&mut self, is_only_ours: bool) {
        self.is_only_ours = is_only_ours;
    }

    /// The kind of wait for the PIN.
    pub(super) fn waits_for(&self) -> WaitsFor {
        self.pin.waits_for()
    }

    /// Logs out, unless others in the process still need the login.
    pub(super) fn leave(&self) {
        let Some(open) = lock(&self.open).take() else { return };
        // Not one of the parent's, in a forked child, and not one of an earlier initialisation.
        if module::load(&self.module_path).is_ok_and(|module| module.is_at(open.epoch)) {
            let _ = open.anchor.close();
        }
    }

    /// Runs `job` with a session, and once more with everything opened anew if the first one was
    /// lost: the token may have been away for a while, or the host have finalized the module.
    pub(super) fn read<T>(
        &self,
        job: impl Fn(&Call) -> Result<T, Failure>,
    ) -> Result<T, ProviderError> {
        let module = module::load(&self.module_path)?;
        // As it is before: another thread may be faster in opening all anew.
        let epoch = module.epoch();
        let was_open = lock(&self.open).is_some();
        let first = match self.attempt(&module, false, &job) {
            Err(failure) if failure.is_worth_a_new_session() => failure,
            result => return result.map_err(|failure| failure.at(self)),
        };
        if !was_open && !first.is_loss() && !self.is_only_ours {
            return Err(first.at(self)); // all was new
        }
        let open = lock(&self.open).take_if(|open| open.epoch == epoch);
        // One that is lost is not closed: its number may be that of another's session by now.
        if let Some(open) = open.filter(|_| !first.is_loss()) {
            let _ = open.anchor.close();
        }
        module.renew(epoch, self.is_only_ours);
        self.attempt(&module, false, &job).map_err(|failure| failure.at(self))
    }

    /// Runs `job` with a session that may change the token; once, since it may have changed it.
    pub(super) fn write<T>(
        &self,
        job: impl Fn(&Call) -> Result<T, Failure>,
    ) -> Result<T, ProviderError> {
        // An earlier loss is found by a job that changes nothing.
        self.read(|call| call.is_in())?;
        let module = module::load(&self.module_path)?;
        self.attempt(&module, true, &job).map_err(|failure| failure.at(self))
    }

    fn attempt<T>(
        &self,
        module: &Module,
        write: bool,
        job: &impl Fn(&Call) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let (_held, slot) = loop {
            let pin = self.pin(module)?;
            let held = module.hold();
            if let Some(slot) = self.enter(module, pin)? {
                break (held, slot);
            }
        };
        let library = module.library()?;
        let session = match write {
            true => library.open_rw_session(slot)?,
            false => library.open_ro_session(slot)?,
        };
        job(&Call { place: self, module, slot, session })
    }

    /// The PIN if a login is needed and the token is there. No lock is held while it is asked for.
    fn pin(&self, module: &Module) -> Result<Option<Arc<Zeroizing<Vec<u8>>>>, Failure> {
        {
            let _held = module.hold();
            module.library()?;
            let epoch = module.epoch();
            if lock(&self.open).as_ref().is_some_and(|open| open.epoch == epoch) {
                return Ok(None);
            }
            self.slot(module)?;
        }
        Ok(Some(self.pins.get(&(), || self.pin.read("PIN of the token"))?))
    }

    /// The token's slot, after the login that a process needs once; `None` where another thread has
    /// logged out since that was not needed.
    fn enter(
        &self,
        module: &Module,
        pin: Option<Arc<Zeroizing<Vec<u8>>>>,
    ) -> Result<Option<Slot>, Failure> {
        let mut kept = lock(&self.open);
        let library = module.library()?;
        let epoch = module.epoch();
        if let Some(open) = kept.as_ref().filter(|open| open.epoch == epoch) {
            return Ok(Some(open.slot));
        }
        let Some(pin) = pin else { return Ok(None) };
        let slot = self.slot(module)?;
        let anchor = library.open_ro_session_no_drop(slot)?;
        let logged_in = self.log_in(module, &anchor, slot, &pin);
        self.pins.forget();
        if let Err(failure) = logged_in {
            let _ = anchor.close();
            return Err(failure);
        }
        *kept = Some(Open { slot, anchor, epoch });
        Ok(Some(slot))
    }

    fn log_in(
        &self,
        module: &Module,
        session: &Session,
        slot: Slot,
        pin: &Zeroizing<Vec<u8>>,
    ) -> Result<(), Failure> {
        let refused = match module.log_in(session, slot.id(), pin)? {
            Login::Done => return Ok(()),
            Login::WrongPin => format!(
                "{self} rejected the PIN from {}; not retried, to avoid locking the token: put the \
                 right PIN there",
                self.pin
            ),
            Login::Locked => format!(
                "the PIN of {self} is locked after too many wrong ones: have its security officer \
                 set a new one, as `pkcs11-tool --init-pin --login --login-type so` does"
            ),
            Login::Refused(error) => format!("{self} lets nobody log in: {}", words(&error)),
        };
        Err(ProviderError::denied(refused).into())
    }

    fn slot(&self, module: &Module) -> Result<Slot, Failure> {
        match &self.token {
            // Without a check of the token: the answers of some modules cannot be read.
            Token::Slot(number) => Ok(Slot::try_from(*number)?),
            Token::Label(label) => self.slot_of(module, label),
        }
    }

    fn slot_of(&self, module: &Module, label: &str) -> Result<Slot, Failure> {
        let library = module.library()?;
        let (mut found, mut unread) = (Vec::new(), 0);
        for slot in library.get_slots_with_token()? {
            match library.get_token_info(slot) {
                Ok(info) if info.label().trim_end() == label => found.push(slot),
                Ok(_) => {}
                Err(_) => unread += 1,
            }
        }
        match found[..] {
            [slot] => Ok(slot),
            [] => Err(Failure::Absent(format!(
                "{self} is not there, and {unread} others could not be read: put it in, or name \
                 its slot instead of its label"
            ))),
            _ => Err(ProviderError::denied(format!(
                "{self} is there {} times: name its slot instead of its label",
                found.len()
            ))
            .into()),
        }
    }
}

impl Drop for Access {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Whether reading a handle just found shows that it is gone.
pub(super) fn is_gone(error: &Error) -> bool {
    matches!(error, Error::Pkcs11(RvError::ObjectHandleInvalid, _))
}

/// The token in words.
impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.token {
            Token::Label(label) => write!(f, "token {label:?}")?,
            Token::Slot(number) => write!(f, "the token in slot {number}")?,
        }
        write!(f, " of {}", self.module_path.display())
    }
}
