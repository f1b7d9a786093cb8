//! Published vectors, the blob's bytes, who is asked how often, and blobs that are made up.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use argon2::{AssociatedData, ParamsBuilder};

use super::*;
use crate::provider::conformance::Direct;
use crate::suite::tests::hex;

const CONTEXT: Context = Context { file_id: [7; 16], dek_version: 1 };
const CHEAP: Cost = Cost { memory_kib: 64, iterations: 1, parallelism: 1 };

/// A provider that is told what the person says, and counts how often it was asked.
struct Asked {
    provider: Passphrase,
    answer: Arc<Mutex<&'static str>>,
    times: Arc<AtomicUsize>,
    wanted: Arc<Mutex<String>>,
}

impl Asked {
    fn new(passphrase: &'static str) -> Self {
        let answer = Arc::new(Mutex::new(passphrase));
        let times = Arc::new(AtomicUsize::new(0));
        let wanted = Arc::new(Mutex::new(String::new()));
        let (said, count, heard) = (Arc::clone(&answer), Arc::clone(&times), Arc::clone(&wanted));
        let source = SecretSource::prompt(move |what| {
            count.fetch_add(1, Ordering::SeqCst);
            *heard.lock().unwrap() = what.to_owned();
            match *said.lock().unwrap() {
                "" => Err(io::Error::other("nobody answers")),
                passphrase => Ok(Zeroizing::new(passphrase.to_owned())),
            }
        });
        Self { provider: Passphrase::new(source).cost(CHEAP), answer, times, wanted }
    }

    fn say(&self, passphrase: &'static str) {
        *self.answer.lock().unwrap() = passphrase;
    }

    fn times(&self) -> usize {
        self.times.load(Ordering::SeqCst)
    }
}

fn kind(error: ProviderError) -> &'static str {
    match error {
        ProviderError::NotHere(_) => "not here",
        ProviderError::Denied(_) => "denied",
        ProviderError::Unreachable(_) => "unreachable",
        ProviderError::Damaged(_) => "damaged",
        ProviderError::LoosePermissions { .. } | ProviderError::OtherOwner { .. } => "loose",
        ProviderError::WrongKey(_) => "wrong key",
    }
}

/// RFC 9106, section 5.3, which has a secret and associated data that we do not use.
#[test]
fn rfc_9106_vector() {
    let params = ParamsBuilder::new()
        .m_cost(32)
        .t_cost(3)
        .p_cost(4)
        .output_len(32)
        .data(AssociatedData::new(&[4; 12]).unwrap())
        .build()
        .unwrap();
    let argon2 =
        Argon2::new_with_secret(&[3; 8], Algorithm::Argon2id, Version::V0x13, params).unwrap();
    let key = hash(&argon2, &[1; 32], &[2; 16]).unwrap();
    let want = "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659";
    assert_eq!(key.expose().to_vec(), hex(want));
}

/// From the reference implementation: the first row is in its `test.c`, the others were printed by
/// its command `argon2` (Debian 0~20171227).
#[test]
fn vectors_of_the_reference_implementation() {
    let cost = |memory_kib, iterations, parallelism| Cost { memory_kib, iterations, parallelism };
    for (salt, cost, want) in [
        (
            "somesalt",
            cost(1 << 16, 2, 1),
            "09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7",
        ),
        (
            "0123456789abcdef",
            Cost::default(),
            "daf16780dcb73e862146297fa17b81b86b480f33c0b67daef0f2c7c809c5797b",
        ),
        (
            "somesaltsomesalt",
            cost(1 << 16, 3, 4),
            "81db97a7e67a891784a2599bc879f957cb3512d273984bd97d8a18fc59ff01e2",
        ),
    ] {
        let key = cost.derive(b"password", salt.as_bytes()).unwrap();
        assert_eq!(key.expose().to_vec(), hex(want), "{salt}");
    }
}

