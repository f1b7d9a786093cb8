//! Threads of ours in a process that is not ours. They block all signals, so that no handler of the
//! host's runs on them, and call nothing of SQLite's.

use std::cell::Cell;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Runs its argument while this thread, and with it each that it starts, blocks all signals.
type WithoutSignals = fn(&mut dyn FnMut());

static WITHOUT_SIGNALS: OnceLock<WithoutSignals> = OnceLock::new();

/// Blocks signals by `block` from now on.
pub(crate) fn block_signals_by(block: WithoutSignals) {
    let _ = WITHOUT_SIGNALS.set(block);
}

/// The number of this thread, which no other one of the process gets.
pub(crate) fn number() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    if NUMBER.get() == 0 {
        NUMBER.set(LAST.fetch_add(1, Ordering::Relaxed) + 1);
    }
    NUMBER.get()
}

thread_local! {
    static NUMBER: Cell<u64> = const { Cell::new(0) };
}

/// More than the standard library allocates for one.
const MEMORY: usize = 256 << 10;

/// Starts a thread.
///
/// # Errors
/// The operating system's.
pub(crate) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    // Where the standard library finds no memory for a thread's handle, it ends the process.
    if Vec::<u8>::new().try_reserve_exact(MEMORY).is_err() {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    let mut builder = Some((std::thread::Builder::new().name(name.to_owned()), work));
    let mut spawned = Ok(());
    let mut spawn = || {
        if let Some((builder, work)) = builder.take() {
            spawned = builder.spawn(work).map(drop);
        }
    };
    match WITHOUT_SIGNALS.get() {
        Some(block) => block(&mut spawn),
        None => spawn(),
    }
    spawned
}
