//! Times: whole Unix seconds on disk and in JSON, `SystemTime` in the API.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};

/// The last second that can be written as a date: the 30th of December 9999, 22:00 UTC.
pub(crate) const LAST_SECOND: u64 = 253_402_207_200;

/// The time in Unix seconds; 0 for a clock that is set before.
pub(crate) fn now() -> u64 {
    seconds(SystemTime::now())
}

/// `time` in Unix seconds, rounded down; 0 for one before 1970.
pub(crate) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// The time `seconds` after 1970, or [`LAST_SECOND`] if it is later than that.
pub(crate) fn system_time(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds.min(LAST_SECOND))
}

/// As [`system_time`], where 0 stands for never.
pub(crate) fn unless_never(seconds: u64) -> Option<SystemTime> {
    (seconds != 0).then(|| system_time(seconds))
}

/// Serialises a time as Unix seconds, and none as 0.
pub(crate) fn or_zero<T, S>(time: &T, to: S) -> Result<S::Ok, S::Error>
where
    T: Into<Option<SystemTime>> + Copy,
    S: Serializer,
{
    to.serialize_u64((*time).into().map_or(0, seconds))
}

/// Serialises a time as Unix seconds, and none as null.
pub(crate) fn or_null<S: Serializer>(time: &Option<SystemTime>, to: S) -> Result<S::Ok, S::Error> {
    time.map(seconds).serialize(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_outside_the_calendar_are_its_ends() {
        for (given, kept) in [(0, 0), (1, 1), (LAST_SECOND, LAST_SECOND), (u64::MAX, LAST_SECOND)] {
            assert_eq!(seconds(system_time(given)), kept);
        }
        assert_eq!(seconds(UNIX_EPOCH - Duration::from_nanos(1)), 0);
        assert_eq!(seconds(UNIX_EPOCH + Duration::from_millis(1999)), 1);
        assert_eq!(unless_never(0), None);
    }
}
