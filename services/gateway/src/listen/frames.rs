//! Counts the frames of an HTTP/2 connection that cost us work and the client nothing.
//!
//! The protocol's own bounds (streams, windows, the list of fields) are kept by `h2`. What they do
//! not bound is how often: a client may open and take back streams, send settings, pings and empty
//! frames as fast as its line allows, and each of them is answered or acted upon.

use super::{
    life::Life,
    limits::{IDLE_FRAMES_PER_SECOND_MAX, RESETS_PER_SECOND_MAX},
};

const HEADER_BYTES: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const WINDOW_UPDATE: u8 = 8;
const ACK_OR_END_STREAM: u8 = 1;

/// Where the frames of a connection are.
#[derive(Debug)]
pub(super) struct Frames {
    /// Bytes of a frame's content to skip. The preface is not among what is counted.
    left: usize,
    header: [u8; HEADER_BYTES],
    /// Of the header, so many bytes are there.
    have: usize,
}

impl Frames {
    pub(super) const fn new() -> Self {
        Self {
            left: 0,
            header: [0; HEADER_BYTES],
            have: 0,
        }
    }

    /// Counts the frames that begin in these bytes.
    ///
    /// # Errors
    /// There were too many of a kind since the last look.
    pub(super) fn count(&mut self, bytes: &[u8], life: &Life) -> Result<(), &'static str> {
        let mut bytes = bytes;
        loop {
            let skipped = self.left.min(bytes.len());
            (_, bytes) = bytes.split_at_checked(skipped).unwrap_or((bytes, &[]));
            self.left = self.left.saturating_sub(skipped);
            let Some((byte, behind)) = bytes.split_first() else {
                return Ok(());
            };
            bytes = behind;
            if let Some(slot) = self.header.get_mut(self.have) {
                *slot = *byte;
            }
            self.have = self.have.saturating_add(1);
            if self.have == HEADER_BYTES {
                self.have = 0;
                self.begin(life)?;
            }
        }
    }

    fn begin(&mut self, life: &Life) -> Result<(), &'static str> {
        let [high, middle, low, kind, flags, ..] = self.header;
        let length = u32::from_be_bytes([0, high, middle, low]);
        self.left = usize::try_from(length).unwrap_or(usize::MAX);
        match kind {
            HEADERS | WINDOW_UPDATE => {}
            DATA if length > 0 || flags & ACK_OR_END_STREAM != 0 => {}
            RST_STREAM => {
                life.resets.add(1);
                if life.resets.get() > u64::from(RESETS_PER_SECOND_MAX) {
                    return Err("too many streams were taken back within a second");
                }
            }
            _ => {
                life.idle_frames.add(1);
                if life.idle_frames.get() > u64::from(IDLE_FRAMES_PER_SECOND_MAX) {
                    return Err("too many frames without a use came within a second");
                }
            }
        }
        Ok(())
    }
}
