//! Files that somebody without the key changed, cut, exchanged or put back, closed and while open.

#[cfg(unix)]
mod cut_files;
#[cfg(unix)]
mod database;
#[cfg(unix)]
mod emptied_files;
#[cfg(unix)]
mod hot_journals;
#[cfg(unix)]
mod journal;
#[cfg(unix)]
mod journal_replay;
#[cfg(unix)]
mod live;
#[cfg(unix)]
mod log;
#[cfg(unix)]
mod plain_remains;
#[cfg(unix)]
mod restores;
#[cfg(unix)]
mod rolled_back;
