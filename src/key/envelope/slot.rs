//! A slot: identifies the log that may be played back over the database file.
//!
//! ```text
//! 0       16       20         28      44    60       64        68    100     512
//! | magic | number | sequence | state | log | partly | brought | MAC | zeros |
//! ```
//! There are two, each in the last sector of the 8 KiB of a copy of the envelope, number 0 beside
//! copy A. The valid one of higher sequence counts. The MAC is HMAC-SHA-256 of everything before it
//! under the envelope subkey; its magic tells it from that of a copy.
//!
//! `state` names the content that the file had after the last checkpoint that brought a whole log
//! to it. It is derived from the frames brought: the first 16 bytes of HMAC-SHA-256 under the
//! envelope subkey of `"sqlite-tde state"`, the state on which that log was begun, its id, the
//! number of its last frame (4) and that frame's trailer (48). So the same logs, brought to a copy
//! of the file one after another, lead to the same states. An initial state is random. `log` is the
//! id of a log, or zeros: where `partly` is 0, that very log; where it is 1, one that was begun on
//! `state` and of which a checkpoint has begun to bring pages to the file since. Its frames from 1
//! to `brought` may be there: without each of them the file has half of what was committed.

use subtle::ConstantTimeEq;

use super::{MAC_LEN, SECTOR_LEN, is_zero, mac};
use crate::page::{FrameNo, LogId, RESERVE};
use crate::secret::{Secret, fill_random};

/// Names one content of a database file.
pub(crate) type StateId = [u8; 16];

const STATE_LABEL: &[u8; 16] = b"sqlite-tde state";

/// The last frame of a log: its number and its trailer.
pub(crate) type LastFrame = (FrameNo, [u8; RESERVE]);

const MAGIC: &[u8; 16] = b"sqlite-tde slot\0";
const NUMBER_AT: usize = MAGIC.len();
const SEQUENCE_AT: usize = NUMBER_AT + size_of::<u32>();
const STATE_AT: usize = SEQUENCE_AT + size_of::<u64>();
const LOG_AT: usize = STATE_AT + size_of::<StateId>();
const PARTLY_AT: usize = LOG_AT + size_of::<LogId>();
const BROUGHT_AT: usize = PARTLY_AT + size_of::<u32>();
const MAC_AT: usize = BROUGHT_AT + size_of::<u32>();
const USED: usize = MAC_AT + MAC_LEN;
/// Bytes of a slot.
pub(crate) const SLOT_LEN: usize = SECTOR_LEN;

const _: () = assert!(USED <= SLOT_LEN);

/// The content of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) sequence: u64,
    pub(crate) state: StateId,
    pub(crate) log: LogId,
    pub(crate) partly: bool,
    pub(crate) brought: FrameNo,
}

/// Whether a log may be played back over a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fit {
    No,
    /// The file is in the state on which the log was begun.
    Begun,
    /// Checkpoints have brought its frames to the file up to this one, or some of their pages.
    Brought {
        frames: FrameNo,
        /// The file has, or may have, more of its frames.
        partly: bool,
    },
}

impl Slot {
    /// The slot of a file in an initial state.
    pub(crate) fn anew(sequence: u64) -> crate::Result<Self> {
        let mut state = StateId::default();
        fill_random(&mut state)?;
        Ok(Self { sequence, state, log: LogId::default(), partly: false, brought: FrameNo::NONE })
    }

    /// The fit of the log with id `log` that was begun on `state`.
    pub(crate) fn fit(&self, log: &LogId, state: &StateId) -> Fit {
        if self.log == *log {
            Fit::Brought { frames: self.brought, partly: self.partly }
        } else if !self.partly && self.state == *state {
            Fit::Begun
        } else {
            Fit::No
        }
    }

    /// The state of a file to which all of `log` was brought, begun on `state` and ended by `last`;
    /// nothing without a MAC key.
    pub(crate) fn state_after(
        state: &StateId,
        log: &LogId,
        (frame, trailer): &LastFrame,
        mac_key: &Secret,
    ) -> Option<StateId> {
        let what = [STATE_LABEL, &state[..], log, &frame.0.to_be_bytes(), trailer].concat();
        mac(mac_key, &what)?.first_chunk().copied()
    }

