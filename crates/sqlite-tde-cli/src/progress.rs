//! Progress bars and spinners. indicatif draws nothing if stderr is no terminal.

use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

const INTERVAL: Duration = Duration::from_millis(200);

/// A bar by pages.
pub struct Pages(ProgressBar);

impl Pages {
    /// A bar that shows nothing yet.
    pub fn new() -> Self {
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} pages, {eta} left")
        {
            bar.set_style(style);
        }
        Self(bar)
    }

    /// `done` pages of `all`.
    pub fn show(&self, done: u64, all: u64) {
        self.0.set_length(all);
        self.0.set_position(done);
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Runs `work` on this thread while another one shows how large `file` has grown.
pub fn while_growing<T>(what: &str, file: &Path, work: impl FnOnce() -> T) -> T {
    let spinner = ProgressBar::new_spinner();
    if spinner.is_hidden() {
        return work();
    }
    let (done, wait) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            while wait_more(&wait) {
                let size = std::fs::metadata(file).map_or(0, |metadata| metadata.len());
                spinner.set_message(format!("{what} {}", HumanBytes(size)));
                spinner.tick();
            }
            spinner.finish_and_clear();
        });
        let answer = work();
        drop(done);
        answer
    })
}

fn wait_more(wait: &mpsc::Receiver<()>) -> bool {
    matches!(wait.recv_timeout(INTERVAL), Err(RecvTimeoutError::Timeout))
}
