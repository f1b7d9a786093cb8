//! The phase of an open database, deduced from SQLite's calls.
//!
//! | phase | begins when | ends when |
//! |---|---|---|
//! | `CommitRefused` | a commit is refused | the journal is read, or a transaction begins |
//! | `Rollback`, own | SQLite reads the journal's header | see below |
//! | `Rollback`, hot | SQLite opens a hot journal for writing | the journal is changed or closed |
//! | `Checkpoint` | `SQLITE_FCNTL_CKPT_START` | `SQLITE_FCNTL_CKPT_DONE` |
//! | `Ordinary` | none of the others holds | |
//!
//! The rollback of a connection's own journal ends when the journal is changed or closed, at the
//! latest when the next transaction begins.
//! SQLite does not say that it rolls back: it opens the journal, or reads it from its beginning.

use crate::page::PageNo;

/// The phase of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Phase {
    /// Nothing, reading, or a transaction that goes forward.
    #[default]
    Ordinary,
    /// A commit was refused. SQLite rolls back, perhaps from a journal in memory, and then asks for
    /// a commit once more.
    CommitRefused,
    /// A journal is played back: one that a crash left (`hot`), or that of this connection.
    Rollback {
        hot: bool,
        /// The playback has written to the database file.
        restored: bool,
    },
    Checkpoint(Checkpoint),
}

/// A checkpoint that has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Checkpoint {
    /// The last page that it will write; `None` if unknown.
    pub(crate) last_page: Option<PageNo>,
    /// The slots announce its frames.
    pub(crate) noted: bool,
    /// The log may have been begun anew since SQLite read the wal-index: nothing may be written.
    pub(crate) void: bool,
}

impl Phase {
    /// SQLite opens a hot journal for writing, or takes EXCLUSIVE to play back one that it kept
    /// open.
    pub(crate) fn hot_journal(&mut self) {
        *self = Self::Rollback { hot: true, restored: false };
    }

    /// The header of the journal is read: SQLite plays it back, or checks whether it must.
    pub(crate) fn journal_read(&mut self) {
        if !matches!(self, Self::Rollback { .. }) {
            *self = Self::Rollback { hot: false, restored: false };
        }
    }

    /// The journal is written, cut or closed: its playback is over or was given up.
    pub(crate) fn journal_changed(&mut self) {
        if let Self::Rollback { .. } = self {
            *self = Self::Ordinary;
        }
    }

    /// A transaction begins. The playback of a hot journal goes on beside that.
    pub(crate) fn transaction_begins(&mut self) {
        if matches!(self, Self::CommitRefused | Self::Rollback { hot: false, .. }) {
            *self = Self::Ordinary;
        }
    }

    /// A page was written.
    pub(crate) fn page_written(&mut self) {
        if let Self::Rollback { restored, .. } = self {
            *restored = true;
        }
    }

    pub(crate) fn checkpoint_ends(&mut self) {
        if let Self::Checkpoint(_) = self {
            *self = Self::Ordinary;
        }
    }

    /// Whether pages go back to what they were, which no denial of the keys may stop.
    pub(crate) fn is_undoing(&self) -> bool {
        matches!(self, Self::CommitRefused | Self::Rollback { .. })
    }

    /// Whether a journal that a crash left is played back.
    pub(crate) fn is_hot_rollback(&self) -> bool {
        matches!(self, Self::Rollback { hot: true, .. })
    }

    /// Whether a playback of such a journal has written pages.
    pub(crate) fn has_restored(&self) -> bool {
        matches!(self, Self::Rollback { hot: true, restored: true })
    }

    pub(crate) fn checkpoint(&mut self) -> Option<&mut Checkpoint> {
        if let Self::Checkpoint(checkpoint) = self { Some(checkpoint) } else { None }
    }

    /// The checkpoint that has begun, as it is.
    pub(crate) fn in_checkpoint(&self) -> Checkpoint {
        if let Self::Checkpoint(checkpoint) = self { *checkpoint } else { Checkpoint::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every step from every phase, and the expected result.
    #[test]
    fn each_step_leads_to_one_phase() {
        const HOT: Phase = Phase::Rollback { hot: true, restored: false };
        const OWN: Phase = Phase::Rollback { hot: false, restored: false };
        const WRITTEN: Phase = Phase::Rollback { hot: true, restored: true };
        let checkpoint = Phase::Checkpoint(Checkpoint { noted: true, ..Checkpoint::default() });
        let (ordinary, refused) = (Phase::Ordinary, Phase::CommitRefused);
        type Step = fn(&mut Phase);
        let rows: [(&str, Step, [(Phase, Phase); 6]); 6] = [
            (
                "a hot journal is opened",
                Phase::hot_journal,
                [ordinary, refused, OWN, HOT, WRITTEN, checkpoint].map(|from| (from, HOT)),
            ),
            (
                "the journal's header is read",
                Phase::journal_read,
                [
                    (ordinary, OWN),
                    (refused, OWN),
                    (OWN, OWN),
                    (HOT, HOT),
                    (WRITTEN, WRITTEN),
                    (checkpoint, OWN),
                ],
            ),
            (
                "the journal is changed",
                Phase::journal_changed,
                [
                    (ordinary, ordinary),
                    (refused, refused),
                    (OWN, ordinary),
                    (HOT, ordinary),
                    (WRITTEN, ordinary),
                    (checkpoint, checkpoint),
                ],
            ),
            (
                "a transaction begins",
                Phase::transaction_begins,
                [
                    (ordinary, ordinary),
                    (refused, ordinary),
                    (OWN, ordinary),
                    (HOT, HOT),
                    (WRITTEN, WRITTEN),
                    (checkpoint, checkpoint),
                ],
            ),
            (
                "a page is written",
                Phase::page_written,
                [
                    (ordinary, ordinary),
                    (refused, refused),
                    (OWN, Phase::Rollback { hot: false, restored: true }),
                    (HOT, WRITTEN),
                    (WRITTEN, WRITTEN),
                    (checkpoint, checkpoint),
                ],
            ),
            (
                "a checkpoint ends",
                Phase::checkpoint_ends,
                [
                    (ordinary, ordinary),
                    (refused, refused),
                    (OWN, OWN),
                    (HOT, HOT),
                    (WRITTEN, WRITTEN),
                    (checkpoint, ordinary),
                ],
            ),
        ];
        for (what, step, cases) in rows {
            for (from, to) in cases {
                let mut phase = from;
                step(&mut phase);
                assert_eq!(phase, to, "{what}, from {from:?}");
            }
        }
    }
}