#[test]
fn a_blob_has_the_bytes_of_the_picture() {
    let asked = Asked::new("hush");
    let dek = Secret::random().unwrap();
    let cost = Cost { memory_kib: 0x123, iterations: 2, parallelism: 3 };
    let wrapped = asked.provider.cost(cost).wrap_key("app", &dek, &CONTEXT).unwrap();
    assert_eq!((&*wrapped.key_version, &*wrapped.mechanism), ("1", MECHANISM));
    assert_eq!(wrapped.blob.len(), 96);
    assert_eq!(wrapped.blob[..8], [1, 3, 0, 2, 0, 0, 1, 0x23]);

    // Opened by hand, by the words at the head of the file.
    let params = Params::new(0x123, 2, 3, Some(32)).unwrap();
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let key = hash(&argon2, b"hush", &wrapped.blob[8..24]).unwrap();
    let aad = [&wrap::aad(&CONTEXT, "app", 1), &wrapped.blob[..24]].concat();
    let opened = wrap::open(&key, &aad, &wrapped.blob[24..]).unwrap();
    assert_eq!(opened.unwrap().expose(), dek.expose());
}

#[test]
fn asks_once_for_a_blob_until_it_forgets() {
    let asked = Asked::new("hush");
    let dek = Secret::random().unwrap();
    let unwrap = |key_id: &str, wrapped: &Wrapped| {
        let answer = asked.provider.unwrap_key(key_id, wrapped, &CONTEXT);
        answer.map(|key| assert_eq!(key.expose(), dek.expose())).map_err(kind)
    };
    let first = asked.provider.wrap_key("recovery", &dek, &CONTEXT).unwrap();
    assert_eq!(*asked.wanted.lock().unwrap(), "new passphrase for recovery");
    assert_eq!((unwrap("recovery", &first), asked.times()), (Ok(()), 1), "just wrapped");

    let second = asked.provider.wrap_key("recovery", &dek, &CONTEXT).unwrap();
    assert_ne!(first.blob[..HEADER_LEN], second.blob[..HEADER_LEN], "a salt of its own");
    assert_eq!(asked.times(), 2);
    for (what, answer, wrapped, forget, expected, times) in [
        ("another salt", "hush", &first, false, Ok(()), 3),
        ("again", "", &first, false, Ok(()), 3),
        ("forgotten", "hush", &first, true, Ok(()), 4),
        ("forgotten, and nobody there", "", &first, true, Err("unreachable"), 5),
        ("wrong", "hash", &first, false, Err("wrong key"), 6),
        ("a wrong one is not kept", "hash", &first, false, Err("wrong key"), 7),
        ("mended", "hush", &first, false, Ok(()), 8),
        ("a wrong one takes no place", "hash", &second, false, Err("wrong key"), 9),
        ("so the right one is still there", "", &first, false, Ok(()), 9),
    ] {
        asked.say(answer);
        if forget {
            asked.provider.forget();
        }
        assert_eq!((unwrap("recovery", wrapped), asked.times()), (expected, times), "{what}");
    }
    assert_eq!(*asked.wanted.lock().unwrap(), "passphrase for recovery");
    asked.say("hush");
    assert_eq!(unwrap("other", &first), Err("wrong key"), "under another label");
    assert_eq!(*asked.wanted.lock().unwrap(), "passphrase for other");
}

#[test]
fn threads_that_want_one_key_ask_once() {
    let asked = Asked::new("hush");
    let dek = Secret::random().unwrap();
    let wrapped = asked.provider.wrap_key("app", &dek, &CONTEXT).unwrap();
    asked.provider.forget();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let key = asked.provider.unwrap_key("app", &wrapped, &CONTEXT).unwrap();
                assert_eq!(key.expose(), dek.expose());
            });
        }
    });
    assert_eq!(asked.times(), 2, "one to wrap, one to unwrap");
}

