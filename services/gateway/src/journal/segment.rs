//! One segment file: its header, its frames, and how one is judged.

use std::fs::File;
use std::path::PathBuf;

use uuid::Uuid;

use super::map::{Map, WORD_BYTES};
use super::sync::Mutex;
use super::{FRAME_BYTES_MAX, HEADER_BYTES, RECORD_BYTES_MAX};

const MAGIC: [u8; 4] = *b"TGJL";
pub(super) const VERSION: u32 = 1;
/// Where the header's checksum starts; it covers everything before.
const HEADER_CRC_AT: usize = 60;
/// Bytes of a frame before its payload: commit word and checksum.
pub(super) const FRAME_HEAD_BYTES: usize = 8;
/// The shortest frame: one byte of payload.
const FRAME_BYTES_MIN: usize = frame_bytes(1);
/// Bytes of the sequence number, which the checksum covers though the file does not hold it.
const SEQ_BYTES: usize = 8;
/// A damaged place is searched for the next valid record under the assumption that it hit at
/// most this many records.
const RESYNC_RECORDS_MAX: u64 = 1024;

/// `usize` is at most 64 bits wide wherever this compiles.
pub(super) fn wide(bytes: usize) -> u64 {
    u64::try_from(bytes).expect("usize has at most 64 bits")
}

/// Bytes a record of `payload_bytes` takes in a segment.
pub(super) const fn frame_bytes(payload_bytes: usize) -> usize {
    payload_bytes
        .next_multiple_of(WORD_BYTES)
        .strict_add(FRAME_HEAD_BYTES)
}

/// Worst-case records that fit into `bytes`: what may be promised to callers.
pub(super) fn frames_in(bytes: usize) -> u64 {
    wide(bytes / FRAME_BYTES_MAX)
}

/// A record being written or read: `seq ‖ payload`, contiguous for the checksum.
pub(super) struct Scratch {
    bytes: Box<[u8; SEQ_BYTES + RECORD_BYTES_MAX]>,
}

impl Scratch {
    pub(super) fn new() -> Self {
        Self {
            bytes: Box::new([0; SEQ_BYTES + RECORD_BYTES_MAX]),
        }
    }

    pub(super) fn payload_mut(&mut self) -> &mut [u8] {
        self.bytes.split_at_mut(SEQ_BYTES).1
    }

    /// The first `bytes` of the payload; `bytes` ≤ [`RECORD_BYTES_MAX`].
    pub(super) fn payload(&self, bytes: usize) -> &[u8] {
        let (_, payload) = self.bytes.split_at(SEQ_BYTES);
        payload
            .get(..bytes)
            .expect("a payload is at most RECORD_BYTES_MAX")
    }

    /// Checksum of the first `bytes` of the payload as record `seq`.
    fn crc(&mut self, seq: u64, bytes: usize) -> u32 {
        self.bytes
            .split_at_mut(SEQ_BYTES)
            .0
            .copy_from_slice(&seq.to_le_bytes());
        let covered = self.bytes.get(..SEQ_BYTES.saturating_add(bytes));
        crc32c::crc32c(covered.expect("a payload is at most RECORD_BYTES_MAX"))
    }

    /// Fills up to the next word with zeros and returns the payload so padded.
    fn padded(&mut self, bytes: usize) -> &[u8] {
        let padded = bytes.next_multiple_of(WORD_BYTES);
        self.payload_mut()
            .get_mut(bytes..padded)
            .expect("the limit is a multiple of 8")
            .fill(0);
        self.payload(padded)
    }
}

/// What lies at an offset.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) enum Frame {
    /// Nothing was committed here.
    End,
    /// Something that is not the record it should be.
    Bad,
    /// A valid record; its payload is in the scratch.
    Record { payload_bytes: usize },
}

/// What the first 64 bytes of a segment say.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) enum Header {
    /// Never written: the segment is a spare.
    Zero,
    /// Checksum or magic is wrong.
    Bad,
    /// Written by a program with another format.
    Version(u32),
    Valid {
        journal: Uuid,
        first_seq: u64,
    },
}

