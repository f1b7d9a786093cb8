//! The suite must find what is wrong: a provider that is sound, and one for each way not to be.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::ThreadId;

use super::checks::kind;
use super::*;
use crate::provider::wrap::{self, MECHANISM};
use crate::provider::{
    Answer, Context, ProviderError, UnwrapRequest, VersionRequest, WrapRequest, Wrapped,
};
use crate::secret::Secret;

const CONTEXT: Context = Context { file_id: [0; 16], dek_version: 0 };
const PIN: &[u8] = b"1234-5678";

type Said<T> = Result<T, ProviderError>;
type Wrap = fn(&Sound, &str, &Secret, &Context) -> Said<Wrapped>;
type Unwrap = fn(&Sound, &str, &Wrapped, &Context) -> Said<Secret>;

/// Keys `app` and `other` with two versions each, in memory.
struct Sound {
    keys: Vec<Secret>,
    newest: AtomicU32,
    disabled: AtomicBool,
    cut: AtomicBool,
    forgot: AtomicBool,
    maker: ThreadId,
    seen: Mutex<Vec<(Vec<u8>, Wrapped)>>,
}

impl Sound {
    fn new() -> Self {
        Self {
            keys: (0..4).map(|_| Secret::random().unwrap()).collect(),
            newest: AtomicU32::new(1),
            disabled: AtomicBool::new(false),
            cut: AtomicBool::new(false),
            forgot: AtomicBool::new(false),
            maker: std::thread::current().id(),
            seen: Mutex::default(),
        }
    }

    fn check(&self, key_id: &str) -> Said<()> {
        if self.cut.load(Ordering::SeqCst) {
            return Err(ProviderError::unreachable("no answer".to_owned()));
        }
        if !["app", "other"].contains(&key_id) {
            return Err(ProviderError::not_here(format!("no key {key_id}")));
        }
        if self.disabled.load(Ordering::SeqCst) {
            return Err(ProviderError::denied(format!("key {key_id} is disabled")));
        }
        Ok(())
    }

    fn key(&self, key_id: &str, version: u32) -> &Secret {
        &self.keys[usize::from(key_id == "other") * 2 + version as usize - 1]
    }

    fn wrap_under(&self, version: u32, key_id: &str, dek: &Secret, to: &Context) -> Said<Wrapped> {
        self.check(key_id)?;
        let blob = wrap::seal(self.key(key_id, version), &wrap::aad(to, key_id, version), dek)?;
        let mechanism = MECHANISM.to_owned();
        let wrapped = Wrapped { key_version: version.to_string(), mechanism, blob };
        self.seen.lock().unwrap().push((dek.expose().to_vec(), wrapped.clone()));
        Ok(wrapped)
    }

    fn version(&self) -> u32 {
        self.newest.load(Ordering::SeqCst)
    }

    fn wrap(&self, key_id: &str, dek: &Secret, context: &Context) -> Said<Wrapped> {
        self.wrap_under(self.version(), key_id, dek, context)
    }

    fn unwrap(&self, key_id: &str, wrapped: &Wrapped, context: &Context) -> Said<Secret> {
        self.check(key_id)?;
        self.open(key_id, wrapped, context)
    }

    fn open(&self, key_id: &str, wrapped: &Wrapped, context: &Context) -> Said<Secret> {
        wrapped.expect(MECHANISM)?;
        let version = match &*wrapped.key_version {
            "1" => 1,
            "2" => 2,
            _ => return Err(ProviderError::not_here("no such version".to_owned())),
        };
        let aad = wrap::aad(context, key_id, version);
        wrap::open(self.key(key_id, version), &aad, &wrapped.blob)?
            .ok_or_else(|| ProviderError::wrong_key("it did not wrap this".to_owned()))
    }

    fn newest(&self, key_id: &str) -> Said<String> {
        self.check(key_id).map(|()| self.version().to_string())
    }

