//! The journal: what the gateway owes, written before the last byte of an answer leaves.
//!
//! - A record is numbered, written and committed under one lock, without a system call and
//!   without an allocation; room for it was reserved before the call was served.
//! - A committed record survives the death of the process; [`Journal::sync_to`] makes it survive
//!   the death of the machine.
//! - A failed `fsync` is final: no reservation is given again, nothing is retried.
//! - Nothing is unlinked before the watermark that allows it is durable.
//! - A full disk keeps nobody from ending what was begun: room for final records is left by calls,
//!   what a life had set aside its successor uses, and what makes room needs none.
//! - Damage is found, named and kept; it never ends in a panic and never hides what is intact.
//!
//! # Format, version 1
//!
//! All integers are little-endian. CRC-32C is Castagnoli's, as in iSCSI: reflected, initial value
//! and final xor `0xffff_ffff`; the check value of `123456789` is `0xe306_9283`.
//!
//! ## Directories
//! The root directory holds a file `LOCK` (held with `flock` while a process uses the root; its
//! text is the holder's pid), an empty directory `prepared` for the next journal (a full disk may
//! have no room to make one), and one directory per journal, `jrn_` + the journal's UUID as 32
//! lower-case hexadecimal digits. A directory `jrn_….quarantined` is evidence that a damaged
//! journal left behind after all its readable records were applied; it is no journal any more.
//! (The same happens to a journal's directory that holds unknown files.) Everything else in the
//! root is ignored.
//!
//! A journal's directory holds
//! - **segments**: `<first_seq as 20 decimal digits>.seg`, or `spare_<8 or more digits>.seg`.
//!   A segment is made under a spare name, since its first number is not known yet, and gets its
//!   number as name soon after its first use. *The header decides, not the name*: a spare whose
//!   64 header bytes are all zero is unused and holds nothing.
//! - **quarantined segments**: either name + `.quarantined`. Damaged somewhere; read like the
//!   others.
//! - `watermark`: 20 bytes, `TGJW`, u32 version 1, u64 watermark, u32 CRC-32C of the 16 bytes
//!   before. Every record below the watermark has been applied by every consumer, and segments
//!   that lie entirely below it may be missing. No file means 0. It may trail what was applied.
//! - `watermark.new`: an earlier one or an unfinished replacement, ignored. The two change names.
//!
//! ## Segment
//! A file of fixed size (64 KiB to 1 GiB, a multiple of 4096), zero where never written.
//!
//! | offset | bytes | header |
//! |---|---|---|
//! | 0 | 4 | `TGJL` |
//! | 4 | 4 | u32 version, 1 |
//! | 8 | 16 | UUID of the journal, in the byte order of its text form |
//! | 24 | 8 | u64 `first_seq`: number of the first record |
//! | 32 | 8 | u64 when the file was made, in Unix milliseconds; 0: by an earlier life |
//! | 40 | 4 | u32 size of the file |
//! | 44 | 16 | zero |
//! | 60 | 4 | u32 CRC-32C of bytes 0 to 59 |
//!
//! Frames follow from offset 64 without gaps, each at a multiple of 8:
//!
//! | bytes | frame |
//! |---|---|
//! | 4 | u32 commit word: length of the payload, 1 to 4096; 0 = nothing was written here |
//! | 4 | u32 CRC-32C of (u64 seq ‖ payload) |
//! | length | payload, opaque here (a protobuf record of the gateway) |
//! | 0 to 7 | zero, up to a multiple of 8 |
//!
//! The number of a frame is not in the file: it is `first_seq` + its index in the segment. A
//! frame never spans segments. The eight bytes of commit word and checksum are stored at once,
//! after the payload. The frames of a segment end where fewer than 8 bytes are left or the commit
//! word is 0; a writer leaves a segment when the next frame does not fit.
//!
//! ## Reading a journal
//! Sort the used segments by `first_seq` (equal ones: the canonical name first, as it then holds
//! no frame). Read frames until the segment ends or a frame is invalid (length above 4096 or
//! beyond the file, or wrong checksum). Let `end` be the number expected next:
//! - the next segment starts with `end`: nothing is missing, go on there. What is left behind an
//!   invalid frame is a torn tail that an earlier recovery stepped over.
//! - there is no next segment and the commit word is 0: this is the end of the journal. Whatever
//!   lies behind was never synced, as a sync covers all that comes before.
//! - otherwise, search the rest of this segment for a later record: at each multiple of 8 from 16
//!   bytes behind `end`'s frame on, take it as a frame and try the numbers `end + 1` to
//!   `end + min(distance / 16, 1024)`, below the next segment's `first_seq`. The first that has
//!   the right checksum is where reading goes on. The numbers in between are a **gap** (damage).
//!   Nothing found: with a next segment, the gap reaches to its `first_seq`; without, the invalid
//!   frame is a torn tail and the end of the journal.
//!
//! If a header is invalid though not zero, `first_seq` is the number in the name, for a spare
//! the number expected after all others, or one of the 1024 behind that, and only if there is a
//! valid record in it.
//! A segment that names another journal or starts below the number expected is not read.
//! A new record of a recovered journal goes behind the last one, when everything behind that is
//! erased and the erasure synced, never behind a torn tail; or else into another segment. Its
//! number is the larger of `end` and the watermark.

