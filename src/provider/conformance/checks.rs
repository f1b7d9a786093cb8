//! The checks themselves, in a table.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use base64ct::{Base64, Base64Url, Encoding};
use subtle::ConstantTimeEq;

use super::{Check, Conformance, Direct, Hook, Outcome};
use crate::provider::{
    Context, Deadline, ProviderError, UnwrapRequest, WaitsFor, WrapRequest, Wrapped,
};
use crate::secret::{KEY_LEN, Secret};

const BLOB_MAX_LEN: usize = 2048;
const NAME_MAX_LEN: usize = 255;
const THREADS: usize = 4;
const ROUNDS: usize = 8;
const CONTEXT: Context = Context { file_id: [0xa5; 16], dek_version: 1 };

/// The correct kinds of refusal for an altered blob, and for altered names.
const OF_A_BLOB: &[&str] = &["wrong key", "damaged"];
const OF_A_NAME: &[&str] = &["wrong key", "damaged", "not here"];

/// Early end of a check.
enum Stop {
    Failed(String),
    NotRun(&'static str),
}

type Checked = Result<(), Stop>;

/// Order matters: the last ones change the key.
const CHECKS: [(&str, fn(&Run) -> Checked); 20] = [
    ("unwraps what it wrapped", unwraps_what_it_wrapped),
    ("kind, version, mechanism and blob are in bounds", stays_in_bounds),
    ("wraps under the newest version", wraps_under_the_newest_version),
    ("wraps the same key to different blobs", wraps_differently),
    ("refuses another context", refuses_another_context),
    ("refuses a blob that is altered anywhere", refuses_an_altered_blob),
    ("refuses a blob of another length", refuses_another_length),
    ("refuses another mechanism", refuses_another_mechanism),
    ("refuses another key version", refuses_another_version),
    ("refuses a blob of another key", refuses_another_key),
    ("says that a missing key is not here", misses_a_missing_key),
    ("serves four threads at once", serves_threads),
    ("does not panic over odd names", bears_odd_names),
    ("names of calls are in bounds", names_its_calls),
    ("forgets, and serves again", forgets),
    ("denies a disabled key, and serves when it is enabled", denies_a_disabled_key),
    ("says that it is unreachable, and serves when it is back", tells_an_outage),
    ("answers within the deadline", keeps_the_deadline),
    ("unwraps with the older version after a rotation", survives_a_rotation),
    ("shows no key in an error", shows_no_key),
];

pub(super) fn run(of: &Conformance<'_>) -> Vec<Check> {
    let run = match Run::start(of) {
        Ok(run) => run,
        Err(error) => {
            let outcome = Outcome::Failed(format!("it wraps nothing: {error}"));
            return vec![Check { name: CHECKS[0].0, outcome }];
        }
    };
    let outcome = |check: fn(&Run) -> Checked| match check(&run) {
        Ok(()) => Outcome::Passed,
        Err(Stop::Failed(words)) => Outcome::Failed(words),
        Err(Stop::NotRun(need)) => Outcome::NotRun(need),
    };
    CHECKS.iter().map(|(name, check)| Check { name, outcome: outcome(*check) }).collect()
}

/// A wrapped key, and every error that came up.
struct Run<'a> {
    of: &'a Conformance<'a>,
    dek: Secret,
    wrapped: Wrapped,
    errors: RefCell<Vec<ProviderError>>,
}

impl<'a> Run<'a> {
    fn start(of: &'a Conformance<'a>) -> Result<Self, ProviderError> {
        let random = Secret::random();
        let dek = random.map_err(|error| ProviderError::unreachable(error.to_string()))?;
        let wrapped = of.provider.wrap_key(&of.key_id, &dek, &CONTEXT)?;
        Ok(Self { of, dek, wrapped, errors: RefCell::default() })
    }

    fn key_id(&self) -> &str {
        &self.of.key_id
    }

    /// Keeps an error for the last check.
    fn note<T>(&self, answer: Result<T, ProviderError>) -> Result<T, ProviderError> {
        answer.inspect_err(|error| self.errors.borrow_mut().push(error.clone()))
    }

