//! What SQLite asks of a VFS, over every base: what plain SQLite does there, `tde` does.

mod applications;
mod base_vfs;
mod calls;
mod copied_names;
mod last_error;
mod long_calls;
#[cfg(unix)]
mod long_names;
mod mapping;
mod query_only;
mod shared_cache;