mod disk;
mod error;
mod log;
mod map;
mod reader;
mod recover;
mod root;
mod scan;
mod segment;
mod sync;
#[cfg(test)]
pub(crate) mod tests;
mod upkeep;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

pub use self::disk::{Disk, SystemDisk};
pub use self::error::Error;
pub use self::log::{Kept, Reservation, Slot};
pub use self::reader::{Batch, Limits, Reader};
pub use self::recover::{Cause, Damage, Gap, Recovered};

use self::log::{Capacity, Log, State};
use self::root::Root;

/// The module's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Longest payload of one record. A longer one is a bug of the caller.
pub const RECORD_BYTES_MAX: usize = types::RECORD_BYTES_MAX;
/// Most records a shipped batch holds.
pub const BATCH_RECORDS_MAX: usize = types::RECORDS_MAX;
/// Most payload bytes a shipped batch holds.
pub const BATCH_BYTES_MAX: usize = 64 * 1024;
/// Size of a segment unless configured.
pub const SEGMENT_BYTES: usize = 8 * 1024 * 1024;
/// Smallest segment, also the size of those that recovery adds to old journals.
pub const SEGMENT_BYTES_MIN: usize = 64 * 1024;
/// Largest segment.
pub const SEGMENT_BYTES_MAX: usize = 1024 * 1024 * 1024;
/// Room kept ahead of reservations unless configured: about 4,000 calls in flight.
pub const ROOM_BYTES_MIN: usize = 16 * 1024 * 1024;
/// High-water mark of the whole root directory unless configured.
pub const BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;

/// Calls and grants leave room for so many of the longest records to what completes a journal when
/// the disk is full: final counts are short, so it is enough for some 900 leases. As much as the
/// smallest segment has.
const FINAL_RECORDS: u64 = 15;
/// Segment sizes are a multiple of it.
const PAGE_BYTES: usize = 4096;
/// A segment's header.
const HEADER_BYTES: usize = 64;
/// The largest frame: what one reservation sets aside.
const FRAME_BYTES_MAX: usize = segment::frame_bytes(RECORD_BYTES_MAX);

/// How a journal is kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// The root directory; made if missing.
    pub dir: PathBuf,
    /// Size of the segments of the new journal.
    pub segment_bytes: usize,
    /// Unreserved room that [`Journal::maintain`] keeps allocated ahead.
    pub room_bytes_min: usize,
    /// Above so many bytes in the root directory, nothing is reserved.
    pub bytes_max: u64,
}

impl Options {
    /// The defaults for a root directory.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            segment_bytes: SEGMENT_BYTES,
            room_bytes_min: ROOM_BYTES_MIN,
            bytes_max: BYTES_MAX,
        }
    }

    fn check(&self) -> Result<()> {
        let size = self.segment_bytes;
        if !is_segment_size(size) {
            return Err(Error::Options(
                "segment size: 64 KiB to 1 GiB, a multiple of 4 KiB",
            ));
        }
        if self.bytes_max < segment::wide(size).saturating_mul(2) {
            return Err(Error::Options(
                "the high-water mark must allow two segments",
            ));
        }
        Ok(())
    }
}

/// Whether a segment may have this size.
fn is_segment_size(bytes: usize) -> bool {
    (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&bytes) && bytes.is_multiple_of(PAGE_BYTES)
}

/// Where a journal stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Bytes of all journals in the root directory, spares included.
    pub bytes: u64,
    /// The high-water mark for them.
    pub bytes_max: u64,
    /// Number of the next record.
    pub next_seq: u64,
    /// Every record below it is on disk.
    pub synced_seq: u64,
    /// Every record below it has been applied by all consumers.
    pub watermark: u64,
    /// Records from the watermark on.
    pub unapplied: u64,
    /// Records that could still be reserved.
    pub room_records: u64,
    /// An `fsync` has failed: the process should end.
    pub is_failed: bool,
}

/// A journal of this process or a recovered one. Clones are handles to the same journal; the
/// root directory stays locked until the last handle, reader and reservation is gone.
#[derive(Clone)]
pub struct Journal {
    log: Arc<Log>,
}

impl Journal {
    /// Locks the root directory, starts journal `id` in it and recovers all older ones.
    ///
    /// Blocks. A full disk is no error here: nothing can be reserved until there is room.
    pub fn open(options: &Options, id: Uuid, now_ms: u64) -> Result<(Self, Vec<Recovered>)> {
        Self::open_on(Arc::new(SystemDisk), options, id, now_ms)
    }

