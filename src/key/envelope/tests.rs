use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn suite(code: u8) -> Option<SuiteId> {
    SuiteId::from_code(code)
}

fn key(byte: u8) -> Secret {
    Secret::from_slice(&[byte; 32]).unwrap()
}

fn protector(name: &str) -> ProtectorRecord {
    ProtectorRecord {
        name: name.to_owned(),
        provider: "keystore".to_owned(),
        key_id: "default".to_owned(),
        wrapped: Wrapped {
            key_version: "1".to_owned(),
            mechanism: "xaes-256-gcm".to_owned(),
            blob: vec![0xb1; 72],
        },
        not_after: 0,
        read_only: false,
    }
}

fn sample() -> Envelope {
    Envelope {
        generation: 3,
        file_id: *b"0123456789abcdef",
        page_size: 4096,
        created: 1_700_000_000,
        rotated: 0,
        regenerated: 1_700_000_001,
        scan_state: ScanState::Running,
        scan_cursor: 17,
        manual_rotation: false,
        has_pages: false,
        current: DekRecord { version: 2, suite: suite(1).unwrap(), wrapped: Vec::new() },
        retired: vec![DekRecord { version: 1, suite: suite(2).unwrap(), wrapped: vec![0xd1; 72] }],
        protectors: vec![protector("main"), protector("recovery")],
    }
}

fn used(copy: &[u8]) -> usize {
    u32_at(copy, LENGTH_AT, "length").unwrap() as usize
}

/// Makes the MAC right again, as only the holder of the key can.
fn reseal(copy: &mut [u8], key: &Secret) {
    let mac_at = used(copy) - MAC_LEN;
    let tag = mac(key, &copy[..mac_at]).unwrap();
    copy[mac_at..mac_at + MAC_LEN].copy_from_slice(&tag);
}

fn open(copy: &[u8], key: &Secret) -> Result<Envelope> {
    Ok(Arc::unwrap_or_clone(Unverified::decode(copy)?.verify(key)?))
}

fn record() -> impl Strategy<Value = ProtectorRecord> {
    let texts = ("\\PC{1,20}", "\\PC{0,20}", "\\PC{0,60}", "\\PC{0,60}", "\\PC{0,20}");
    (texts, vec(any::<u8>(), 1..300), any::<u64>(), any::<bool>()).prop_map(
        |((name, provider, key_id, key_version, mechanism), blob, not_after, read_only)| {
            let wrapped = Wrapped { key_version, mechanism, blob };
            ProtectorRecord { name, provider, key_id, wrapped, not_after, read_only }
        },
    )
}

