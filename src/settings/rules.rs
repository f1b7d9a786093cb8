//! What holds where a setting was demanded and another value is said; `None` where that would be
//! weaker.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Derivation;
use super::identity::Pins;

/// The later value holds, whatever it is.
pub(super) fn replace<T: Clone>(_: &T, now: &T) -> Option<T> {
    Some(now.clone())
}

/// `strict`, once demanded, stays.
pub(super) fn stays<T: Copy + PartialEq>(strict: T) -> impl FnOnce(&T, &T) -> Option<T> {
    move |demanded, now| (*demanded != strict || *now == strict).then_some(*now)
}

fn unless<T: Clone>(weaker: bool, now: &T) -> Option<T> {
    (!weaker).then(|| now.clone())
}

/// A span must not become longer.
pub(super) fn no_longer(demanded: &Duration, now: &Duration) -> Option<Duration> {
    unless(now > demanded, now)
}

/// An interval must not become longer; `None`, for never, is the longest.
pub(super) fn no_rarer(
    demanded: &Option<Duration>,
    now: &Option<Duration>,
) -> Option<Option<Duration>> {
    let span = |interval: &Option<Duration>| interval.unwrap_or(Duration::MAX);
    unless(span(now) > span(demanded), now)
}

/// A number must not become smaller.
pub(super) fn no_smaller(demanded: &u32, now: &u32) -> Option<u32> {
    unless(now < demanded, now)
}

/// A list must not get other members, nor be dropped.
pub(super) fn subset<T: Clone + PartialEq>(
    demanded: &Option<Vec<T>>,
    now: &Option<Vec<T>>,
) -> Option<Option<Vec<T>>> {
    let weaker = demanded.as_ref().is_some_and(|demanded| {
        now.as_ref().is_none_or(|now| now.iter().any(|name| !demanded.contains(name)))
    });
    unless(weaker, now)
}

/// No limit must grow.
pub(super) fn within(demanded: &Derivation, now: &Derivation) -> Option<Derivation> {
    unless(now.memory_kib > demanded.memory_kib || now.work_kib > demanded.work_kib, now)
}

/// What was demanded stays, and nothing else takes its place.
pub(super) fn exactly<T: Clone + PartialEq>(
    demanded: &Option<T>,
    now: &Option<T>,
) -> Option<Option<T>> {
    unless(demanded.is_some() && demanded != now, now)
}

/// Both hold. A path has one database; a protector may get fewer of them.
pub(super) fn both(demanded: &Pins, now: &Pins) -> Option<Pins> {
    fn all<K: Ord + Clone, V: Clone>(
        (demanded, now): (&BTreeMap<K, V>, &BTreeMap<K, V>),
        weaker: impl Fn(&V, &V) -> bool,
    ) -> Option<BTreeMap<K, V>> {
        let clash = demanded
            .iter()
            .any(|(key, value)| now.get(key).is_some_and(|other| weaker(value, other)));
        let mut all = demanded.clone();
        all.extend(now.iter().map(|(key, value)| (key.clone(), value.clone())));
        (!clash).then_some(all)
    }
    let paths = all((&demanded.paths, &now.paths), |one, other| one != other)?;
    let protectors = all((&demanded.protectors, &now.protectors), |one, other| {
        other.iter().any(|id| !one.contains(id))
    })?;
    Some(Pins { paths, protectors })
}