/// A mapped segment file.
pub(super) struct Segment {
    map: Map,
    /// Size of the file, as counted against the limit.
    pub(super) file_bytes: u64,
    created_unix_ms: u64,
    /// Changes once, when a used spare gets its canonical name.
    pub(super) path: Mutex<PathBuf>,
    /// For `fdatasync`; closed when the segment is full and synced.
    pub(super) file: Mutex<Option<File>>,
    /// Kept as evidence: never unlinked.
    pub(super) is_quarantined: bool,
}

impl Segment {
    pub(super) fn new(map: Map, path: PathBuf, file: File, created_unix_ms: u64) -> Self {
        let file_bytes = wide(map.bytes());
        Self {
            map,
            file_bytes,
            created_unix_ms,
            path: Mutex::new(path),
            file: Mutex::new(Some(file)),
            is_quarantined: false,
        }
    }

    /// A segment of an earlier process: read only, synced by recovery.
    pub(super) fn recovered(map: Map, path: PathBuf) -> Self {
        let file_bytes = wide(map.bytes());
        let (path, file) = (Mutex::new(path), Mutex::new(None));
        Self {
            map,
            file_bytes,
            created_unix_ms: 0,
            path,
            file,
            is_quarantined: false,
        }
    }

    /// Bytes that can still be written from `offset` on.
    pub(super) fn left(&self, offset: usize) -> usize {
        self.map.bytes().saturating_sub(offset)
    }

    /// Turns a spare into the segment that starts with `first_seq`.
    pub(super) fn write_header(&self, journal: Uuid, first_seq: u64) {
        let mut header = [0_u8; HEADER_BYTES];
        let fields: [&[u8]; 6] = [
            &MAGIC,
            &VERSION.to_le_bytes(),
            journal.as_bytes(),
            &first_seq.to_le_bytes(),
            &self.created_unix_ms.to_le_bytes(),
            &u32::try_from(self.map.bytes())
                .expect("at most 1 GiB")
                .to_le_bytes(),
        ];
        let all = fields.into_iter().flatten();
        for (to, from) in header.iter_mut().zip(all) {
            *to = *from;
        }
        let (covered, crc) = header.split_at_mut(HEADER_CRC_AT);
        crc.copy_from_slice(&crc32c::crc32c(covered).to_le_bytes());
        self.map.write(0, &header);
    }

    pub(super) fn header(&self) -> Header {
        let mut header = [0_u8; HEADER_BYTES];
        if self.map.bytes() < HEADER_BYTES {
            return Header::Zero; // died while it was made
        }
        self.map.read(0, &mut header);
        if header == [0; HEADER_BYTES] {
            return Header::Zero;
        }
        let (covered, crc) = header.split_at(HEADER_CRC_AT);
        let mut fields = Fields(covered);
        let is_ours = fields.take::<4>() == MAGIC;
        if !is_ours || crc != crc32c::crc32c(covered).to_le_bytes() {
            return Header::Bad;
        }
        let version = u32::from_le_bytes(fields.take());
        if version != VERSION {
            return Header::Version(version);
        }
        let journal = Uuid::from_bytes(fields.take());
        Header::Valid {
            journal,
            first_seq: u64::from_le_bytes(fields.take()),
        }
    }

    /// Erases everything from `offset` on: what an earlier life has written behind its last record
    /// was never committed, or is lost.
    pub(super) fn erase(&self, from: usize) {
        for offset in (from..self.map.bytes()).step_by(WORD_BYTES) {
            if self.map.load(offset) != 0 {
                self.map.store(offset, 0);
            }
        }
    }

    /// Writes record `seq`, whose payload is in the scratch: payload first, commit word last.
    pub(super) fn put(&self, offset: usize, scratch: &mut Scratch, seq: u64, payload_bytes: usize) {
        let crc = scratch.crc(seq, payload_bytes);
        let payload_at = offset.strict_add(FRAME_HEAD_BYTES);
        self.map.write(payload_at, scratch.padded(payload_bytes));
        // Commit word and checksum share one aligned word: they appear together or not at all.
        let commit = u64::from(crc) << u32::BITS | wide(payload_bytes);
        self.map.store(offset, commit);
    }

