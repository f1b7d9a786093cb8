//! Calls of the base VFS that fail, and full disks: no error is lost, and no commit.

mod calls;
mod keys;
mod rollbacks;
mod syncs;
