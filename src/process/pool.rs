//! The threads that foreign code runs on: providers of the application, prompts, modules of tokens,
//! and commands that are waited for.
//!
//! None of it runs on a thread that is inside SQLite. There it could reach, through a thread-local,
//! the connection that waits for it, and close or detach a database that SQLite is using.
//!
//! ```text
//!   caller --- job ---> thread: runs it ---> done: the answer goes to the caller, the thread waits
//!     |                    |                       for another job, and ends after a while
//!     |                    +--- the deadline passes: abandoned, the caller gets an error
//!     |                            the thread and its place are taken until the call returns
//! ```
//!
//! Invariants
//! 1. No lock is held while foreign code runs or is dropped.
//! 2. A provider has at most [`SHARE`] calls at a time. If all of them were abandoned, a further
//!    one fails at once; else it waits for a place until its deadline.
//! 3. There are at most [`THREADS`] threads; beyond that, up to [`THREADS_MAX`], only for a
//!    provider that has none. So one that hangs does not take the others' places.
//! 4. A forked child has none of its parent's threads, and begins a pool of its own.
//! 5. While a job runs, [`caller`] is that of the thread that waits for it. Calls are nested up to
//!    [`NESTED`] deep, and a nested one does not wait for a place without end: its own caller may
//!    have it.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::forks::PerProcess;
use super::{Deadline, lock, threads};

const THREADS: usize = 32;
const THREADS_MAX: usize = 64;
/// Of one provider.
const SHARE: usize = 8;
/// A provider that uses a database of another provider, which does so in turn.
const NESTED: u32 = 3;
/// How long a nested call waits for a place.
const PLACE_TIME: Duration = Duration::from_secs(10);
/// How long a thread waits for another job.
const IDLE: Duration = Duration::from_secs(5);

/// The reason why a call has no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    Panicked,
    TimedOut,
    /// There was no place for it in time, beside so many other calls.
    Busy(usize),
    /// So many calls were abandoned, and have not returned.
    Stuck(usize),
    /// It is made within so many others.
    Nested(u32),
    NoThread(io::Error),
}

type Job = Box<dyn FnOnce() + Send>;

/// The pool of one process.
#[derive(Default)]
struct Pool {
    state: Mutex<State>,
    /// A job is queued.
    queued: Condvar,
    /// A place became free.
    freed: Condvar,
}

#[derive(Default)]
struct State {
    threads: usize,
    idle: usize,
    queue: VecDeque<Job>,
    /// The calls by provider.
    loads: BTreeMap<u64, Load>,
}

/// The calls of one provider.
#[derive(Default, Clone, Copy)]
struct Load {
    running: usize,
    /// Of those, the ones whose callers have given up.
    abandoned: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Runs,
    Returned,
    Abandoned,
}

thread_local! {
    static CALLER: Cell<u64> = const { Cell::new(0) };
    /// How many calls this thread is within.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// The number of the thread that waits for what this one does, over all calls that are nested in
/// one another.
pub(crate) fn caller() -> u64 {
    match CALLER.get() {
        0 => threads::number(),
        caller => caller,
    }
}

/// Runs `work`, a call of the provider `owner`, and waits for its answer until `deadline`. An
/// answer that comes later is dropped, and with it wiped.
pub(crate) fn run<T: Send + 'static>(
    owner: u64,
    deadline: Deadline,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let pool = Pool::here();
    let (send, answer) = sync_channel(1);
    let call = Arc::new(Mutex::new(Progress::Runs));
    let of_caller = Arc::clone(&call);
    let (caller, depth) = (caller(), DEPTH.get());
    if depth >= NESTED {
        return Err(Failure::Nested(depth));
    }
    let job = move || {
        CALLER.set(caller);
        DEPTH.set(depth + 1);
        let answer = contained(work);
        if replace_running(&call, Progress::Returned) {
            pool.ended(owner, false);
            // The caller is still there, or drops it: then it is plain data.
            let _ = send.send(answer);
        } else {
            contained(move || drop(answer));
            pool.ended(owner, true);
        }
    };
    let nested = Deadline::after(PLACE_TIME);
    let for_place = if depth > 0 { deadline.earlier(nested) } else { deadline };
    pool.begin(Some(owner), for_place, Box::new(job))?;
    let received = match deadline.time_left() {
        Some(left) => answer.recv_timeout(left),
        None => answer.recv().map_err(|_| RecvTimeoutError::Disconnected),
    };
    let received = match received {
        Err(RecvTimeoutError::Timeout) => {
            // Counted before the call can end, which subtracts it.
            let mut state = lock(&pool.state);
            if replace_running(&of_caller, Progress::Abandoned) {
                state.loads.entry(owner).or_default().abandoned += 1;
                return Err(Failure::TimedOut);
            }
            drop(state);
            // It returned at the last moment.
            answer.recv().ok()
        }
        received => received.ok(),
    };
    received.flatten().ok_or(Failure::Panicked)
}

