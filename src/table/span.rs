//! Spans of time as people write them: `200ms`, `10m`, `1h 30m`, `7d`.

use std::time::Duration;

use jiff::{Span, SpanRelativeTo};

/// The span of time that `text` says, in units up to weeks; a day has 24 hours. `None` for what is
/// no span, is negative, or has months or years, which have no fixed length.
#[must_use]
pub fn duration(text: &str) -> Option<Duration> {
    let span: Span = text.parse().ok()?;
    span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_as_people_write_them() {
        let minute = 60_000;
        for (text, ms) in [
            ("200ms", Some(200)),
            ("0s", Some(0)),
            ("10m", Some(10 * minute)),
            ("1h 30m", Some(90 * minute)),
            ("24 hours", Some(24 * 60 * minute)),
            ("7d", Some(7 * 24 * 60 * minute)),
            ("2w", Some(14 * 24 * 60 * minute)),
            ("", None),
            ("10", None),
            ("-1h", None),
            ("1 month", None),
            ("1y", None),
            ("ten minutes", None),
        ] {
            assert_eq!(duration(text), ms.map(Duration::from_millis), "{text:?}");
        }
    }
}