    /// As slot `number`; nothing without a MAC key.
    pub(crate) fn encode(&self, number: u32, mac_key: &Secret) -> Option<[u8; SLOT_LEN]> {
        let mut bytes = [0; SLOT_LEN];
        bytes[..NUMBER_AT].copy_from_slice(MAGIC);
        bytes[NUMBER_AT..SEQUENCE_AT].copy_from_slice(&number.to_be_bytes());
        bytes[SEQUENCE_AT..STATE_AT].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[STATE_AT..LOG_AT].copy_from_slice(&self.state);
        bytes[LOG_AT..PARTLY_AT].copy_from_slice(&self.log);
        bytes[PARTLY_AT..BROUGHT_AT].copy_from_slice(&u32::from(self.partly).to_be_bytes());
        bytes[BROUGHT_AT..MAC_AT].copy_from_slice(&self.brought.0.to_be_bytes());
        let tag = mac(mac_key, &bytes[..MAC_AT])?;
        bytes[MAC_AT..USED].copy_from_slice(&tag);
        Some(bytes)
    }

    /// `bytes` decoded, if the holder of `mac_key` wrote them as slot `number`.
    pub(crate) fn decode(bytes: &[u8], number: u32, mac_key: &Secret) -> Option<Self> {
        let known = bytes.len() == SLOT_LEN
            && bytes.starts_with(MAGIC)
            && bytes[NUMBER_AT..SEQUENCE_AT] == number.to_be_bytes()
            && is_zero(&bytes[USED..]);
        // Of a slot that was never written, no MAC is asked.
        if !known || !bool::from(mac(mac_key, &bytes[..MAC_AT])?.ct_eq(&bytes[MAC_AT..USED])) {
            return None;
        }
        Some(Self {
            sequence: u64::from_be_bytes(*bytes[SEQUENCE_AT..].first_chunk()?),
            state: *bytes[STATE_AT..].first_chunk()?,
            log: *bytes[LOG_AT..].first_chunk()?,
            partly: bytes[BROUGHT_AT - 1] != 0,
            brought: FrameNo(u32::from_be_bytes(*bytes[BROUGHT_AT..].first_chunk()?)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> Secret {
        Secret::from_slice(&[byte; 32]).unwrap()
    }

    const BROUGHT: FrameNo = FrameNo(5);
    const SLOT: Slot =
        Slot { sequence: 7, state: [3; 16], log: [4; 16], partly: true, brought: BROUGHT };

    #[test]
    fn a_slot_is_what_its_holder_wrote_at_its_place() {
        for slot in [
            SLOT,
            Slot { partly: false, ..SLOT },
            Slot { sequence: u64::MAX, ..SLOT },
            Slot { brought: FrameNo::MAX, ..SLOT },
        ] {
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
    fn logs_that_fit() {
        let whole = Slot { partly: false, ..SLOT };
        let brought = |partly| Fit::Brought { frames: BROUGHT, partly };
        for (what, slot, log, state, fit) in [
            ("the log that was brought to the file", whole, 4, 9, brought(false)),
            ("one begun on its state", whole, 8, 3, Fit::Begun),
            ("any other", whole, 8, 9, Fit::No),
            ("the log that is being brought to the file", SLOT, 4, 3, brought(true)),
            ("another one begun on the same state", SLOT, 8, 3, Fit::No),
        ] {
            assert_eq!(slot.fit(&[log; 16], &[state; 16]), fit, "{what}");
        }
    }

    #[test]
    fn a_state_follows_from_all_that_was_brought_to_the_file() {
        let after = |state, log, frame, trailer, by: &Secret| {
            let last = (FrameNo(frame), [trailer; RESERVE]);
            Slot::state_after(&[state; 16], &[log; 16], &last, by).unwrap()
        };
        let states = [
            after(1, 2, 3, 4, &key(5)),
            after(9, 2, 3, 4, &key(5)),
            after(1, 9, 3, 4, &key(5)),
            after(1, 2, 9, 4, &key(5)),
            after(1, 2, 3, 9, &key(5)),
            after(1, 2, 3, 4, &key(9)),
        ];
        for (place, state) in states.iter().enumerate() {
            assert!(!states[..place].contains(state), "{place}");
        }
        assert_eq!(after(1, 2, 3, 4, &key(5)), states[0]);
    }
}