prop_compose! {
    fn envelope()(
        generation in 1..=u64::MAX,
        file_id in any::<[u8; 16]>(),
        page_size in prop_oneof![Just(0), (10..=16u32).prop_map(|log| 1 << log)],
        times in any::<[u64; 3]>(),
        scan_state in proptest::sample::select(ScanState::ALL.to_vec()),
        scan_cursor in any::<u32>(),
        manual_rotation in any::<bool>(),
        has_pages in any::<bool>(),
        first in 1..=u32::MAX - 3,
        suites in vec(1..=2u8, 1..=4),
        blob in vec(any::<u8>(), 1..200),
        records in vec(record(), 1..=8),
    ) -> Envelope {
        let mut deks = (first..).zip(suites).map(|(version, code)| {
            DekRecord { version, suite: suite(code).unwrap(), wrapped: blob.clone() }
        });
        let current = DekRecord { wrapped: Vec::new(), ..deks.next().unwrap() };
        let mut protectors = records;
        for (n, protector) in protectors.iter_mut().enumerate() {
            protector.name = format!("{}{n}", protector.name);
        }
        let [created, rotated, regenerated] = times;
        Envelope {
            generation, file_id, page_size, created, rotated, regenerated, scan_state, scan_cursor,
            manual_rotation, has_pages,
            current, retired: deks.collect(), protectors,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_envelope_comes_back_as_it_was(envelope in envelope()) {
        let copy = envelope.encode(&key(1)).unwrap();
        prop_assert_eq!(copy.len(), COPY_LEN);
        let unverified = Unverified::decode(&copy).unwrap();
        prop_assert_eq!(unverified.generation(), envelope.generation);
        prop_assert_eq!(unverified.file_id(), envelope.file_id);
        prop_assert_eq!(unverified.protectors(), &envelope.protectors[..]);
        let DekRecord { version, suite, .. } = envelope.current;
        prop_assert_eq!(unverified.current(), (version, suite));
        let back = unverified.verify(&key(1)).unwrap();
        prop_assert_eq!(&*back, &envelope);
        prop_assert_eq!(back.encode(&key(1)).unwrap(), copy);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..ENVELOPE_LEN + 10), magic: bool) {
        let mut bytes = bytes;
        if magic && bytes.len() > LENGTH_AT {
            bytes[..FORMAT_AT].copy_from_slice(MAGIC);
            bytes[FORMAT_AT..LENGTH_AT].copy_from_slice(&FORMAT.to_be_bytes());
        }
        prop_assert!(Unverified::decode(&bytes).is_err());
        prop_assert!(candidates(&bytes).is_err());
        let _ = is_unfinished(&bytes, bytes.len() as u64);
    }

    /// An attacker can write this; even with a valid MAC it must be canonical.
    #[test]
    fn a_mutated_copy_fails_or_means_what_it_says(
        changes in vec((0..600usize, any::<u8>()), 1..6),
    ) {
        let mut copy = sample().encode(&key(1)).unwrap();
        let original = copy.clone();
        for (at, byte) in changes {
            copy[at] = byte;
        }
        prop_assert!(copy == original || open(&copy, &key(1)).is_err());
        if Unverified::decode(&copy).is_ok() {
            reseal(&mut copy, &key(1));
            let envelope = open(&copy, &key(1)).unwrap();
            prop_assert_eq!(envelope.encode(&key(1)).unwrap(), copy);
        }
    }
}

/// The layout, byte by byte, computed apart from this code: databases have it on disk.
#[test]
fn layout_is_pinned() {
    let mut envelope = sample();
    envelope.protectors.truncate(1);
    envelope.protectors[0].read_only = true;
    envelope.protectors[0].not_after = 258;
    let copy = envelope.encode(&key(1)).unwrap();
    let mut expected = b"sqlite-tde file\0\0\0\0\x01\0\0\x01\x4a".to_vec();
    expected.extend_from_slice(b"\0\0\0\0\0\0\0\x030123456789abcdef\0\0\x10\0");
    expected.extend_from_slice(b"\0\0\0\0\x65\x53\xf1\0\0\0\0\0\0\0\0\0\0\0\0\0\x65\x53\xf1\x01");
    expected.extend_from_slice(b"\x01\0\0\0\0\0\0\x11\x02\x01\0\0");
    expected.extend_from_slice(b"\0\0\0\x02\x01\0\0\0\0\0\0\x01\x02\0\0\x48");
    expected.extend_from_slice(&[0xd1; 72]);
    expected.extend_from_slice(b"\x04main\x08keystore\0\x07default\0\x011\x0cxaes-256-gcm");
    expected.extend_from_slice(b"\0\0\0\0\0\0\x01\x02\x01\0\x48");
    expected.extend_from_slice(&[0xb1; 72]);
    assert_eq!(expected.len() + MAC_LEN, used(&copy));
    assert_eq!(&copy[..expected.len()], &expected[..]);
}

#[test]
fn every_flipped_bit_is_noticed() {
    let mut copy = sample().encode(&key(1)).unwrap();
    for bit in 0..COPY_LEN * 8 {
        copy[bit / 8] ^= 1 << (bit % 8);
        assert!(open(&copy, &key(1)).is_err(), "bit {bit}");
        copy[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(open(&copy, &key(1)).is_ok());
}

#[test]
fn every_truncation_is_noticed() {
    let copy = sample().encode(&key(1)).unwrap();
    for len in 0..COPY_LEN {
        let error = Unverified::decode(&copy[..len]).unwrap_err();
        let expected = match len {
            0..16 => matches!(error, Error::NotADatabase(_)),
            _ => matches!(error, Error::EnvelopeDamaged(_)),
        };
        assert!(expected, "length {len}: {error:?}");
    }
    let long = [&copy[..], &[0]].concat();
    assert!(matches!(Unverified::decode(&long), Err(Error::EnvelopeDamaged(_))));
}

/// A MAC of the right key does not make up for a wrong structure, so a wrong length cannot be used
/// to end the authenticated part inside, or after, the records.
#[test]
fn every_other_length_is_noticed() {
    let good = sample().encode(&key(1)).unwrap();
    for len in (0..=COPY_LEN).filter(|len| *len != used(&good)) {
        let mut copy = good.clone();
        copy[LENGTH_AT..GENERATION_AT].copy_from_slice(&(len as u32).to_be_bytes());
        if len >= MAC_LEN + GENERATION_AT {
            reseal(&mut copy, &key(1));
            copy[len..].fill(0);
        }
        let error = open(&copy, &key(1)).unwrap_err();
        assert!(matches!(error, Error::EnvelopeDamaged(_)), "length {len}: {error:?}");
    }
}

const CURRENT_AT: usize = RECORDS_AT;
const RETIRED_AT: usize = CURRENT_AT + 8;
const PROTECTOR_AT: usize = RETIRED_AT + 8 + 72;
const FLAGS_AT: usize = PROTECTOR_AT + 5 + 9 + 9 + 3 + 13 + 8;
const BLOB_AT: usize = FLAGS_AT + 1 + 2;

type Attack = (&'static str, fn(&mut Vec<u8>), &'static str);

/// A change of a copy that the key's holder wrote, and the expected message.
const FORGED: [Attack; 9] = [
    ("generation raised", |c| c[GENERATION_AT + 7] += 1, "MAC"),
    ("file id of another database", |c| c[FILE_ID_AT] ^= 1, "MAC"),
    ("scan said to be complete", |c| c[SCAN_STATE_AT] = 4, "MAC"),
    ("read-only flag set", |c| c[FLAGS_AT] = 1, "MAC"),
    ("suite of the current DEK changed", |c| c[CURRENT_AT + 4] = 2, "MAC"),
    (
        "MAC zeroed",
        |c| {
            let used = used(c);
            c[used - MAC_LEN..used].fill(0)
        },
        "MAC",
    ),
    ("MAC of another key", |c| reseal(c, &key(2)), "MAC"),
    ("length lowered", |c| c[LENGTH_AT + 3] -= 1, "padding"),
    (
        "protector of another envelope spliced in",
        |c| {
            let mut other = sample();
            other.protectors[0].wrapped.blob = vec![0xee; 72];
            let other = other.encode(&key(2)).unwrap();
            c[BLOB_AT..BLOB_AT + 72].copy_from_slice(&other[BLOB_AT..BLOB_AT + 72]);
        },
        "MAC",
    ),
];

/// Copies with a right MAC that no encoder writes: the structure alone must refuse them.
const SEALED: [Attack; 23] = [
    ("format 0", |c| c[FORMAT_AT + 3] = 0, "format is 0"),
    ("generation 0", |c| c[GENERATION_AT + 7] = 0, "generation is 0"),
    ("page size 512", |c| c[PAGE_SIZE_AT + 2] = 2, "page size"),
    ("page size 4097", |c| c[PAGE_SIZE_AT + 3] = 1, "page size"),
    ("page size 69632", |c| c[PAGE_SIZE_AT + 1] = 1, "page size"),
    ("scan state 5", |c| c[SCAN_STATE_AT] = 5, "scan state is 5"),
    ("bytes after the scan state used", |c| c[SCAN_ZERO_AT + 1] = 1, "after the scan state"),
    ("a flag that is none", |c| c[FLAGS_AT] |= 2, "flags are 0x02"),
    ("the byte after the flags used", |c| c[FLAGS_ZERO_AT] = 1, "after the flags"),
    ("no DEK", |c| c[DEK_COUNT_AT] = 0, "DEK count"),
    ("255 DEKs", |c| c[DEK_COUNT_AT] = 255, ""),
    ("no protector", |c| c[PROTECTOR_COUNT_AT] = 0, "after the last record"),
    ("one protector hidden", |c| c[PROTECTOR_COUNT_AT] = 1, "after the last record"),
    ("255 protectors", |c| c[PROTECTOR_COUNT_AT] = 255, "cut off"),
    ("DEK duplicated", |c| c[RETIRED_AT + 3] = 2, "DEK key version occurs twice"),
    ("DEK key version 0", |c| c[RETIRED_AT + 3] = 0, "DEK key version is 0"),
    ("unknown suite", |c| c[CURRENT_AT + 4] = 9, "DEK suite is 9"),
    ("byte after the suite used", |c| c[CURRENT_AT + 5] = 1, "after the DEK suite"),
    ("unknown flags set", |c| c[FLAGS_AT] = 0x82, "flags are 0x82"),
    ("name not UTF-8", |c| c[PROTECTOR_AT + 1] = 0xff, "protector name is not UTF-8"),
    ("wrapped DEK beyond the records", |c| c[FLAGS_AT + 1] = 0xff, "cut off"),
    (
        "first byte of the padding used",
        |c| {
            let used = used(c);
            c[used] = 1
        },
        "padding",
    ),
    ("last byte of the padding used", |c| c[COPY_LEN - 1] = 1, "padding"),
];

#[test]
fn forged_copies_are_damaged() {
    for (resealed, table) in [(false, &FORGED[..]), (true, &SEALED[..])] {
        for (attack, change, words) in table {
            let mut copy = sample().encode(&key(1)).unwrap();
            change(&mut copy);
            if resealed {
                reseal(&mut copy, &key(1));
            }
            match open(&copy, &key(1)) {
                Err(Error::EnvelopeDamaged(reason)) if reason.contains(words) => {}
                other => panic!("{attack}: {other:?}"),
            }
        }
    }
}

#[test]
fn a_later_format_is_told_apart_from_damage() {
    for format in [2, 258, u32::MAX] {
        let mut copy = sample().encode(&key(1)).unwrap();
        copy[FORMAT_AT..LENGTH_AT].copy_from_slice(&format.to_be_bytes());
        copy[LENGTH_AT..].fill(0xaa);
        let error = Unverified::decode(&copy).unwrap_err();
        let same = matches!(error, Error::FormatTooNew { found, supported: 1 } if found == format);
        assert!(same, "format {format}: {error:?}");
    }
}

type Edit = (fn(&mut Envelope), &'static str);

#[test]
fn what_is_out_of_bounds_is_not_written() {
    let table: [Edit; 18] = [
        (|e| e.generation = 0, "generation"),
        (|e| e.page_size = 512, "page size"),
        (|e| e.page_size = 131_072, "page size"),
        (|e| e.page_size = 5000, "page size"),
        (|e| e.current.version = 0, "DEK key version is 0"),
        (|e| e.current.version = 1, "DEK key version occurs twice"),
        (|e| e.current.wrapped = vec![1], "current DEK"),
        (|e| e.retired[0].wrapped.clear(), "wrapped length of a retired DEK"),
        (|e| e.retired = vec![e.retired[0].clone(); 4], "DEK count"),
        (|e| e.protectors.clear(), "protector count"),
        (|e| e.protectors = (0..9).map(|n| protector(&n.to_string())).collect(), "protector count"),
        (|e| e.protectors[0].name.clear(), "protector name is empty"),
        (|e| e.protectors[0].name = e.protectors[1].name.clone(), "protector name occurs twice"),
        (|e| e.protectors[0].name = "n".repeat(256), "protector name is over 255"),
        (|e| e.protectors[0].wrapped.mechanism = "m".repeat(256), "mechanism is over 255"),
        (|e| e.protectors[0].key_id = "k".repeat(65536), "key id is over 65535"),
        (|e| e.protectors[0].wrapped.blob = vec![1; 2049], "wrapped DEK length of a protector"),
        (|e| e.protectors[0].key_id = "k".repeat(7500), "bytes of 7680"),
    ];
    for (n, (change, words)) in table.into_iter().enumerate() {
        let mut envelope = sample();
        change(&mut envelope);
        match envelope.encode(&key(1)) {
            Err(Error::Usage(reason)) if reason.contains(words) => {}
            other => panic!("row {n}, {words}: {other:?}"),
        }
    }
}

#[test]
fn a_full_copy_fits_and_one_byte_more_does_not() {
    let mut envelope = sample();
    let room = COPY_LEN - used(&envelope.encode(&key(1)).unwrap());
    envelope.protectors[0].key_id.push_str(&"k".repeat(room));
    let copy = envelope.encode(&key(1)).unwrap();
    assert_eq!(open(&copy, &key(1)).unwrap(), envelope);
    envelope.protectors[0].key_id.push('k');
    assert!(matches!(envelope.encode(&key(1)), Err(Error::Usage(_))));
}

/// A copy of three sectors; the second is inside the wrapped DEK of the first protector.
fn copy(generation: u64) -> Vec<u8> {
    let mut envelope = Envelope { generation, ..sample() };
    envelope.protectors[0].wrapped.blob = vec![0xb1; 1000];
    region(&envelope)
}

/// A copy, and an empty slot behind it.
fn region(envelope: &Envelope) -> Vec<u8> {
    let mut region = envelope.encode(&key(1)).unwrap();
    region.resize(REGION_LEN, 0);
    region
}

#[test]
fn a_first_write_without_its_last_sector_does_not_parse() {
    let mut envelope = sample();
    envelope.protectors.truncate(1);
    envelope.protectors[0].wrapped.blob = vec![0xb1; 800];
    let mut copy = envelope.encode(&key(1)).unwrap();
    assert!(copy[1024..].iter().any(|byte| *byte != 0));
    copy[1024..].fill(0);
    assert!(matches!(Unverified::decode(&copy), Err(Error::EnvelopeDamaged(_))));
    assert!(is_unfinished(&copy, COPY_LEN as u64));
}

#[test]
fn the_newest_copy_that_parses_comes_first() {
    let (zeros, torn) = (vec![0; REGION_LEN], [&copy(9)[..512], &[0; REGION_LEN - 512]].concat());
    let mut other = sample();
    other.file_id = [9; 16];
    let other = region(&other);
    let table = [
        ("only A, as first written", copy(1), zeros.clone(), vec![1]),
        ("B is newer", copy(1), copy(2), vec![2, 1]),
        ("A is newer", copy(3), copy(2), vec![3, 2]),
        ("A torn", torn.clone(), copy(8), vec![8]),
        ("B torn", copy(8), torn, vec![8]),
        ("A zeros", zeros, copy(2), vec![2]),
        ("another database's copy", copy(5), other, vec![5, 3]),
        ("B missing", copy(4), Vec::new(), vec![4]),
    ];
    for (name, a, b, expected) in table {
        let found = candidates(&[&a[..], &b].concat()).unwrap();
        let generations: Vec<u64> = found.iter().map(Unverified::generation).collect();
        assert_eq!(generations, expected, "{name}");
    }
    let with_pages = [copy(1), copy(2), vec![0x55; 4096]].concat();
    assert_eq!(candidates(&with_pages).unwrap().len(), 2);
}

#[test]
fn where_no_copy_parses_the_error_says_why() {
    let zeros = vec![0; REGION_LEN];
    let mut damaged = copy(1);
    damaged[SCAN_STATE_AT] = 77;
    let mut newer = copy(1);
    newer[FORMAT_AT + 3] = 2;
    let plain = [&b"SQLite format 3\0"[..], &[0; REGION_LEN - 16]].concat();
    let table = [
        ("empty", vec![], vec![], "not a database: "),
        ("zeros", zeros.clone(), zeros.clone(), "not a database: "),
        ("plaintext", plain, zeros.clone(), "not a database: "),
        ("A newer, B damaged", newer.clone(), damaged.clone(), "format 2 is too new"),
        ("A zeros, B newer", zeros.clone(), newer, "format 2 is too new"),
        (
            "A damaged, B zeros",
            damaged,
            zeros,
            "envelope damaged: copy A: scan state is 77; copy B: the magic bytes are missing",
        ),
    ];
    for (name, a, b, words) in table {
        let error = candidates(&[a, b].concat()).unwrap_err().to_string();
        assert!(error.starts_with(words), "{name}: {error}");
    }
}

#[test]
fn only_a_creation_that_was_cut_off_is_unfinished() {
    let good = copy(1);
    let later = region(&Envelope { has_pages: true, generation: 2, ..sample() });
    let then = |copy: &[u8], len: usize, fill: u8| {
        [&copy[..len], &vec![fill; ENVELOPE_LEN - len]].concat()
    };
    let mut newer = then(&good, 512, 0);
    newer[FORMAT_AT + 3] = 2;
    let plain = [&b"SQLite format 3\0"[..], &[0; 4080]].concat();
    let zero_then = |at: usize| {
        let mut file = vec![0; ENVELOPE_LEN];
        file[at] = 1;
        file
    };
    let slot_alone = [&[0; COPY_LEN][..], &[7; 512]].concat();
    let mut with_slot = good.clone();
    with_slot[COPY_LEN..].fill(7);
    let inside = [&good[..512], &[0; 512], &good[1024..]].concat();
    let table = [
        ("first sector only", good[..512].to_vec(), true),
        ("first sector, then zeros", then(&good, 512, 0), true),
        ("first two sectors, then zeros", then(&good, 1024, 0), true),
        ("second sector and end lost", [&good[..512], &[0; 512], &good[1024..1536]].concat(), true),
        ("a sector inside a wrapped key lost", inside, true),
        ("length grown, nothing written", vec![0; ENVELOPE_LEN], true),
        ("a slot alone", slot_alone, true),
        ("copy A and a slot", with_slot, true),
        ("one sector of zeros", vec![0; 512], true),
        ("copy A", good.clone(), true),
        ("copy A, with room for B", then(&good, REGION_LEN, 0), true),
        ("copy A, and B of a commit whose pages were lost", [&good[..], &later].concat(), true),
        ("copy A, and half of that B", [&good[..], &later[..512]].concat(), true),
        ("nothing", vec![], false),
        ("less than the magic", good[..15].to_vec(), false),
        ("less than a sector", good[..511].to_vec(), false),
        ("A but for its last byte", good[..REGION_LEN - 1].to_vec(), false),
        ("less than a sector of zeros", vec![0; 511], false),
        ("a database cut at its first page", [&later[..], &later].concat(), false),
        ("cut within copy B", [&later[..], &later[..4096]].concat(), false),
        ("cut at copy B", later.clone(), false),
        ("cut within copy A", later[..512].to_vec(), false),
        ("cut, and zeros behind", then(&later, 4096, 0), false),
        ("B alone", [vec![0; REGION_LEN], good.clone()].concat(), false),
        ("plaintext", plain, false),
        ("of a later format", newer, false),
        ("something in the first sector", zero_then(100), false),
        ("something in the second sector", zero_then(512), false),
        ("something in B", zero_then(REGION_LEN), false),
        ("torn A, something in B", [&then(&good, 512, 0)[..REGION_LEN], &[7; 512]].concat(), false),
    ];
    for (name, file, expected) in table {
        let len = file.len() as u64;
        assert_eq!(is_unfinished(&file, len), expected, "{name}");
        let padded = [&file[..], &vec![0; ENVELOPE_LEN - file.len()]].concat();
        assert_eq!(is_unfinished(&padded, len), expected, "{name}, read with zeros after it");
        assert!(!is_unfinished(&padded, ENVELOPE_LEN as u64 + 1), "{name}, with a page");
        if len > 0 {
            assert!(!is_unfinished(&file[1..], len), "{name}, header read in part");
        }
    }
}
