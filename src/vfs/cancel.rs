//! `pthread_cancel` of a thread that is inside a call. The C library unwinds such a thread at its
//! next system call, which Rust's frames do not allow and half-done work does not bear: within our
//! calls a thread is not cancelled, as SQLite's own mutexes would not bear it either. What is
//! pending takes effect at the host's next chance.

#[cfg(all(unix, not(target_os = "android")))]
mod state {
    use std::ffi::c_int;

    unsafe extern "C" {
        pub(super) fn pthread_setcancelstate(state: c_int, old: *mut c_int) -> c_int;
    }

    /// PTHREAD_CANCEL_DISABLE of `pthread.h`.
    pub(super) const DISABLE: c_int = if cfg!(target_vendor = "apple") { 0 } else { 1 };
}

/// While this lives, its thread is not cancelled.
pub(crate) struct Uncancelled {
    #[cfg(all(unix, not(target_os = "android")))]
    before: std::ffi::c_int,
}

impl Uncancelled {
    #[inline]
    pub(crate) fn new() -> Self {
        #[cfg(all(unix, not(target_os = "android")))]
        {
            let mut before = state::DISABLE;
            // SAFETY: `before` is written to within the call.
            unsafe { state::pthread_setcancelstate(state::DISABLE, &raw mut before) };
            Self { before }
        }
        #[cfg(not(all(unix, not(target_os = "android"))))]
        Self {}
    }
}

#[cfg(all(unix, not(target_os = "android")))]
impl Drop for Uncancelled {
    #[inline]
    fn drop(&mut self) {
        if self.before != state::DISABLE {
            // SAFETY: NULL is allowed for the old state on the systems of this build.
            unsafe { state::pthread_setcancelstate(self.before, std::ptr::null_mut()) };
        }
    }
}
