//! The shared memory that connections of this process use as the index of a write-ahead log. It is
//! on no disk.

use rusqlite::ffi;

/// Memory and locks of one database file.
#[derive(Default)]
pub struct Shm {
    /// SQLite writes to it through pointers that it got; nothing here looks inside.
    regions: Vec<Box<[u64]>>,
    /// Handles with the slots they have locked, one bit each: shared, exclusive.
    locks: Vec<(usize, u16, u16)>,
}

impl Shm {
    /// Region `index` of `size` bytes, if it is there or may be made.
    pub fn map(
        &mut self,
        handle: usize,
        index: usize,
        size: usize,
        extend: bool,
    ) -> Option<*mut u64> {
        if !self.locks.iter().any(|lock| lock.0 == handle) {
            self.locks.push((handle, 0, 0));
        }
        while extend && self.regions.len() <= index {
            self.regions.push(vec![0; size.div_ceil(8)].into());
        }
        self.regions.get_mut(index).map(|region| region.as_mut_ptr())
    }

    /// Takes or gives back slots `first..first + count`, as `flags` say.
    pub fn lock(&mut self, handle: usize, first: u32, count: u32, flags: i32) -> i32 {
        let mask = ((1_u16 << count) - 1) << first;
        if !self.locks.iter().any(|lock| lock.0 == handle) {
            self.locks.push((handle, 0, 0));
        }
        let exclusive = flags & ffi::SQLITE_SHM_EXCLUSIVE != 0;
        if flags & ffi::SQLITE_SHM_LOCK != 0 {
            let busy = self.locks.iter().any(|&(other, shared, excluded)| {
                let in_the_way = if exclusive { shared | excluded } else { excluded };
                other != handle && in_the_way & mask != 0
            });
            if busy {
                return ffi::SQLITE_BUSY;
            }
        }
        let Some((_, shared, excluded)) = self.locks.iter_mut().find(|lock| lock.0 == handle)
        else {
            return ffi::SQLITE_IOERR_SHMLOCK;
        };
        match (flags & ffi::SQLITE_SHM_LOCK != 0, exclusive) {
            (true, true) => *excluded |= mask,
            (true, false) => *shared |= mask,
            (false, _) => {
                *shared &= !mask;
                *excluded &= !mask;
            }
        }
        ffi::SQLITE_OK
    }

    /// The memory goes with the last connection that maps it.
    pub fn unmap(&mut self, handle: usize) {
        self.locks.retain(|lock| lock.0 != handle);
        if self.locks.is_empty() {
            self.regions.clear();
        }
    }
}
