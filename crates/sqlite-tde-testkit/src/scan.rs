//! The memory of another process, searched for the keys of a database.

use std::os::unix::fs::FileExt;
use std::{fmt, fs};

use aes::Aes256;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use hkdf::Hkdf;
use sha2::Sha256;
use sqlite_tde::Cipher;

/// Half a key is as good as found.
const PART: usize = 16;
const DEK: &str = "DEK";
const MAC: &str = "envelope MAC";
const PAGE: &str = "page";
const WAL: &str = "wal";

/// The keys of one database, as they may lie in memory.
pub struct Needles {
    cipher: Cipher,
    parts: Vec<(&'static str, &'static str, [u8; PART])>,
}

impl Needles {
    /// `page` is any page of it: its nonce chose an AES-GCM key.
    pub fn new(file_id: &[u8], dek: &[u8], cipher: Cipher, page: &[u8]) -> Self {
        let mut needles = Self { cipher, parts: Vec::new() };
        let (prk, hkdf) = Hkdf::<Sha256>::extract(Some(file_id), dek);
        let derive = |label: &[u8]| expand(&hkdf, label);
        let page_key = derive(b"sqlite-tde v1 page");
        let wal_key = derive(b"sqlite-tde v1 wal");
        needles.add(DEK, dek);
        needles.add("pseudorandom key", &prk);
        needles.add(MAC, &derive(b"sqlite-tde v1 envelope"));
        needles.add(PAGE, &page_key);
        needles.add(WAL, &wal_key);
        match cipher {
            Cipher::Aes256Gcm => needles.add("GCM", &gcm_key(&page_key, &page[4096 - 44..][..12])),
            Cipher::Aegis256X4 => {}
            _ => {
                for (half, key) in [("page's", &page_key), ("wal's", &wal_key)] {
                    let (_, hkdf) = Hkdf::<Sha256>::extract(Some(&[]), key);
                    let names = match half {
                        "page's" => ["CTR, page", "HMAC, page"],
                        _ => ["CTR, wal", "HMAC, wal"],
                    };
                    needles.add(names[0], &expand(&hkdf, b"sqlite-tde v1 ctr"));
                    needles.add(names[1], &expand(&hkdf, b"sqlite-tde v1 hmac"));
                }
            }
        }
        needles
    }

    fn add(&mut self, key: &'static str, bytes: &[u8]) {
        let mut swapped = bytes.to_vec();
        swapped.chunks_exact_mut(4).for_each(<[u8]>::reverse);
        let padded = |pad| bytes.iter().map(|byte| byte ^ pad).collect();
        let forms: [(_, Vec<u8>); 4] = [
            ("as it is", bytes.to_vec()),
            ("as HMAC's inner key", padded(0x36)),
            ("as HMAC's outer key", padded(0x5c)),
            ("as words of SHA-256", swapped),
        ];
        for (form, bytes) in forms {
            let parts = bytes.chunks_exact(PART);
            self.parts.extend(parts.map(|part| (key, form, part.try_into().unwrap())));
        }
    }

    /// What a process with the database open must have, or the search finds nothing at all.
    pub fn in_use(&self, mode: &str) -> Vec<&'static str> {
        let mut keys = vec![DEK, MAC];
        match (self.cipher, mode) {
            (Cipher::Aes256Gcm, "WAL") => keys.extend([PAGE, WAL, "GCM"]),
            (Cipher::Aes256Gcm, _) => keys.extend([PAGE, "GCM"]),
            (Cipher::Aegis256X4, "WAL") => keys.extend([PAGE, WAL]),
            (Cipher::Aegis256X4, _) => keys.push(PAGE),
            (_, "WAL") => keys.extend(["CTR, page", "CTR, wal"]),
            _ => keys.push("CTR, page"),
        }
        keys
    }

    /// What is expanded in memory that libraries allocate: docs/threat-model.md says so.
    pub fn on_heap(&self, key: &str) -> bool {
        key == "GCM" || key.starts_with("CTR")
    }
}