    fn wrap(&self, key_id: &str) -> Result<Wrapped, ProviderError> {
        self.note(self.of.provider.wrap_key(key_id, &self.dek, &CONTEXT))
    }

    fn unwrap(&self, key_id: &str, wrapped: &Wrapped, context: &Context) -> Unwrapped {
        match self.note(self.of.provider.unwrap_key(key_id, wrapped, context)) {
            Ok(key) if same(&key, &self.dek) => Unwrapped::Key,
            Ok(_) => Unwrapped::AnotherKey,
            Err(error) => Unwrapped::Error(error),
        }
    }

    fn newest(&self, key_id: &str) -> Result<String, ProviderError> {
        self.note(self.of.provider.newest_of(key_id))
    }

    fn serves(&self, when: &str, wrapped: &Wrapped) -> Checked {
        match self.unwrap(self.key_id(), wrapped, &CONTEXT) {
            Unwrapped::Key => Ok(()),
            Unwrapped::AnotherKey => failed(format!("{when}: it gave another key out")),
            Unwrapped::Error(error) => failed(format!("{when}: {error}")),
        }
    }

    /// An altered blob must be refused, or the altered part must have no meaning.
    fn refuses(&self, what: &str, blob: Vec<u8>) -> Checked {
        let altered = Wrapped { blob, ..self.wrapped.clone() };
        match self.unwrap(self.key_id(), &altered, &CONTEXT) {
            Unwrapped::Key if self.of.malleable => Ok(()),
            Unwrapped::Key => failed(format!("{what}: it was unwrapped all the same")),
            Unwrapped::AnotherKey => failed(format!("{what}: it gave another key out")),
            Unwrapped::Error(error) => self.is_one_of(what, &error, OF_A_BLOB),
        }
    }

    /// Altered names that the envelope binds, too, must be refused or have no effect.
    fn binds(&self, what: &str, key_id: &str, wrapped: &Wrapped, context: &Context) -> Checked {
        match self.unwrap(key_id, wrapped, context) {
            Unwrapped::Key if self.of.envelope_binds => Ok(()),
            Unwrapped::Key => failed(format!("{what}: it was unwrapped all the same")),
            Unwrapped::AnotherKey => failed(format!("{what}: it gave another key out")),
            Unwrapped::Error(error) => self.is_one_of(what, &error, OF_A_NAME),
        }
    }

    fn is_one_of(&self, what: &str, error: &ProviderError, kinds: &[&str]) -> Checked {
        if self.of.vague || kinds.contains(&kind(error)) {
            return Ok(());
        }
        let found = kind(error);
        failed(format!("{what}: {found} instead of {}: {error}", kinds.join(" or ")))
    }

    /// Every call with `key_id` must end in an error of this kind.
    fn all_end_in(&self, expected: &str, key_id: &str) -> Checked {
        let unwrapped = match self.unwrap(key_id, &self.wrapped, &CONTEXT) {
            Unwrapped::Error(error) => Err(error),
            _ => Ok(()),
        };
        let answers = [
            ("wrap", self.wrap(key_id).map(drop)),
            ("unwrap", unwrapped),
            ("newest_version", self.newest(key_id).map(drop)),
        ];
        for (call, answer) in answers {
            match answer {
                Err(error) if kind(&error) == expected => {}
                Err(error) => {
                    let found = kind(&error);
                    return failed(format!("{call}: {found} instead of {expected}: {error}"));
                }
                Ok(()) => return failed(format!("{call}: it served")),
            }
        }
        Ok(())
    }