/// A made-up blob is refused before anybody is asked and any memory is taken.
#[test]
fn costs_out_of_bounds_are_refused() {
    let asked = Asked::new("hush");
    let dek = Secret::random().unwrap();
    let good = asked.provider.wrap_key("app", &dek, &CONTEXT).unwrap();
    asked.provider.forget();
    for (what, memory_kib, iterations, parallelism) in [
        ("over 1 GiB", (1 << 20) + 1, 1, 1),
        ("all the memory there is", u32::MAX, 1, 1),
        ("no memory", 0, 1, 1),
        ("less than a lane needs", 7, 1, 1),
        ("less than the lanes need", 8 * 16 - 1, 1, 16),
        ("no iteration", 64, 0, 1),
        ("65 iterations", 64, 65, 1),
        ("the most iterations", 64, u16::MAX.into(), 1),
        ("no lane", 64, 1, 0),
        ("17 lanes", 1024, 1, 17),
        ("the most lanes", 1 << 20, 1, 255),
        ("5 iterations over 1 GiB", 1 << 20, 5, 1),
        ("64 iterations over 64 MiB and more", (1 << 16) + 1, 64, 1),
    ] {
        let cost = Cost { memory_kib, iterations, parallelism };
        let header = Header { cost, salt: [9; SALT_LEN] };
        let blob = [&header.encode()[..], &good.blob[HEADER_LEN..]].concat();
        let hostile = Wrapped { blob, ..good.clone() };
        let answer = asked.provider.unwrap_key("app", &hostile, &CONTEXT);
        assert_eq!(answer.map(drop).map_err(kind), Err("damaged"), "{what}");

        let provider = Passphrase::new(SecretSource::Environment("none".into())).cost(cost);
        let answer = provider.wrap_key("app", &dek, &CONTEXT);
        assert_eq!(answer.map(drop).map_err(kind), Err("denied"), "{what}, to wrap");
    }
    assert_eq!(asked.times(), 1, "nobody was asked");
    for (memory_kib, iterations, parallelism) in
        [(1 << 20, 4, 16), (1 << 16, 64, 1), (128, 1, 16), (8, 1, 1)]
    {
        let cost = Cost { memory_kib, iterations, parallelism };
        assert!(cost.is_bounded(), "{cost}");
    }
}

#[test]
fn other_formats_versions_and_mechanisms_are_refused_unasked() {
    let asked = Asked::new("hush");
    let good = asked.provider.wrap_key("app", &Secret::random().unwrap(), &CONTEXT).unwrap();
    asked.provider.forget();
    let mut later = good.clone();
    later.blob[0] = 2;
    let version = Wrapped { key_version: "2".into(), ..good.clone() };
    let mechanism = Wrapped { mechanism: "xaes-256-gcm".into(), ..good.clone() };
    let short = Wrapped { blob: good.blob[..HEADER_LEN - 1].to_vec(), ..good.clone() };
    for (what, wrapped, expected) in [
        ("a later format", later, "damaged"),
        ("another version", version, "not here"),
        ("another mechanism", mechanism, "damaged"),
        ("cut short", short, "damaged"),
    ] {
        let answer = asked.provider.unwrap_key("app", &wrapped, &CONTEXT);
        assert_eq!(answer.map(drop).map_err(kind), Err(expected), "{what}");
    }
    assert_eq!(asked.times(), 1);
    assert_eq!(asked.provider.newest_of("any").unwrap(), "1");
}

#[test]
fn debug_shows_neither_passphrase_nor_key() {
    let asked = Asked::new("hush");
    asked.provider.wrap_key("app", &Secret::random().unwrap(), &CONTEXT).unwrap();
    let shown = format!("{:?}", asked.provider);
    assert_eq!(
        shown,
        "Passphrase { source: SecretSource(the prompt), cost: Cost { memory_kib: 64, \
         iterations: 1, parallelism: 1 }, .. }"
    );
}