    /// `wrapped` with the first byte of its blob as it was once.
    fn mended(&self, wrapped: &Wrapped) -> Wrapped {
        let blob = self.like(&wrapped.blob).map_or_else(|| wrapped.blob.clone(), |w| w.blob);
        Wrapped { blob, ..wrapped.clone() }
    }

    /// The key that was wrapped to `blob`, or to one that differs in its first byte.
    fn like(&self, blob: &[u8]) -> Option<Wrapped> {
        let seen = self.seen.lock().unwrap();
        let mut wrapped = seen.iter().map(|(_, wrapped)| wrapped);
        wrapped.find(|w| blob.len() > 1 && w.blob[1..] == blob[1..]).cloned()
    }
}

/// A sound provider of which one function is another.
struct Provider {
    sound: Sound,
    kind: &'static str,
    call: &'static str,
    wrap: Wrap,
    unwrap: Unwrap,
    newest: fn(&Sound, &str) -> Said<String>,
    forget: fn(&Sound),
}

impl Provider {
    fn sound() -> Self {
        Self {
            sound: Sound::new(),
            kind: "test",
            call: "service-1",
            wrap: Sound::wrap,
            unwrap: Sound::unwrap,
            newest: Sound::newest,
            forget: |_| (),
        }
    }

    /// The suite with all that it can be given.
    fn suite(&self) -> Conformance<'_> {
        let set = |flag: &'static str, to| {
            move || match flag {
                "cut" => self.sound.cut.store(to, Ordering::SeqCst),
                _ => self.sound.disabled.store(to, Ordering::SeqCst),
            }
        };
        Conformance::of(self, "app")
            .missing_key("nobody")
            .other_key("other")
            .rotate(|| self.sound.newest.store(2, Ordering::SeqCst))
            .switch(set("disabled", true), set("disabled", false))
            .outage(set("cut", true), set("cut", false))
            .secret(PIN)
    }
}

impl KeyProvider for Provider {
    fn kind(&self) -> &str {
        self.kind
    }

    fn wrap(&self, request: &WrapRequest<'_>) -> Result<Answer<Wrapped>, ProviderError> {
        let WrapRequest { key_id, dek, context, .. } = *request;
        let wrapped = (self.wrap)(&self.sound, key_id, dek, context)?;
        Ok(Answer::with_id(wrapped, self.call))
    }

    fn unwrap(&self, request: &UnwrapRequest<'_>) -> Result<Answer<Secret>, ProviderError> {
        let UnwrapRequest { key_id, wrapped, context, .. } = *request;
        (self.unwrap)(&self.sound, key_id, wrapped, context).map(Answer::from)
    }

    fn newest_version(
        &self,
        request: &VersionRequest<'_>,
    ) -> Result<Answer<String>, ProviderError> {
        let key_id = request.key_id;
        (self.newest)(&self.sound, key_id).map(Answer::from)
    }

    fn forget(&self) {
        (self.forget)(&self.sound);
    }
}

fn names(report: &Report, wanted: fn(&Outcome) -> bool) -> Vec<&'static str> {
    let checks = report.checks.iter().filter(|check| wanted(&check.outcome));
    checks.map(|check| check.name).collect()
}

fn failures(report: &Report) -> Vec<&'static str> {
    names(report, |outcome| matches!(outcome, Outcome::Failed(_)))
}

fn not_run(report: &Report) -> Vec<&'static str> {
    names(report, |outcome| matches!(outcome, Outcome::NotRun(_)))
}

/// An error of one kind told as another, in its own words.
fn turn(error: ProviderError, from: &str, to: impl Fn(String) -> ProviderError) -> ProviderError {
    if kind(&error) == from { to(error.to_string()) } else { error }
}

fn any_key() -> Said<Secret> {
    Ok(Secret::random().unwrap())
}

#[test]
fn a_sound_provider_passes_all() {
    let provider = Provider::sound();
    let report = assert_conforms(provider.suite());
    assert_eq!(not_run(&report), [""; 0]);
    let lines = report.to_string();
    assert_eq!(lines.lines().filter(|line| line.starts_with("passed   ")).count(), 20, "{lines}");
}

