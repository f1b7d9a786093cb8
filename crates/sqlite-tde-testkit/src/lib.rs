//! What the tests of sqlite-tde share.
//!
//! | module | has |
//! |---|---|
//! | `home` | a keystore and a VFS of a test's own |
//! | `database` | connections to compare, dumps, checks |
//! | `files` | files beside a database, directories |
//! | `vfs` | the test VFS, its properties, and those that record calls and fail one |
//! | `between` | properties that show each call before and after it |
//! | `platform` | the methods and habits of other platforms |
//! | `power` | a disk in memory that loses power |
//! | `process` | the test binary started again with a task |
//! | `random` | seeded random numbers |
//! | `service` | a key service that can be switched off |
//! | `stranger` | programs without the library, beside ours |
//! | `twin` | an encrypted database and a plain one that say what a change must do |
//! | `bank` | transfers between accounts by many processes and threads |
//! | `scan` | a search for keys in the memory of a process |

pub mod bank;
#[cfg(unix)]
pub mod between;
mod database;
mod files;
mod home;
pub mod platform;
pub mod power;
pub mod process;
pub mod random;
#[cfg(target_os = "linux")]
pub mod scan;
pub mod service;
#[cfg(unix)]
pub mod stranger;
#[cfg(unix)]
pub mod twin;
pub mod vfs;

pub use database::*;
pub use files::*;
pub use home::*;
