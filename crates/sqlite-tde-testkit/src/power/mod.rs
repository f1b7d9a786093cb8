//! A base VFS that loses its power: files in memory, a log of what was done to them, and from that
//! log the images that a power loss may leave on the disk.
//!
//! | file | what |
//! |---|---|
//! | `disk.rs` | files by name, their locks, and the log |
//! | `shm.rs` | the shared memory of a write-ahead log and the locks on it |
//! | `vfs.rs` | the same as properties of the test VFS |
//! | `image.rs` | from a log and a point in it to what a disk may hold |
//!
//! Each VFS has a name and a disk of its own; the disk can be exchanged between two connections.

mod disk;
mod image;
mod shm;
mod vfs;

pub use disk::{Disk, Entry, Files, Lie, Op};
pub use image::{History, Image};
pub use vfs::PowerVfs;