/// In the order of the checks; the one named is the first to fail.
#[test]
fn each_fault_is_found() {
    let rows: Vec<(&str, &str, fn(&mut Provider))> = vec![
        ("unwraps what it wrapped", "wraps nothing", |p| {
            p.wrap = |_, _, _, _| Err(ProviderError::Denied("never".into()));
        }),
        ("unwraps what it wrapped", "unwraps nothing", |p| {
            p.unwrap = |_, _, _, _| Err(ProviderError::WrongKey("never".into()));
        }),
        ("unwraps what it wrapped", "any key", |p| p.unwrap = |_, _, _, _| any_key()),
        ("kind, version, mechanism and blob are in bounds", "no kind", |p| p.kind = ""),
        ("kind, version, mechanism and blob are in bounds", "bell in a version", |p| {
            p.wrap = |s, id, dek, to| {
                Ok(Wrapped { key_version: "\u{7}".into(), ..s.wrap(id, dek, to)? })
            };
            p.unwrap = |s, id, wrapped, to| {
                s.unwrap(id, &Wrapped { key_version: "1".into(), ..wrapped.clone() }, to)
            };
        }),
        ("kind, version, mechanism and blob are in bounds", "a long blob", |p| {
            p.wrap = |s, id, dek, to| {
                let wrapped = s.wrap(id, dek, to)?;
                Ok(Wrapped { blob: [&wrapped.blob[..], &[0; 2000]].concat(), ..wrapped })
            };
            p.unwrap = |s, id, wrapped, to| {
                let blob = wrapped.blob.iter().copied().take(72).collect();
                s.unwrap(id, &Wrapped { blob, ..wrapped.clone() }, to)
            };
        }),
        ("wraps under the newest version", "another newest", |p| {
            p.newest = |_, _| Ok("2".into());
        }),
        ("wraps under the newest version", "no newest", |p| {
            p.newest = |_, _| Err(ProviderError::NotHere("none".into()));
        }),
        ("wraps the same key to different blobs", "the same blob", |p| {
            p.wrap = |s, id, dek, to| {
                let seen = s.seen.lock().unwrap().clone();
                let found = seen.iter().find(|(key, _)| key == dek.expose());
                found.map_or_else(|| s.wrap(id, dek, to), |(_, wrapped)| Ok(wrapped.clone()))
            };
        }),
        ("refuses another context", "any context", |p| {
            p.wrap = |s, id, dek, _| s.wrap(id, dek, &CONTEXT);
            p.unwrap = |s, id, wrapped, _| s.unwrap(id, wrapped, &CONTEXT);
        }),
        ("refuses another context", "any DEK version", |p| {
            p.wrap = |s, id, dek, to| s.wrap(id, dek, &Context { dek_version: 0, ..to.clone() });
            p.unwrap = |s, id, wrapped, to| {
                s.unwrap(id, wrapped, &Context { dek_version: 0, ..to.clone() })
            };
        }),
        ("refuses another context", "another key for a refusal", |p| {
            p.unwrap = |s, id, wrapped, to| match s.unwrap(id, wrapped, to) {
                Err(ProviderError::WrongKey(_)) => any_key(),
                answer => answer,
            };
        }),
        ("refuses another context", "an outage for a refusal", |p| {
            p.unwrap = |s, id, wrapped, to| {
                let answer = s.unwrap(id, wrapped, to);
                answer.map_err(|e| turn(e, "wrong key", ProviderError::unreachable))
            };
        }),
        ("refuses a blob that is altered anywhere", "a first byte that is free", |p| {
            p.unwrap = |s, id, wrapped, to| s.unwrap(id, &s.mended(wrapped), to);
        }),
        ("refuses a blob that is altered anywhere", "another key for an altered blob", |p| {
            p.unwrap = |s, id, wrapped, to| match s.like(&wrapped.blob) {
                Some(sound) if sound != *wrapped && sound.blob != wrapped.blob => any_key(),
                _ => s.unwrap(id, wrapped, to),
            };
        }),
        ("refuses a blob of another length", "a longer one", |p| {
            p.unwrap = |s, id, wrapped, to| {
                let blob = wrapped.blob.iter().copied().take(72).collect();
                s.unwrap(id, &Wrapped { blob, ..wrapped.clone() }, to)
            };
        }),
        ("refuses a blob of another length", "an empty one is another key", |p| {
            p.unwrap = |s, id, wrapped, to| match wrapped.blob.len() {
                0 => any_key(),
                _ => s.unwrap(id, wrapped, to),
            };
        }),
        ("refuses another mechanism", "any", |p| {
            p.unwrap = |s, id, wrapped, to| {
                s.unwrap(id, &Wrapped { mechanism: MECHANISM.into(), ..wrapped.clone() }, to)
            };
        }),
        ("refuses another key version", "any", |p| {
            p.unwrap = |s, id, wrapped, to| {
                s.unwrap(id, &Wrapped { key_version: "1".into(), ..wrapped.clone() }, to)
            };
        }),
        ("refuses a blob of another key", "any", |p| {
            p.unwrap = |s, id, wrapped, to| {
                s.check(id)?;
                s.unwrap("app", wrapped, to)
            };
        }),
        ("says that a missing key is not here", "denied", |p| {
            p.unwrap = |s, id, wrapped, to| {
                let answer = s.unwrap(id, wrapped, to);
                answer.map_err(|e| match id {
                    "nobody" => turn(e, "not here", ProviderError::denied),
                    _ => e,
                })
            };
        }),
        ("says that a missing key is not here", "it has a version", |p| {
            p.newest = |s, _| s.newest("app");
        }),
        ("serves four threads at once", "only its own", |p| {
            p.wrap = |s, id, dek, to| match std::thread::current().id() == s.maker {
                true => s.wrap(id, dek, to),
                false => Err(ProviderError::Unreachable("busy".into())),
            };
        }),
        ("serves four threads at once", "another key", |p| {
            p.unwrap = |s, id, wrapped, to| match std::thread::current().id() == s.maker {
                true => s.unwrap(id, wrapped, to),
                false => any_key(),
            };
        }),
        ("does not panic over odd names", "two dots", |p| {
            p.newest = |s, id| match id {
                ".." => panic!("two dots"),
                _ => s.newest(id),
            };
        }),
        ("names of calls are in bounds", "a bell", |p| p.call = "\u{7}"),
        ("answers within the deadline", "it waits for its service", |p| {
            p.unwrap = |s, id, wrapped, to| {
                if s.cut.load(Ordering::SeqCst) {
                    std::thread::sleep(std::time::Duration::from_millis(2600));
                }
                s.unwrap(id, wrapped, to)
            };
        }),
        ("forgets, and serves again", "for good", |p| {
            p.forget = |s| s.forgot.store(true, Ordering::SeqCst);
            p.unwrap = |s, id, wrapped, to| match s.forgot.load(Ordering::SeqCst) {
                true => Err(ProviderError::Unreachable("forgot".into())),
                false => s.unwrap(id, wrapped, to),
            };
        }),
        ("denies a disabled key, and serves when it is enabled", "unwraps", |p| {
            p.unwrap = |s, id, wrapped, to| match s.check(id) {
                Err(ProviderError::Denied(_)) | Ok(()) => s.open(id, wrapped, to),
                Err(error) => Err(error),
            };
        }),
        ("denies a disabled key, and serves when it is enabled", "out of reach", |p| {
            p.wrap = |s, id, dek, to| {
                s.wrap(id, dek, to).map_err(|e| turn(e, "denied", ProviderError::unreachable))
            };
        }),
        ("says that it is unreachable, and serves when it is back", "denied", |p| {
            p.newest =
                |s, id| s.newest(id).map_err(|e| turn(e, "unreachable", ProviderError::denied));
        }),
        ("unwraps with the older version after a rotation", "no newer one", |p| {
            p.wrap = |s, id, dek, to| s.wrap_under(1, id, dek, to);
            p.newest = |s, id| s.newest(id).map(|_| "1".into());
        }),
        ("unwraps with the older version after a rotation", "the old one wraps on", |p| {
            p.wrap = |s, id, dek, to| s.wrap_under(1, id, dek, to);
        }),
        ("unwraps with the older version after a rotation", "the old one is lost", |p| {
            p.unwrap = |s, id, wrapped, to| match (s.version(), &*wrapped.key_version) {
                (2, "1") => Err(ProviderError::NotHere("version 1".into())),
                _ => s.unwrap(id, wrapped, to),
            };
        }),
        ("shows no key in an error", "the PIN", |p| {
            p.unwrap = |s, id, wrapped, to| {
                let pin = |text: String| ProviderError::wrong_key(format!("{text}, PIN 1234-5678"));
                s.unwrap(id, wrapped, to).map_err(|e| turn(e, "wrong key", pin))
            };
        }),
        ("shows no key in an error", "the wrapped key", |p| {
            p.unwrap = |s, id, wrapped, to| {
                let dek = s.seen.lock().unwrap()[0].0.clone();
                let shown = |_: String| ProviderError::wrong_key(format!("it is not {dek:?}"));
                s.unwrap(id, wrapped, to).map_err(|e| turn(e, "wrong key", shown))
            };
        }),
    ];
    for (check, what, spoil) in rows {
        let mut provider = Provider::sound();
        spoil(&mut provider);
        let report = provider.suite().run();
        assert_eq!(failures(&report).first(), Some(&check), "{what}:\n{report}");
        assert!(!report.conforms());
    }
}

