//! A slot: which log may be played back over the database file.
//!
//! ```text
//! 0       16       20         28      44    60       64    96      512
//! | magic | number | sequence | state | log | partly | MAC | zeros |
//! ```
//! There are two, each in the last sector of the 8 KiB of a copy of the envelope, number 0 beside
//! copy A. The valid one of higher sequence counts. The MAC is HMAC-SHA-256 of everything before it
//! under the envelope subkey; its magic tells it from that of a copy.
//!
//! `state` names the content that the file had after the last checkpoint that brought a whole log
//! to it. `log` is the id of a log, or zeros: where `partly` is 0, that very log; where it is 1,
//! one that was begun on `state` and of which a checkpoint has begun to bring pages to the file
//! since.

use subtle::ConstantTimeEq;

use super::{MAC_LEN, SECTOR_LEN, is_zero, mac};
use crate::page::LogId;
use crate::secret::{Secret, fill_random};

/// Names one content of a database file.
pub(crate) type StateId = [u8; 16];

const MAGIC: &[u8; 16] = b"sqlite-tde slot\0";
const NUMBER_AT: usize = MAGIC.len();
const SEQUENCE_AT: usize = NUMBER_AT + size_of::<u32>();
const STATE_AT: usize = SEQUENCE_AT + size_of::<u64>();
const LOG_AT: usize = STATE_AT + size_of::<StateId>();
const PARTLY_AT: usize = LOG_AT + size_of::<LogId>();
const MAC_AT: usize = PARTLY_AT + size_of::<u32>();
const USED: usize = MAC_AT + MAC_LEN;
/// Bytes of a slot.
pub(crate) const SLOT_LEN: usize = SECTOR_LEN;

const _: () = assert!(USED <= SLOT_LEN);

/// What a slot says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) sequence: u64,
    pub(crate) state: StateId,
    pub(crate) log: LogId,
    pub(crate) partly: bool,
}

impl Slot {
    /// The slot of a file whose content nothing else names, and over which `log` may be played
    /// back.
    pub(crate) fn anew(sequence: u64, log: LogId) -> crate::Result<Self> {
        let mut state = StateId::default();
        fill_random(&mut state)?;
        Ok(Self { sequence, state, log, partly: false })
    }

    /// Whether a log may be played back that has the id `log` and was begun on `state`.
    pub(crate) fn admits(&self, log: &LogId, state: &StateId) -> bool {
        self.log == *log || !self.partly && self.state == *state
    }

    /// As slot `number`; nothing without a MAC key.
    pub(crate) fn encode(&self, number: u32, mac_key: &Secret) -> Option<[u8; SLOT_LEN]> {
        let mut bytes = [0; SLOT_LEN];
        bytes[..NUMBER_AT].copy_from_slice(MAGIC);
        bytes[NUMBER_AT..SEQUENCE_AT].copy_from_slice(&number.to_be_bytes());
        bytes[SEQUENCE_AT..STATE_AT].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[STATE_AT..LOG_AT].copy_from_slice(&self.state);
        bytes[LOG_AT..PARTLY_AT].copy_from_slice(&self.log);
        bytes[PARTLY_AT..MAC_AT].copy_from_slice(&u32::from(self.partly).to_be_bytes());
        let tag = mac(mac_key, &bytes[..MAC_AT])?;
        bytes[MAC_AT..USED].copy_from_slice(&tag);
        Some(bytes)
    }

    /// What `bytes` say, if the holder of `mac_key` wrote them as slot `number`.
    pub(crate) fn decode(bytes: &[u8], number: u32, mac_key: &Secret) -> Option<Self> {
        let known = bytes.len() == SLOT_LEN
            && bytes.starts_with(MAGIC)
            && bytes[NUMBER_AT..SEQUENCE_AT] == number.to_be_bytes()
            && is_zero(&bytes[USED..]);
        let tag = mac(mac_key, bytes.get(..MAC_AT)?).filter(|_| known)?;
        if !bool::from(tag.ct_eq(&bytes[MAC_AT..USED])) {
            return None;
        }
        Some(Self {
            sequence: u64::from_be_bytes(*bytes[SEQUENCE_AT..].first_chunk()?),
            state: *bytes[STATE_AT..].first_chunk()?,
            log: *bytes[LOG_AT..].first_chunk()?,
            partly: bytes[MAC_AT - 1] != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> Secret {
        Secret::from_slice(&[byte; 32]).unwrap()
    }

    const SLOT: Slot = Slot { sequence: 7, state: [3; 16], log: [4; 16], partly: true };

    #[test]
    fn a_slot_is_what_its_holder_wrote_at_its_place() {
        for slot in [SLOT, Slot { partly: false, ..SLOT }, Slot { sequence: u64::MAX, ..SLOT }] {
            for number in [0, 1] {
                let bytes = slot.encode(number, &key(1)).unwrap();
                assert_eq!(Slot::decode(&bytes, number, &key(1)), Some(slot));
                assert_eq!(Slot::decode(&bytes, 1 - number, &key(1)), None, "the other's place");
                assert_eq!(Slot::decode(&bytes, number, &key(2)), None, "another database's");
                for bit in 0..SLOT_LEN * 8 {
                    let mut bad = bytes;
                    bad[bit / 8] ^= 1 << (bit % 8);
                    assert_eq!(Slot::decode(&bad, number, &key(1)), None, "bit {bit}");
                }
                for len in 0..SLOT_LEN {
                    assert_eq!(Slot::decode(&bytes[..len], number, &key(1)), None, "{len} bytes");
                }
            }
        }
        assert_eq!(Slot::decode(&[0; SLOT_LEN], 0, &key(1)), None, "zeros");
    }

    #[test]
    fn logs_that_a_slot_admits() {
        let whole = Slot { partly: false, ..SLOT };
        for (what, slot, log, state, admitted) in [
            ("the log that was brought to the file", whole, 4, 9, true),
            ("one begun on its state", whole, 8, 3, true),
            ("any other", whole, 8, 9, false),
            ("the log that is being brought to the file", SLOT, 4, 3, true),
            ("another one begun on the same state", SLOT, 8, 3, false),
        ] {
            assert_eq!(slot.admits(&[log; 16], &[state; 16]), admitted, "{what}");
        }
    }
}
