//! Recognises VFSs of this library, of any copy of it: none of them may be the base of another, or
//! pages would be encrypted twice and be unreadable to each of them alone.
//!
//! One process can hold several copies of the library, loaded from different files; nothing in
//! their memory may be touched. They are asked through SQLite's own interface, and every other VFS
//! answers that it does not know the question:
//!
//! | target | question | answer |
//! |---|---|---|
//! | a VFS | xNextSystemCall([`ASK_NAME`]) | the name of the VFS of ours that is asked |
//! | the same | xNextSystemCall([`ASK_BASE`]) | the name of its base VFS |
//! | an open file | xFileControl([`WHO`]) | [`OURS`], in the integer that the argument points to |
//!
//! A VFS between two of ours may pass on the one question and not the other.

use std::ffi::{CStr, c_char, c_int};
use std::ptr;

use crate::ffi;

use super::api;
use super::base::BaseFile;
use crate::error::{Error, Result};

const ASK_NAME: &CStr = c"sqlite-tde: name";
const ASK_BASE: &CStr = c"sqlite-tde: base";

/// SQLite leaves file-controls above 100 to others.
pub(super) const WHO: c_int = 0x7de0_0001;
const OURS: u64 = u64::from_be_bytes(*b"sqlt-tde");

/// VFSs of ours on top of each other, as copies of before this rule may have been.
const DEEPEST: usize = 16;

/// Answers a question for the VFS of ours called `own` over the base called `base`; null for any
/// other argument.
///
/// # Safety
/// `question` is NULL or NUL-terminated.
pub(super) unsafe fn answer(
    question: *const c_char,
    own: *const c_char,
    base: *const c_char,
) -> *const c_char {
    if question.is_null() {
        return ptr::null();
    }
    // SAFETY: as above.
    match unsafe { CStr::from_ptr(question) } {
        ask if ask == ASK_NAME => own,
        ask if ask == ASK_BASE => base,
        _ => ptr::null(),
    }
}

/// Answers [`WHO`].
///
/// # Safety
/// `out` is NULL or points to an integer.
pub(super) unsafe fn answer_who(out: *mut u64) -> c_int {
    // SAFETY: as above.
    match unsafe { out.as_mut() } {
        Some(out) => {
            *out = OURS;
            ffi::SQLITE_OK
        }
        None => ffi::SQLITE_NOTFOUND,
    }
}

/// # Safety
/// `vfs` is registered.
unsafe fn ask<'a>(vfs: *mut ffi::sqlite3_vfs, question: &CStr) -> Option<&'a CStr> {
    // SAFETY: as above; a VFS of version 3 has this method, which takes any name. The answer is
    // NULL or the name of a VFS, which lives as long as that is registered.
    unsafe {
        let method = if (*vfs).iVersion >= 3 { (*vfs).xNextSystemCall } else { None };
        let answer = method?(vfs, question.as_ptr());
        (!answer.is_null()).then(|| CStr::from_ptr(answer))
    }
}

/// Whether `vfs` is one of ours or, as far as it passes questions on, stands on one.
///
/// # Safety
/// `vfs` is NULL or registered.
pub(super) unsafe fn is_kin(vfs: *mut ffi::sqlite3_vfs) -> bool {
    // SAFETY: as above.
    !vfs.is_null() && unsafe { ask(vfs, ASK_NAME) }.is_some()
}

/// The base for a new VFS of ours: the VFS called `wanted`, or, if none is named, the default one;
/// if that is one of ours, its base.
///
/// # Errors
/// [`Error::Usage`] if the VFS does not exist, is one of ours, or stands on one of ours.
pub(super) fn base_for(wanted: Option<&CStr>) -> Result<*mut ffi::sqlite3_vfs> {
    let mut vfs = api::find_vfs(wanted);
    for _ in 0..DEEPEST {
        if vfs.is_null() {
            let name = wanted.map_or("default".into(), CStr::to_string_lossy);
            return Err(Error::Usage(format!("there is no VFS called {name}")));
        }
        // SAFETY: sqlite3_vfs_find answers registered VFSs, whose names live as long.
        let (ours, own) = unsafe { (ask(vfs, ASK_NAME), CStr::from_ptr((*vfs).zName)) };
        let Some(ours) = ours else { return Ok(vfs) };
        let (ours, name) = (ours.to_string_lossy(), own.to_string_lossy());
        if wanted.is_some() {
            return Err(Error::Usage(format!(
                "the VFS {name} encrypts already, by {ours}: name the VFS below it as the base"
            )));
        }
        if ours != name {
            return Err(Error::Usage(format!(
                "the default VFS {name} stands on {ours}, which encrypts already: register {name} \
                 after every VFS that encrypts, or name the base"
            )));
        }
        // SAFETY: as above.
        let base = unsafe { ask(vfs, ASK_BASE) };
        vfs = base.map_or(ptr::null_mut(), |base| api::find_vfs(Some(base)));
    }
    Err(Error::Usage("VFSs that encrypt stand on each other".into()))
}

/// Refuses a base file that is one of ours, or stands on one.
///
/// # Errors
/// [`Error::Usage`].
pub(super) fn refuse_kin(base: &BaseFile) -> Result<()> {
    let mut answer = 0_u64;
    let out: *mut u64 = &mut answer;
    // SAFETY: VFSs that know this file-control write one integer.
    let code = unsafe { base.file_control(WHO, out.cast()) };
    if code == ffi::SQLITE_OK && answer == OURS {
        return Err(Error::Usage(
            "the base VFS stands on another VFS that encrypts: every page would be enciphered twice"
                .into(),
        ));
    }
    Ok(())
}