    /// The state between the two hooks, and the recovery after the second.
    fn between(&self, [begin, end]: &[Hook<'_>; 2], expected: &str) -> Checked {
        // Caches may still answer meanwhile, so the provider itself is asked here.
        self.of.provider.forget();
        begin();
        let checked = self.all_end_in(expected, self.key_id());
        end();
        checked?;
        self.serves("afterwards", &self.wrapped)?;
        self.wrap(self.key_id()).map(drop).map_err(stop)
    }
}

/// A provider's answer to a blob.
enum Unwrapped {
    Key,
    AnotherKey,
    Error(ProviderError),
}

fn unwraps_what_it_wrapped(run: &Run) -> Checked {
    run.serves("a random key", &run.wrapped)?;
    for byte in [0, 0xff] {
        let key = Secret::from_slice(&[byte; KEY_LEN]);
        let key = key.ok_or_else(|| Stop::Failed("a key has another length".to_owned()))?;
        let provider = run.of.provider;
        let wrapped = run.note(provider.wrap_key(run.key_id(), &key, &CONTEXT)).map_err(stop)?;
        let back = run.note(provider.unwrap_key(run.key_id(), &wrapped, &CONTEXT)).map_err(stop)?;
        if !same(&back, &key) {
            return failed(format!("a key of bytes {byte:#04x}: it gave another key out"));
        }
    }
    Ok(())
}

fn stays_in_bounds(run: &Run) -> Checked {
    let Wrapped { key_version, mechanism, blob } = &run.wrapped;
    let provider_kind = run.of.provider.kind();
    for (what, text) in
        [("kind", provider_kind), ("key version", key_version), ("mechanism", mechanism)]
    {
        let len = text.len();
        if !(1..=NAME_MAX_LEN).contains(&len) || text.chars().any(char::is_control) {
            return failed(format!("the {what} has {len} bytes or control characters: {text:?}"));
        }
    }
    match blob.len() {
        1..=BLOB_MAX_LEN => Ok(()),
        len => failed(format!("the blob has {len} bytes, and at most {BLOB_MAX_LEN} fit")),
    }
}

fn wraps_under_the_newest_version(run: &Run) -> Checked {
    let newest = run.newest(run.key_id()).map_err(stop)?;
    let found = &run.wrapped.key_version;
    if *found == newest {
        return Ok(());
    }
    failed(format!("it wrapped under {found:?}, and the newest is {newest:?}"))
}

fn wraps_differently(run: &Run) -> Checked {
    let again = run.wrap(run.key_id()).map_err(stop)?;
    run.serves("wrapped again", &again)?;
    match (again.blob == run.wrapped.blob, run.of.deterministic) {
        (false, _) => Ok(()),
        (true, true) => Err(Stop::NotRun("a mechanism that is not deterministic")),
        (true, false) => failed("two blobs are the same; if it must be so, say .deterministic()"),
    }
}

fn refuses_another_context(run: &Run) -> Checked {
    let mut file_id = CONTEXT.file_id;
    file_id[15] ^= 1;
    for (what, context) in [
        ("another database", Context { file_id, ..CONTEXT }),
        ("another version of its key", Context { dek_version: 2, ..CONTEXT }),
    ] {
        run.binds(what, run.key_id(), &run.wrapped, &context)?;
    }
    Ok(())
}

fn refuses_an_altered_blob(run: &Run) -> Checked {
    for at in 0..run.wrapped.blob.len() {
        let mut blob = run.wrapped.blob.clone();
        blob[at] ^= 1 << (at % 8);
        run.refuses(&format!("byte {at}, bit {}", at % 8), blob)?;
    }
    run.serves("after many refusals", &run.wrapped)
}

fn refuses_another_length(run: &Run) -> Checked {
    let blob = &run.wrapped.blob;
    for len in 0..blob.len() {
        run.refuses(&format!("cut to {len} bytes"), blob[..len].to_vec())?;
    }
    run.refuses("a byte longer", [blob.as_slice(), &[0]].concat())
}

fn refuses_another_mechanism(run: &Run) -> Checked {
    for mechanism in ["", "none", &format!("{}2", run.wrapped.mechanism)] {
        let altered = Wrapped { mechanism: mechanism.to_owned(), ..run.wrapped.clone() };
        match run.unwrap(run.key_id(), &altered, &CONTEXT) {
            Unwrapped::Error(error) => run.is_one_of(mechanism, &error, OF_A_NAME)?,
            _ => return failed(format!("it took the blob for one of {mechanism:?}")),
        }
    }
    Ok(())
}

fn refuses_another_version(run: &Run) -> Checked {
    for version in ["", "no-such-version", &format!("{}0", run.wrapped.key_version)] {
        let altered = Wrapped { key_version: version.to_owned(), ..run.wrapped.clone() };
        run.binds(&format!("version {version:?}"), run.key_id(), &altered, &CONTEXT)?;
    }
    Ok(())
}

fn refuses_another_key(run: &Run) -> Checked {
    let Some(other) = &run.of.other_key else {
        return Err(Stop::NotRun("another key"));
    };
    run.wrap(other).map_err(stop)?;
    run.binds(&format!("key {other}"), other, &run.wrapped, &CONTEXT)
}

fn misses_a_missing_key(run: &Run) -> Checked {
    let missing = run.of.missing_key.as_deref();
    run.all_end_in("not here", missing.ok_or(Stop::NotRun("the id of a missing key"))?)
}

fn serves_threads(run: &Run) -> Checked {
    let provider = run.of.provider;
    let (key_id, dek, wrapped) = (run.key_id(), &run.dek, &run.wrapped);
    let work = move || {
        for _ in 0..ROUNDS {
            let again = provider.wrap_key(key_id, dek, &CONTEXT)?;
            for wrapped in [wrapped, &again] {
                if !same(&provider.unwrap_key(key_id, wrapped, &CONTEXT)?, dek) {
                    return Err(ProviderError::wrong_key("it gave another key out".to_owned()));
                }
            }
        }
        Ok(())
    };
    let answers: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join()).collect()
    });
    for answer in answers {
        let answer = answer.map_err(|_| Stop::Failed("a thread panicked".to_owned()))?;
        run.note(answer).map_err(stop)?;
    }
    Ok(())
}