    /// [`Journal::open`] on a disk of one's own: for tests that make it fail.
    pub fn open_on(
        disk: Arc<dyn Disk>,
        options: &Options,
        id: Uuid,
        now_ms: u64,
    ) -> Result<(Self, Vec<Recovered>)> {
        options.check()?;
        let root = Root::lock(disk, &options.dir)?;
        let recovered = recover::recover_all(&root)?;
        let dir = root.create_journal(id)?;
        let capacity = Capacity {
            segment_bytes: options.segment_bytes,
            room_records_min: segment::frames_in(options.room_bytes_min),
            final_records: FINAL_RECORDS,
            bytes_max: options.bytes_max,
        };
        let log = Arc::new(Log::new(root, id, dir, capacity, State::default()));
        match log.prepare_watermark().and_then(|()| log.keep_room(now_ms)) {
            Err(error) if !error.is_disk_full() => Err(error),
            _ => Ok((Self { log }, recovered)),
        }
    }

    /// Locks a root directory that exists and recovers all journals in it, without starting one.
    ///
    /// Blocks.
    pub fn take_over(dir: &Path) -> Result<Vec<Recovered>> {
        let root = Root::lock_existing(Arc::new(SystemDisk), dir)?;
        recover::recover_all(&root)
    }

    /// The journal's id.
    pub fn id(&self) -> Uuid {
        self.log.id
    }

    /// Sets room aside for one record. `None`: full, above the high-water mark, or failed; the
    /// call that would need the record must be refused.
    pub fn reserve(&self) -> Option<Reservation> {
        Log::reserve(&self.log)
    }

    /// Appends a record that no call waits for, reserving and writing in one step.
    ///
    /// `write` gets the record's number and a buffer, and returns the payload's length and a
    /// value of its own; it runs under the journal's lock, so what it changes is in the order of
    /// the records. Panics if the length is 0 or above [`RECORD_BYTES_MAX`].
    pub fn append<R>(&self, write: impl FnOnce(Slot<'_>) -> (usize, R)) -> Result<(u64, R)> {
        let reservation = self.reserve().ok_or_else(|| self.log.refusal())?;
        Ok(reservation.append(write))
    }

    /// Appends a record and returns once it is on disk; makes room for it if need be, even above
    /// the high-water mark. Blocks.
    pub fn append_synced<R>(
        &self,
        now_ms: u64,
        write: impl FnOnce(Slot<'_>) -> (usize, R),
    ) -> Result<(u64, R)> {
        let done = self.log.make_room(now_ms)?.append(write);
        self.sync_to(done.0)?;
        Ok(done)
    }

    /// [`Journal::append_synced`] for a record that completes the journal: on a full disk it has
    /// the room that calls and grants leave. Blocks.
    pub fn append_final<R>(
        &self,
        now_ms: u64,
        write: impl FnOnce(Slot<'_>) -> (usize, R),
    ) -> Result<(u64, R)> {
        let done = self.log.make_final_room(now_ms)?.append(write);
        self.sync_to(done.0)?;
        Ok(done)
    }

    /// Returns once record `seq` is on disk. Callers at the same time share one `fdatasync`.
    /// Blocks.
    pub fn sync_to(&self, seq: u64) -> Result<()> {
        self.log.sync_to(seq)
    }

    /// Allocates room ahead, names used segments and syncs what is new. Blocks; to be called
    /// every few milliseconds. An error may pass (disk full), unless [`Journal::is_failed`].
    pub fn maintain(&self, now_ms: u64) -> Result<Stats> {
        self.log.maintain(now_ms)?;
        Ok(self.stats())
    }

    /// Keeps record `seq` and all behind it from being trimmed while what this returns lives. To be
    /// called while the record is written, or nobody knows whether it is still there.
    pub fn keep(&self, seq: u64) -> Kept {
        Log::keep(&self.log, seq)
    }

    /// Notes that all consumers have applied every record below `watermark`, and unlinks the
    /// segments this makes superfluous; the watermark is made durable before. Stops at a record
    /// that is kept. Blocks.
    pub fn trim(&self, watermark: u64) -> Result<()> {
        self.log.trim(watermark)
    }

    /// Deletes the journal, provided all of it was applied and nobody holds a reservation;
    /// damaged segments are set aside as `jrn_….quarantined`. What fails may be tried again.
    /// Blocks.
    pub fn remove(&self) -> Result<()> {
        self.log.remove()
    }

    /// Reads from record `from_seq` on, or from the first one that is still there.
    pub fn reader(&self, from_seq: u64) -> Reader {
        Reader::new(Arc::clone(&self.log), from_seq)
    }

    /// Number of the next record: every smaller one can be read.
    pub fn next_seq(&self) -> u64 {
        self.log.next_seq()
    }

    /// Every record below it is on disk. What is shipped should be below it: a record that was
    /// applied elsewhere but lost here with the power would have its number given away again.
    pub fn synced_seq(&self) -> u64 {
        self.log.synced_seq()
    }

    /// Every record below it has been applied by all consumers.
    pub fn watermark(&self) -> u64 {
        self.log.watermark()
    }

    /// Whether an `fsync` has failed. Final: the process should end, its successor recovers.
    pub fn is_failed(&self) -> bool {
        self.log.is_failed()
    }

    /// Where the journal stands.
    pub fn stats(&self) -> Stats {
        self.log.stats()
    }
}