/// Ends a call that runs; `false` if it had ended already.
fn replace_running(call: &Mutex<Progress>, end: Progress) -> bool {
    let mut progress = lock(call);
    let runs = *progress == Progress::Runs;
    if runs {
        *progress = end;
    }
    runs
}

/// Drops `value`, which may run foreign code, on a thread of ours. Without a thread the value is
/// never dropped.
pub(crate) fn drop_apart<T: Send + 'static>(value: T) {
    let kept = Arc::new(Mutex::new(Some(value)));
    let of_job = Arc::clone(&kept);
    let job = move || {
        let value = lock(&of_job).take();
        contained(move || drop(value));
    };
    if Pool::here().begin(None, Deadline::after(Duration::ZERO), Box::new(job)).is_err() {
        std::mem::forget(lock(&kept).take());
    }
}

impl Pool {
    /// The pool of this process.
    fn here() -> &'static Self {
        static POOL: PerProcess<Pool> = PerProcess::new(Pool::default);
        &POOL.here().value
    }

    /// Gives `job` to a thread, once there is a place for it.
    fn begin(
        &'static self,
        owner: Option<u64>,
        deadline: Deadline,
        job: Job,
    ) -> Result<(), Failure> {
        let mut state = lock(&self.state);
        while !state.has_place(owner) {
            let load = state.load(owner);
            if load.abandoned >= SHARE {
                return Err(Failure::Stuck(load.abandoned));
            }
            state = match deadline.time_left() {
                Some(left) if left.is_zero() => return Err(Failure::Busy(load.running)),
                Some(left) => wait_for(&self.freed, state, left).0,
                None => self.freed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
        if let Some(owner) = owner {
            state.loads.entry(owner).or_default().running += 1;
        }
        if state.has_idle() {
            state.queue.push_back(job);
            drop(state);
            self.queued.notify_one();
            return Ok(());
        }
        state.threads += 1;
        drop(state);
        threads::spawn("sqlite-tde provider", move || self.work(job)).map_err(|error| {
            lock(&self.state).threads -= 1;
            owner.iter().for_each(|owner| self.ended(*owner, false));
            Failure::NoThread(error)
        })
    }

    /// One thread.
    fn work(&self, first: Job) {
        let mut next = Some(first);
        while let Some(job) = next {
            CALLER.set(0);
            DEPTH.set(0);
            contained(job);
            next = self.next();
        }
    }

    /// The next job; `None` after a while without one; the thread then ends.
    fn next(&self) -> Option<Job> {
        let mut state = lock(&self.state);
        loop {
            if let Some(job) = state.queue.pop_front() {
                return Some(job);
            }
            state.idle += 1;
            self.freed.notify_all();
            let (again, timed_out) = wait_for(&self.queued, state, IDLE);
            state = again;
            state.idle -= 1;
            if timed_out && state.queue.is_empty() {
                state.threads -= 1;
                self.freed.notify_all();
                return None;
            }
        }
    }

    /// A call of `owner` has returned, or never began.
    fn ended(&self, owner: u64, was_abandoned: bool) {
        let mut state = lock(&self.state);
        if let Some(load) = state.loads.get_mut(&owner) {
            load.running -= 1;
            load.abandoned -= usize::from(was_abandoned);
            if load.running == 0 {
                state.loads.remove(&owner);
            }
        }
        self.freed.notify_all();
    }
}

impl State {
    fn load(&self, owner: Option<u64>) -> Load {
        owner.and_then(|owner| self.loads.get(&owner)).copied().unwrap_or_default()
    }

    /// Whether a thread waits for which no job is queued yet.
    fn has_idle(&self) -> bool {
        self.idle > self.queue.len()
    }

    fn has_place(&self, owner: Option<u64>) -> bool {
        let running = self.load(owner).running;
        let max = if running == 0 { THREADS_MAX } else { THREADS };
        running < SHARE && (self.has_idle() || self.threads < max)
    }
}

fn wait_for<'s>(
    condvar: &Condvar,
    state: MutexGuard<'s, State>,
    time: Duration,
) -> (MutexGuard<'s, State>, bool) {
    let (state, waited) = condvar.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner);
    (state, waited.timed_out())
}

/// The result of `work`; `None` if it panics. The panic's payload may panic, too, when it is
/// dropped.
fn contained<T>(work: impl FnOnce() -> T) -> Option<T> {
    let mut payload = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(answer) => return Some(answer),
        Err(payload) => payload,
    };
    for _ in 0..3 {
        match catch_unwind(AssertUnwindSafe(move || drop(payload))) {
            Ok(()) => return None,
            Err(next) => payload = next,
        }
    }
    std::mem::forget(payload);
    None
}
