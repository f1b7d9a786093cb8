//! The end of a wait.

use std::time::{Duration, Instant};

/// The moment at which the caller stops waiting for an answer, if it ever does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// No deadline: a person is asked.
    pub const NEVER: Self = Self(None);

    /// `time` from now on; none if the clock cannot represent it.
    #[must_use]
    pub fn after(time: Duration) -> Self {
        Self(Instant::now().checked_add(time))
    }

    /// The moment itself; `None` if the caller waits without end.
    #[must_use]
    pub fn at(self) -> Option<Instant> {
        self.0
    }

    /// The time that is left: zero when it is over, `None` if the caller waits without end.
    #[must_use]
    pub fn time_left(self) -> Option<Duration> {
        self.0.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// The one of both that ends first.
    pub(super) fn earlier(self, other: Self) -> Self {
        Self(self.0.into_iter().chain(other.0).min())
    }

    /// The time that is left, in milliseconds, for a message.
    pub(crate) fn patience(self) -> Duration {
        let left = self.time_left().unwrap_or(Duration::MAX);
        let millis = left.saturating_add(Duration::from_micros(500)).as_millis();
        Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
    }

    /// Whether the caller has stopped waiting.
    #[must_use]
    pub fn is_over(self) -> bool {
        self.time_left().is_some_and(|left| left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_that_no_clock_reaches_is_none() {
        for (time, is_over, ends) in [
            (Duration::ZERO, true, true),
            (Duration::from_secs(9), false, true),
            (Duration::MAX, false, false),
        ] {
            let deadline = Deadline::after(time);
            assert_eq!(deadline.is_over(), is_over, "{time:?}");
            assert_eq!(deadline.at().is_some(), ends, "{time:?}");
            assert_eq!(deadline.time_left().is_some(), ends, "{time:?}");
        }
    }
}
