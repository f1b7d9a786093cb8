//! The command's state that other processes may see while it runs.
#![cfg(target_os = "linux")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use sqlite_tde_testkit::process::as_nobody;

/// A process that may not be dumped belongs to root, for any user.
#[test]
fn the_command_line_may_be_neither_dumped_nor_traced() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = as_nobody(Path::new(env!("CARGO_BIN_EXE_sqlite-tde")), dir.path());
    command.args(["sql", "--create", "new.db"]).current_dir(dir.path());
    command.env("SQLITE_TDE_HOME", dir.path().join("keys"));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // It opens the database first, and then waits for the end of its input.
    let mut steps = child.stdin.take().unwrap();
    steps.write_all(b"SELECT 1").unwrap();
    let process = PathBuf::from(format!("/proc/{}", child.id()));
    while !dir.path().join("new.db").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended");
        std::thread::sleep(Duration::from_millis(5));
    }
    let limits = fs::read_to_string(process.join("limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().rev().nth(1), Some("0"), "{core}");
    assert_eq!(fs::metadata(process.join("mem")).unwrap().uid(), 0);
    drop(steps);
    assert!(child.wait().unwrap().success());
}
