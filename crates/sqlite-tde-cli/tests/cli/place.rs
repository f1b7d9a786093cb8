//! The command `sqlite-tde` in a directory of its own, as a shell sees it.
#![allow(dead_code)] // each test file uses its part

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// A directory with a home for keys and configuration.
pub struct Place(tempfile::TempDir);

impl Place {
    pub fn empty() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs the command with words that are parted by spaces; hard spaces become spaces in them.
    pub fn run(&self, line: &str) -> Output {
        let arguments = line.split(' ').map(|word| word.replace('\u{a0}', " "));
        Command::new(env!("CARGO_BIN_EXE_sqlite-tde"))
            .current_dir(self.0.path())
            .env("SQLITE_TDE_HOME", self.path("home"))
            .env("RAW_KEY", "ab".repeat(32))
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    pub fn ok(&self, line: &str) -> String {
        let Output { status, stdout, stderr } = self.run(line);
        assert!(status.success(), "{line}: {}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).unwrap()
    }

    pub fn fails(&self, line: &str, code: i32, words: &str) {
        let Output { status, stderr, .. } = self.run(line);
        let said = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(code), "{line}: {said}");
        assert!(said.contains(words), "{line}: {words:?} is not in {said}");
    }

    pub fn json(&self, line: &str) -> serde_json::Value {
        serde_json::from_str(&self.ok(line)).unwrap()
    }

    /// Makes `app.db` with a table.
    pub fn create(&self) {
        self.ok("sql --create app.db CREATE\u{a0}TABLE\u{a0}t(a)");
    }
}