fn expand(hkdf: &Hkdf<Sha256>, label: &[u8]) -> [u8; 32] {
    let mut key = [0; 32];
    hkdf.expand(label, &mut key).unwrap();
    key
}

/// XAES-256-GCM's derivation, from C2SP's description of it.
fn gcm_key(key: &[u8; 32], prefix: &[u8]) -> [u8; 32] {
    let aes = Aes256::new(key.into());
    let encrypt = |block: u128| {
        let mut block = block.to_be_bytes();
        aes.encrypt_block((&mut block).into());
        block
    };
    let zero = u128::from_be_bytes(encrypt(0));
    let k1 = (zero << 1) ^ (0x87 * (zero >> 127));
    let mut derived = [0; 32];
    for (counter, half) in (1..=2).zip(derived.chunks_exact_mut(16)) {
        let mut block = [&[0, counter, b'X', 0], prefix].concat();
        let input = u128::from_be_bytes(std::mem::take(&mut block).try_into().unwrap());
        half.copy_from_slice(&encrypt(input ^ k1));
    }
    derived
}

/// Half a key, in memory.
pub struct Found {
    pub key: &'static str,
    pub form: &'static str,
    pub at: usize,
    /// What the memory is.
    pub name: String,
    /// The kernel's flags for it: `lo` is locked, `dd` is in no core dump.
    pub flags: Vec<String>,
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, form, at, name, flags } = self;
        write!(f, "{key} {form} at {at:x} in {name} ({})", flags.join(" "))
    }
}

impl Found {
    pub fn is_guarded(&self) -> bool {
        ["lo", "dd"].iter().all(|flag| self.flags.iter().any(|have| have == flag))
    }
}

/// Every place where process `pid` has one of `needles`.
pub fn scan(pid: u32, needles: &Needles) -> Vec<Found> {
    let memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut starts = vec![false; 1 << 16];
    for (_, _, part) in &needles.parts {
        starts[usize::from(u16::from_le_bytes([part[0], part[1]]))] = true;
    }
    let mut found = Vec::new();
    let mut scanned = 0;
    for area in areas(pid) {
        let bytes = read(&memory, &area);
        scanned += bytes.iter().filter(|&&byte| byte != 0).count();
        for (at, window) in bytes.windows(PART).enumerate() {
            if !starts[usize::from(u16::from_le_bytes([window[0], window[1]]))] {
                continue;
            }
            for (key, form, _) in needles.parts.iter().filter(|(_, _, part)| part == window) {
                let (name, flags) = (area.name.clone(), area.flags.clone());
                found.push(Found { key, form, at: area.start + at, name, flags });
            }
        }
    }
    assert!(scanned > 1 << 20, "a process has more memory than {scanned} bytes");
    found
}

/// An area's bytes. Pages that are gone by now, or lie behind the end of a file, hold nothing.
fn read(memory: &fs::File, area: &Area) -> Vec<u8> {
    let mut bytes = vec![0; area.end - area.start];
    for (i, page) in bytes.chunks_mut(4096).enumerate() {
        let _ = memory.read_exact_at(page, (area.start + i * 4096) as u64);
    }
    bytes
}

struct Area {
    start: usize,
    end: usize,
    name: String,
    flags: Vec<String>,
}

/// The memory of `pid` that can be read, without what the kernel put there.
fn areas(pid: u32) -> Vec<Area> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut areas = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let Some((start, end)) = words[0].split_once('-') {
            let number = |text| usize::from_str_radix(text, 16).unwrap();
            let name = words[1..].join(" ");
            areas.push(Area { start: number(start), end: number(end), name, flags: Vec::new() });
        } else if words[0] == "VmFlags:"
            && let Some(area) = areas.last_mut()
        {
            area.flags = words[1..].iter().map(|&flag| flag.to_owned()).collect();
        }
    }
    areas.retain(|area| area.name.starts_with('r') && !area.name.contains("[v"));
    areas
}
