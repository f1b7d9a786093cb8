//! Random bytes, of more than one source.
//!
//! ```text
//! operating system 32 | processor 32 | time 16 | process 4 | count 8 --HKDF-SHA-256--> bytes
//! ```
//! The operating system's generator alone is enough for unpredictable bytes. The others keep clones
//! of a running machine apart, in which that generator may repeat until it learns of the cloning
//! (Linux does, if the machine has a VM generation id). The processor's generator, if it has one,
//! is not part of what is cloned. Time, process and count add what little they can: HKDF's
//! extraction (RFC 5869) takes nothing away from the best of its inputs by mixing in others.
//!
//! Nothing is kept from one call to the next but the count: there is no state that a fork could
//! copy.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

use super::stack::{HASHES, without_trace};
use crate::error::{Error, Result};
use crate::process::forks;

const LABEL: &[u8] = b"sqlite-tde v1 random";

/// Bytes of each of both generators: as many as the hash has.
const LEN: usize = 32;

/// The inputs of one derivation.
struct Sources {
    system: Zeroizing<[u8; LEN]>,
    processor: Zeroizing<[u8; LEN]>,
    time: u128,
    process: u32,
    count: u64,
}

/// Fills `bytes` with random ones.
///
/// # Errors
/// [`Error::Random`] if the operating system has none to give.
pub(crate) fn fill_random(bytes: &mut [u8]) -> Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut system = Zeroizing::new([0; LEN]);
    of_system(&mut system)?;
    let sources = Sources {
        system,
        processor: of_processor(),
        time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos()),
        process: process_id(),
        count: COUNT.fetch_add(1, Ordering::Relaxed),
    };
    without_trace::<HASHES, _>(|| sources.mix(bytes))
}

/// Random bytes of the operating system: by its call, or where a sandbox denies that, from its
/// device.
fn of_system(bytes: &mut [u8; LEN]) -> Result<()> {
    let Err(error) = getrandom::fill(bytes) else { return Ok(()) };
    match of_device(bytes) {
        Ok(()) => Ok(()),
        Err(_) => Err(Error::Random(error.into())),
    }
}

#[cfg(unix)]
fn of_device(bytes: &mut [u8]) -> std::io::Result<()> {
    use std::io::Read;
    use std::os::unix::fs::FileTypeExt;
    let mut device = std::fs::File::open("/dev/urandom")?;
    match device.metadata()?.file_type().is_char_device() {
        true => device.read_exact(bytes),
        false => Err(std::io::ErrorKind::NotFound.into()),
    }
}

#[cfg(not(unix))]
fn of_device(_: &mut [u8]) -> std::io::Result<()> {
    Err(std::io::ErrorKind::NotFound.into())
}

/// The id of this process, asked of the system once in each.
fn process_id() -> u32 {
    static KNOWN: AtomicU64 = AtomicU64::new(0);
    // The lower half is the id, the upper one the process that it is of.
    let (known, process) = (KNOWN.load(Ordering::Relaxed), forks::process() << 32);
    if known != 0 && known & !u64::from(u32::MAX) == process {
        return known as u32;
    }
    let id = crate::process::id();
    KNOWN.store(process | u64::from(id), Ordering::Relaxed);
    id
}

/// Looks for the processor's generator, so that no later call is its first: a thread that forks
/// while another one looks would leave the child waiting.
pub(crate) fn find_generator() {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64"))]
    std::sync::LazyLock::force(&GENERATOR);
}

impl Sources {
    fn mix(&self, bytes: &mut [u8]) -> Result<()> {
        let mut input = Zeroizing::new([0; 2 * LEN + 16 + 4 + 8]);
        let parts: [&[u8]; 5] = [
            &*self.system,
            &*self.processor,
            &self.time.to_be_bytes(),
            &self.process.to_be_bytes(),
            &self.count.to_be_bytes(),
        ];
        let mut rest = &mut input[..];
        for part in parts {
            let (place, after) = rest.split_at_mut(part.len());
            place.copy_from_slice(part);
            rest = after;
        }
        let (mut prk, hkdf) = Hkdf::<Sha256>::extract(Some(LABEL), &*input);
        prk.as_mut_slice().zeroize();
        hkdf.expand(&[], bytes).map_err(|_| Error::Random("too many at once".into()))
    }
}

/// From the processor's own generator; zeros if it has none.
fn of_processor() -> Zeroizing<[u8; LEN]> {
    #[allow(unused_mut)]
    let mut bytes = Zeroizing::new([0; LEN]);
    #[cfg(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64"))]
    if let Some(mut generator) = *GENERATOR {
        use rand_core::TryRng;
        // Bytes that it could not give stay zeros.
        let _ = generator.try_fill_bytes(&mut *bytes);
    }
    bytes
}

/// The processor is asked once whether it has a generator: in a virtual machine that question costs
/// more than many answers.
#[cfg(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64"))]
static GENERATOR: std::sync::LazyLock<Option<rdrand::RdRand>> = std::sync::LazyLock::new(|| {
    // Before the kernel knows of the generator, looking for it may be an illegal instruction.
    #[cfg(target_arch = "aarch64")]
    if !std::arch::is_aarch64_feature_detected!("rand") {
        return None;
    }
    rdrand::RdRand::new().ok()
});

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(sources: &Sources) -> [u8; 24] {
        let mut bytes = [0; 24];
        sources.mix(&mut bytes).unwrap();
        bytes
    }

    fn sources() -> Sources {
        let [system, processor] = [[1; LEN], [2; LEN]].map(Zeroizing::new);
        Sources { system, processor, time: 3, process: 4, count: 5 }
    }

    /// HKDF-SHA-256 of the same input, by another implementation (Python's hmac).
    #[test]
    fn known_answer() {
        let want = "c51525d22133315afce70a754df4bed0f8ba509916e2a858";
        assert_eq!(bytes(&sources()).to_vec(), crate::suite::tests::hex(want));
    }

    #[test]
    fn each_source_alone_makes_other_bytes() {
        let same = bytes(&sources());
        assert_eq!(bytes(&sources()), same);
        type Change = fn(&mut Sources);
        let rows: [(&str, Change); 5] = [
            ("operating system", |sources| sources.system[31] ^= 1),
            ("processor", |sources| sources.processor[0] ^= 1),
            ("time", |sources| sources.time += 1),
            ("process", |sources| sources.process += 1),
            ("count", |sources| sources.count += 1),
        ];
        for (name, change) in rows {
            let mut sources = sources();
            change(&mut sources);
            assert_ne!(bytes(&sources), same, "{name}");
        }
    }

    /// If the processor has a generator, it is used, and returns other bytes each time.
    #[test]
    fn the_processor_is_asked() {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("rdrand") {
            let (a, b) = (of_processor(), of_processor());
            assert!(*a != [0; LEN] && *a != *b);
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_stack_is_wiped_to_its_depth() {
        use crate::secret::stack::tests::depth_of;
        let (sources, mut out) = (sources(), [0; 32]);
        let deep = depth_of(|| sources.mix(&mut out).unwrap());
        assert!((1..HASHES).contains(&deep), "{deep}");
    }
}
