//! Signals are the host's: no handler of its runs on our threads.

/// Runs `work` while this thread blocks all signals. A thread that is started meanwhile blocks them
/// for as long as it lives.
#[cfg(unix)]
pub(super) fn blocked(work: &mut dyn FnMut()) {
    let mut before = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: both are sets of the right type; the first call fills `all`, and `pthread_sigmask`
    // fills `before` where it answers 0.
    let is_blocked = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) == 0
    };
    work();
    if is_blocked {
        // SAFETY: `before` was filled above.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut());
        }
    }
}

/// Elsewhere handlers run on threads of their own.
#[cfg(not(unix))]
pub(super) fn blocked(work: &mut dyn FnMut()) {
    work();
}