    /// Judges what lies at `offset` as record `seq`.
    pub(super) fn check(&self, offset: usize, scratch: &mut Scratch, seq: u64) -> Frame {
        let Some((payload_bytes, crc)) = self.load_frame(offset, scratch) else {
            return if self.is_end(offset) {
                Frame::End
            } else {
                Frame::Bad
            };
        };
        if scratch.crc(seq, payload_bytes) == crc {
            Frame::Record { payload_bytes }
        } else {
            Frame::Bad
        }
    }

    /// Length of the frame at `offset`, taken on trust: for walking over records once checked.
    pub(super) fn frame_bytes_at(&self, offset: usize) -> Option<usize> {
        if self.is_end(offset) {
            return None;
        }
        let (payload_bytes, _) = split(self.map.load(offset))?;
        Some(frame_bytes(payload_bytes))
    }

    fn is_end(&self, offset: usize) -> bool {
        self.left(offset) < FRAME_HEAD_BYTES || self.map.load(offset) & u64::from(u32::MAX) == 0
    }

    /// Loads a frame of plausible length into the scratch; `None` if there is none.
    fn load_frame(&self, offset: usize, scratch: &mut Scratch) -> Option<(usize, u32)> {
        if self.is_end(offset) {
            return None;
        }
        let (payload_bytes, crc) = split(self.map.load(offset))?;
        if frame_bytes(payload_bytes) > self.left(offset) {
            return None;
        }
        let into = scratch.payload_mut().get_mut(..payload_bytes)?;
        self.map.read(offset.strict_add(FRAME_HEAD_BYTES), into);
        Some((payload_bytes, crc))
    }

    /// Searches for the first valid record behind a damaged one at `bad_offset`, which should
    /// have been `bad_seq`. Only records before `before_seq` count. `is_guess`: records are missing
    /// before that place, and what is there may be whole.
    pub(super) fn resync(
        &self,
        bad_offset: usize,
        bad_seq: u64,
        before_seq: u64,
        is_guess: bool,
        scratch: &mut Scratch,
    ) -> Option<(usize, u64)> {
        let mut offset = match is_guess {
            true => bad_offset,
            false => bad_offset.strict_add(FRAME_BYTES_MIN),
        };
        while self.left(offset) >= FRAME_HEAD_BYTES {
            if let Some((payload_bytes, crc)) = self.load_frame(offset, scratch) {
                // No frame is shorter than two words: so many records can lie in between.
                let between = match is_guess {
                    true => RESYNC_RECORDS_MAX,
                    false => wide(offset.strict_sub(bad_offset) / FRAME_BYTES_MIN),
                };
                let furthest = bad_seq.saturating_add(between.min(RESYNC_RECORDS_MAX));
                let first = bad_seq.saturating_add(u64::from(!is_guess));
                let mut seqs = first..before_seq.min(furthest.saturating_add(1));
                if let Some(seq) = seqs.find(|seq| scratch.crc(*seq, payload_bytes) == crc) {
                    return Some((offset, seq));
                }
            }
            offset = offset.strict_add(WORD_BYTES);
        }
        None
    }
}

/// Splits a frame's first word into payload length and checksum; `None`: no record is so long.
fn split(word: u64) -> Option<(usize, u32)> {
    let payload_bytes = usize::try_from(word & u64::from(u32::MAX)).ok()?;
    let crc = u32::try_from(word >> u32::BITS).ok()?;
    (1..=RECORD_BYTES_MAX)
        .contains(&payload_bytes)
        .then_some((payload_bytes, crc))
}

/// Takes fixed-size fields off a header.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self
            .0
            .split_first_chunk()
            .expect("the header holds every field");
        self.0 = rest;
        *field
    }
}
