//! For how long keys that a provider once gave may serve.
//!
//! ```text
//!              interval over: the provider is asked, beside the transactions
//!   granted ------------------------------------------------------------------> granted
//!      |   \------ it does not answer -----> outage: the keys serve for `grace` longer
//!      |           in time, or with an error    |
//!      | it denies, or somebody locks           | grace over
//!      v                                        v
//!   locked: the keys are wiped; each transaction asks the provider first --> granted
//! ```
//!
//! Transactions, and reads of the file within them, look at one atomic and a clock. Nobody waits
//! for a provider but who finds the keyring locked.
//!
//! The connections to a database share its keys, and may have different policies: the shortest
//! interval and the shortest grace that one of them has asked for hold for all, for as long as the
//! process has the database open.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::cipher::lock;
use crate::error::{Error, Result};
use crate::process::forks;
use crate::provider::ProviderError;
use crate::settings::AccessPolicy;

/// A locked database asks its provider no more often than this.
const PAUSE: Duration = Duration::from_secs(1);

/// The least time between two closer looks.
const LOOK: Duration = Duration::from_millis(100);

/// A check without an answer for that long is an outage, whatever the settings allow it.
const CHECK_MAX: Duration = Duration::from_secs(60);

/// What a transaction finds when it begins.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LeaseState {
    /// The keys serve.
    Good,
    /// They serve, and whoever got this answer has to ask the provider.
    Due,
    /// They are gone; whoever got this answer may ask for them.
    Locked,
}

/// Why the keys are gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RevokeReason {
    /// Somebody asked for it.
    Request,
    /// The provider denied them, or did not answer for longer than the grace period.
    Provider(Refusal),
}

/// Why keys are not given: the words of an error, and the provider's answer if it is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    words: String,
    source: Option<ProviderError>,
}

impl Refusal {
    pub(crate) fn words(&self) -> &str {
        &self.words
    }
}

impl<T: Into<String>> From<T> for Refusal {
    fn from(words: T) -> Self {
        Self { words: words.into(), source: None }
    }
}

impl From<&Error> for Refusal {
    fn from(error: &Error) -> Self {
        let source = error.source().and_then(|source| source.downcast_ref());
        Self { words: error.to_string(), source: source.cloned() }
    }
}

impl From<Refusal> for Error {
    fn from(Refusal { words, source }: Refusal) -> Self {
        Self::Inaccessible { reason: words, source }
    }
}

/// Where one database stands with its provider. Shared by all its connections of this process.
pub(crate) struct KeyLease {
    /// Milliseconds after [`KeyLease::start`] when a transaction has to look closer.
    due: AtomicU64,
    /// By [`milliseconds`].
    start: u64,
    state: Mutex<State>,
    /// Runs at the beginning of the next [`KeyLease::granted`].
    #[cfg(test)]
    pub(super) before_granted: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

struct State {
    demand: Demand,
    granted: Instant,
    loss: Option<RevokeReason>,
    /// What the provider last said instead of an answer.
    outage: Option<Refusal>,
    /// When the keys were lost by a provider's word.
    denied: Option<Instant>,
    /// When connections last asked for keys that are locked, by the protector that they insist on,
    /// and what they were told. One whose protector is gone must not make the others wait.
    asked: BTreeMap<Option<String>, (Instant, Option<Refusal>)>,
    /// The process in which someone is asking, and since when.
    asking: Option<(u64, Instant)>,
}

/// The strictest of the policies that use the keys.
#[derive(Clone, Copy, PartialEq)]
struct Demand {
    /// `None` for never.
    interval: Option<Duration>,
    grace: Duration,
}

impl Demand {
    const NONE: Self = Self { interval: None, grace: Duration::MAX };

    fn with(self, policy: &AccessPolicy) -> Self {
        let interval = self.interval.into_iter().chain(policy.revalidate).min();
        // Without checks there is no outage.
        let grace = policy.revalidate.map_or(self.grace, |_| self.grace.min(policy.grace));
        Self { interval, grace }
    }
}

impl State {
    fn granted(now: Instant, demand: Demand) -> Self {
        let asked = BTreeMap::new();
        Self { demand, granted: now, loss: None, outage: None, denied: None, asked, asking: None }
    }

    /// Since when someone of this process is asking.
    fn asked_since(&self) -> Option<Instant> {
        self.asking.filter(|(process, _)| *process == forks::process()).map(|(_, since)| since)
    }

    /// Whether an outage of the provider now ends the use of the keys.
    fn is_grace_over(&self) -> bool {
        let Demand { interval, grace } = self.demand;
        let patience = interval.unwrap_or_default().saturating_add(grace);
        grace.is_zero() || self.granted.elapsed() > patience
    }
}

impl KeyLease {
    pub(super) fn new() -> Self {
        Self {
            due: AtomicU64::new(0),
            start: milliseconds(),
            state: Mutex::new(State::granted(Instant::now(), Demand::NONE)),
            #[cfg(test)]
            before_granted: Mutex::default(),
        }
    }

    /// A connection uses the keys by this policy from now on.
    pub(super) fn hold_to(&self, policy: &AccessPolicy) {
        let mut state = lock(&self.state);
        let demand = state.demand.with(policy);
        if demand != state.demand {
            state.demand = demand;
            // The next look plans by it.
            self.due.store(0, Ordering::Release);
        }
    }