/// It is asked with a deadline that is over, and with one that comes soon, while it is cut off if
/// it can be. Any answer is accepted, in time or shortly after.
fn keeps_the_deadline(run: &Run) -> Checked {
    const LEEWAY: Duration = Duration::from_secs(2);
    if run.of.provider.waits_for() == WaitsFor::Person {
        return Err(Stop::NotRun("a provider that asks no person"));
    }
    for time in [Duration::ZERO, Duration::from_millis(300)] {
        let begun = Instant::now();
        let mut request = UnwrapRequest::new(run.key_id(), &run.wrapped, &CONTEXT);
        request.deadline = Deadline::after(time);
        let ask = || run.note(run.of.provider.unwrap(&request).map(drop));
        let answer = match &run.of.outage {
            Some([cut, restore]) => {
                run.of.provider.forget();
                cut();
                let answer = ask();
                restore();
                answer
            }
            None => ask(),
        };
        let took = begun.elapsed();
        if took > time + LEEWAY {
            return failed(format!("with {time:?} to answer it took {took:?}: {answer:?}"));
        }
    }
    run.serves("after a deadline", &run.wrapped)
}

/// Names and blobs come from an untrusted file.
fn bears_odd_names(run: &Run) -> Checked {
    let long = "k".repeat(NAME_MAX_LEN);
    for name in ["", "..", "-", "a\nb", "\u{202e}", "k;k", "{key_id}", "%s%n", &long] {
        let altered = Wrapped { key_version: name.to_owned(), ..run.wrapped.clone() };
        let asked = catch_unwind(AssertUnwindSafe(|| {
            let _ = run.newest(name);
            let _ = run.unwrap(name, &run.wrapped, &CONTEXT);
            let _ = run.unwrap(run.key_id(), &altered, &CONTEXT);
        }));
        if asked.is_err() {
            return failed(format!("it panicked over the name {name:?}"));
        }
    }
    run.serves("after odd names", &run.wrapped)
}