#[test]
#[should_panic(expected = "FAILED   refuses another mechanism")]
fn a_failed_suite_panics_with_its_report() {
    let mut provider = Provider::sound();
    provider.unwrap = |s, id, wrapped, to| {
        s.unwrap(id, &Wrapped { mechanism: MECHANISM.into(), ..wrapped.clone() }, to)
    };
    let _ = assert_conforms(provider.suite());
}

#[test]
fn what_is_declared_is_accepted_and_what_is_not_given_is_not_run() {
    let bare = Provider::sound();
    let report = assert_conforms(Conformance::of(&bare, "app"));
    assert_eq!(
        not_run(&report),
        [
            "refuses a blob of another key",
            "says that a missing key is not here",
            "denies a disabled key, and serves when it is enabled",
            "says that it is unreachable, and serves when it is back",
            "unwraps with the older version after a rotation",
        ]
    );

    let mut unbound = Provider::sound();
    unbound.wrap = |s, id, dek, _| s.wrap(id, dek, &CONTEXT);
    unbound.unwrap = |s, id, wrapped, _| s.unwrap(id, wrapped, &CONTEXT);
    let report = assert_conforms(unbound.suite().envelope_binds());
    assert_eq!(not_run(&report), [""; 0]);

    let mut malleable = Provider::sound();
    malleable.unwrap = |s, id, wrapped, to| s.unwrap(id, &s.mended(wrapped), to);
    let report = assert_conforms(malleable.suite().malleable());
    assert_eq!(not_run(&report), [""; 0]);

    let mut vague = Provider::sound();
    vague.unwrap = |s, id, wrapped, to| {
        let answer = s.unwrap(id, wrapped, to);
        answer.map_err(|e| turn(e, "wrong key", ProviderError::unreachable))
    };
    let report = assert_conforms(vague.suite().vague());
    assert_eq!(not_run(&report), [""; 0]);

    let mut same = Provider::sound();
    same.wrap = |s, id, dek, to| {
        s.check(id)?;
        let seen = s.seen.lock().unwrap().clone();
        let found = seen.iter().find(|(key, wrapped)| {
            key == dek.expose() && wrapped.key_version == s.version().to_string()
        });
        found.map_or_else(|| s.wrap(id, dek, to), |(_, wrapped)| Ok(wrapped.clone()))
    };
    // It does not tell its keys apart by what it wraps, so another key is out of the question here.
    let report = assert_conforms(Conformance::of(&same, "app").deterministic());
    assert!(not_run(&report).contains(&"wraps the same key to different blobs"), "{report}");
}