    /// Whether it is time to look closer. Anything but [`LeaseState::Good`] is due.
    #[inline]
    pub(crate) fn is_due(&self) -> bool {
        self.elapsed() >= self.due.load(Ordering::Acquire)
    }

    /// Whether the grace period ended during a check that has no answer.
    pub(super) fn is_overdue(&self, policy: &AccessPolicy) -> bool {
        let state = lock(&self.state);
        let long = policy.open_time_out.min(CHECK_MAX);
        state.loss.is_none()
            && state.asked_since().is_some_and(|since| since.elapsed() > long)
            && state.is_grace_over()
    }

    /// What a transaction has to do first whose connection insists on the protector `wanted`, or
    /// on none, once it [is due](KeyLease::is_due).
    ///
    /// # Errors
    /// [`Error::Inaccessible`] where the provider's last answer still stands.
    pub(super) fn lease_state(&self, wanted: Option<&str>) -> Result<LeaseState> {
        let mut state = lock(&self.state);
        if let Some(loss) = &state.loss {
            let wanted = wanted.map(str::to_owned);
            let denied = match loss {
                RevokeReason::Provider(reason) => Some(reason.clone()),
                RevokeReason::Request => None,
            };
            let told = match state.asked.get(&wanted) {
                Some((at, told)) => Some((*at, told.clone().or(denied.clone()))),
                None => state.denied.map(|at| (at, denied.clone())),
            };
            if let Some((at, Some(reason))) = &told
                && at.elapsed() < PAUSE
            {
                return Err(reason.clone().into());
            }
            state.asked.retain(|_, (at, _)| at.elapsed() < PAUSE);
            let reason = told.and_then(|(_, reason)| reason);
            state.asked.insert(wanted, (Instant::now(), reason));
            return Ok(LeaseState::Locked);
        }
        let Some(interval) = state.demand.interval else {
            self.look_again_after(PAUSE);
            return Ok(LeaseState::Good);
        };
        if state.granted.elapsed() < interval || state.asked_since().is_some() {
            // While an answer is under way, transactions need not look at each turn.
            let rest = interval.saturating_sub(state.granted.elapsed());
            self.look_again_after(rest.max(LOOK));
            return Ok(LeaseState::Good);
        }
        state.asking = Some((forks::process(), Instant::now()));
        Ok(LeaseState::Due)
    }

    /// The provider gave the keys.
    pub(super) fn granted(&self) {
        #[cfg(test)]
        if let Some(run) = lock(&self.before_granted).take() {
            run();
        }
        let mut state = lock(&self.state);
        *state = State::granted(Instant::now(), state.demand);
        self.due.store(0, Ordering::Release);
    }

    /// The provider did not answer. `true` where the grace period is over.
    pub(crate) fn outage(&self, reason: Refusal) -> bool {
        let mut state = lock(&self.state);
        state.asking = None;
        state.outage = Some(reason);
        // A next attempt only after a pause, however often transactions begin. Where the keys were
        // locked meanwhile, the next transaction asks at once.
        if state.loss.is_none() {
            self.look_again_after(PAUSE);
        }
        state.is_grace_over()
    }

    /// The keys are wiped.
    pub(super) fn lost(&self, loss: RevokeReason) {
        let mut state = lock(&self.state);
        state.denied = matches!(loss, RevokeReason::Provider(_)).then(Instant::now);
        state.asked.clear();
        state.asking = None;
        state.loss = Some(loss);
        self.due.store(0, Ordering::Release);
    }

    /// What a transaction is told where the provider did not give the keys of a locked database.
    /// It stands for those that insist on the same protector.
    pub(crate) fn refused(&self, error: Error, wanted: Option<&str>) -> Error {
        let reason = Refusal::from(&error);
        if reason.source.is_none() || matches!(error, Error::Inaccessible { .. }) {
            return error;
        }
        // Another connection may have been given them meanwhile.
        let mut state = lock(&self.state);
        if state.loss.is_some() {
            let asked = state.asked.entry(wanted.map(str::to_owned));
            asked.or_insert_with(|| (Instant::now(), None)).1 = Some(reason.clone());
        }
        drop(state);
        reason.into()
    }

    /// Why there are no keys.
    pub(super) fn reason(&self) -> Refusal {
        match &lock(&self.state).loss {
            Some(RevokeReason::Provider(reason)) => reason.clone(),
            Some(RevokeReason::Request) | None => "its keys were locked in this process".into(),
        }
    }

    /// Why there are no keys, if there are none.
    pub(crate) fn loss(&self) -> Option<Refusal> {
        let lost = lock(&self.state).loss.is_some();
        lost.then(|| self.reason())
    }

    /// What the provider last said instead of an answer, while the keys serve all the same.
    pub(crate) fn outage_reason(&self) -> Option<String> {
        lock(&self.state).outage.as_ref().map(|outage| outage.words.clone())
    }

    fn look_again_after(&self, pause: Duration) {
        let due =
            self.elapsed().saturating_add(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX));
        self.due.store(due, Ordering::Release);
    }

    fn elapsed(&self) -> u64 {
        milliseconds().saturating_sub(self.start)
    }
}

/// The clock that each read of the file looks at: the kernel's coarse one, which is a few
/// milliseconds late and takes a quarter of the time.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn milliseconds() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    (time.tv_sec as u64).wrapping_mul(1000).wrapping_add(time.tv_nsec as u64 / 1_000_000)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn milliseconds() -> u64 {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    START.elapsed().as_millis() as u64
}