fn names_its_calls(run: &Run) -> Checked {
    let request = WrapRequest::new(run.key_id(), &run.dek, &CONTEXT);
    let answer = run.note(run.of.provider.wrap(&request)).map_err(stop)?;
    match answer.service_request_id {
        Some(id) if !(1..=NAME_MAX_LEN).contains(&id.len()) || id.contains(char::is_control) => {
            failed(format!("a call's name has {} bytes or control characters: {id:?}", id.len()))
        }
        _ => Ok(()),
    }
}

fn forgets(run: &Run) -> Checked {
    run.of.provider.forget();
    run.serves("after forgetting", &run.wrapped)
}

fn denies_a_disabled_key(run: &Run) -> Checked {
    let hooks = run.of.switch.as_ref();
    run.between(hooks.ok_or(Stop::NotRun("a way to disable the key"))?, "denied")
}

fn tells_an_outage(run: &Run) -> Checked {
    let hooks = run.of.outage.as_ref();
    run.between(hooks.ok_or(Stop::NotRun("a way to cut it off"))?, "unreachable")
}

fn survives_a_rotation(run: &Run) -> Checked {
    let rotate = run.of.rotate.as_ref().ok_or(Stop::NotRun("a way to rotate the key"))?;
    rotate();
    let newest = run.newest(run.key_id()).map_err(stop)?;
    if newest == run.wrapped.key_version {
        return failed(format!("the newest version is still {newest:?}"));
    }
    let again = run.wrap(run.key_id()).map_err(stop)?;
    if again.key_version != newest {
        let found = again.key_version;
        return failed(format!("it wrapped under {found:?}, and the newest is {newest:?}"));
    }
    run.serves("wrapped before", &run.wrapped)?;
    run.serves("wrapped since", &again)?;
    let relabelled = Wrapped { key_version: newest, ..run.wrapped.clone() };
    run.binds("relabelled as the newest version", run.key_id(), &relabelled, &CONTEXT)
}

fn shows_no_key(run: &Run) -> Checked {
    let secrets = run.of.secrets.iter().map(|secret| secret.as_slice());
    let needles: Vec<String> =
        secrets.chain([run.dek.expose().as_slice()]).flat_map(encodings).collect();
    for error in run.errors.borrow().iter() {
        let text = format!("{error} {error:?} {error:#?}");
        if needles.iter().any(|needle| text.contains(needle.as_str())) {
            return failed(format!("an error of the kind {} shows one", kind(error)));
        }
    }
    Ok(())
}

/// The encodings of a secret in a text, by their start, so that a part counts, too.
fn encodings(secret: &[u8]) -> Vec<String> {
    let hex = base16ct::lower::encode_string(secret);
    let list = format!("{secret:?}");
    let encoded = [
        hex.to_uppercase(),
        hex,
        Base64::encode_string(secret),
        Base64Url::encode_string(secret),
        list.trim_matches(['[', ']']).to_owned(),
    ];
    let half = |text: String| text[..text.len() / 2].to_owned();
    let mut needles: Vec<String> = encoded.into_iter().map(half).collect();
    needles.extend(std::str::from_utf8(secret).map(str::to_owned));
    needles.retain(|needle| !needle.is_empty());
    needles
}

fn same(a: &Secret, b: &Secret) -> bool {
    a.expose().ct_eq(b.expose()).into()
}

pub(super) fn kind(error: &ProviderError) -> &'static str {
    match error {
        ProviderError::NotHere(_) => "not here",
        ProviderError::Denied(_) => "denied",
        ProviderError::Unreachable(_) => "unreachable",
        ProviderError::Damaged(_) => "damaged",
        ProviderError::LoosePermissions { .. } => "loose permissions",
        ProviderError::OtherOwner { .. } => "another owner",
        ProviderError::WrongKey(_) => "wrong key",
    }
}

fn stop(error: ProviderError) -> Stop {
    Stop::Failed(format!("{}: {error}", kind(&error)))
}

fn failed(words: impl Into<String>) -> Checked {
    Err(Stop::Failed(words.into()))
}
