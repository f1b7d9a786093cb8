//! Threads of ours in a process that is not ours. They block all signals, so that no handler of the
//! host's runs on them, and call nothing of SQLite's.

use std::io;
use std::sync::OnceLock;

/// Runs its argument while this thread, and with it each that it starts, blocks all signals.
type WithoutSignals = fn(&mut dyn FnMut());

static WITHOUT_SIGNALS: OnceLock<WithoutSignals> = OnceLock::new();

/// Blocks signals by `block` from now on.
pub(crate) fn block_signals_by(block: WithoutSignals) {
    let _ = WITHOUT_SIGNALS.set(block);
}

/// Starts a thread.
///
/// # Errors
/// The operating system's.
pub(crate) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
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
