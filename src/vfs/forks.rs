//! The page that tells a forked child from its parent, and the handler beside it; see
//! [`crate::process::forks`].

use std::sync::Once;

use crate::process::forks;

/// Watches forks from now on.
pub(crate) fn watch() {
    static WATCH: Once = Once::new();
    WATCH.call_once(|| {
        crate::secret::find_generator();
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if let Some(place) = wiped_on_fork() {
            forks::watch(place);
        }
        #[cfg(unix)]
        // SAFETY: the handler only writes to an atomic, which is allowed in a forked child.
        unsafe {
            libc::pthread_atfork(None, None, Some(in_forked_child));
        }
    });
}

#[cfg(unix)]
unsafe extern "C" fn in_forked_child() {
    forks::forked();
}

/// Memory that is zero in each child of this process; `None` if the kernel does not support it. One
/// page for the process, which is never given back.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn wiped_on_fork() -> Option<&'static std::sync::atomic::AtomicU64> {
    use std::ptr;
    use std::sync::atomic::AtomicU64;

    const LEN: usize = size_of::<AtomicU64>();
    // SAFETY: a new private mapping, used only here.
    unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let page = libc::mmap(ptr::null_mut(), LEN, protection, flags, -1, 0);
        if page == libc::MAP_FAILED {
            return None;
        }
        // Emulators answer success to any advice, so one that does not exist must be refused first.
        let is_judged = libc::madvise(page, LEN, -1) != 0;
        if !is_judged || libc::madvise(page, LEN, libc::MADV_WIPEONFORK) != 0 {
            libc::munmap(page, LEN);
            return None;
        }
        // It is aligned to a page, holds zeros, and stays for as long as the process.
        Some(AtomicU64::from_ptr(page.cast()))
    }
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    /// Clones the process by a system call that no handler sees. Answers the child's exit code.
    fn in_clone(child: impl FnOnce() -> i32) -> i32 {
        // SAFETY: the child has memory of its own, and only looks at atomics and clones itself
        // before it ends, which needs no lock that another thread of this process may hold.
        unsafe {
            match libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) {
                0 => libc::_exit(child()),
                id => {
                    let mut status = 0;
                    assert_eq!(libc::waitpid(id as libc::pid_t, &raw mut status, 0) as i64, id);
                    assert!(libc::WIFEXITED(status), "{status:#x}");
                    libc::WEXITSTATUS(status)
                }
            }
        }
    }

    #[test]
    fn the_page_is_wiped_in_children_and_theirs() {
        let place = wiped_on_fork().expect("this kernel wipes pages");
        place.store(5, Ordering::Relaxed);
        let code = in_clone(|| {
            let first = place.swap(7, Ordering::Relaxed);
            let second = in_clone(|| place.load(Ordering::Relaxed) as i32);
            (first + u64::from(place.load(Ordering::Relaxed) != 7)) as i32 + second
        });
        assert_eq!(code, 0);
        assert_eq!(place.load(Ordering::Relaxed), 5, "the parent keeps its number");
    }

    #[test]
    fn a_clone_has_a_number_of_its_own() {
        watch();
        let number = forks::process();
        assert_eq!(number, forks::process());
        let code = in_clone(|| {
            let child = forks::process();
            let grandchild = in_clone(move || {
                let own = forks::process();
                i32::from(own == number || own == child || own != forks::process())
            });
            i32::from(child == number || child != forks::process()) + grandchild
        });
        assert_eq!(code, 0);
        assert_eq!(number, forks::process(), "the parent keeps its number");
    }
}
