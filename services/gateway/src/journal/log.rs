//! The append path: numbering, writing and committing under one lock, and the room for it.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use uuid::Uuid;

use runtime::crash_point;

use super::root::Root;
use super::segment::{Scratch, Segment, frame_bytes, frames_in};
use super::sync::{AtomicBool, AtomicU64, Mutex, Ordering, RwLock};
use super::{Error, HEADER_BYTES, RECORD_BYTES_MAX, Result, Stats};

/// Where a record's writer puts it.
pub struct Slot<'a> {
    /// The record's number.
    pub seq: u64,
    /// For the payload, from the start; [`RECORD_BYTES_MAX`] long, its old content is undefined.
    pub buf: &'a mut [u8],
}

/// Consecutive records in one segment.
#[derive(Clone)]
pub(super) struct Run {
    pub(super) segment: Arc<Segment>,
    pub(super) first_seq: u64,
    /// Where the first one's frame lies.
    pub(super) offset: usize,
    /// First number not in it; `u64::MAX` for a segment written by this process, which ends
    /// where the next run starts or the journal ends.
    pub(super) end_seq: u64,
}

/// How much a journal may take.
pub(super) struct Capacity {
    pub(super) segment_bytes: usize,
    pub(super) room_records_min: u64,
    /// Of the room, so many records' is left to what completes the journal.
    pub(super) final_records: u64,
    pub(super) bytes_max: u64,
}

/// What recovery found; the default is a new journal.
#[derive(Default)]
pub(super) struct State {
    pub(super) runs: VecDeque<Run>,
    pub(super) next_seq: u64,
    pub(super) watermark: u64,
    pub(super) next_spare: u64,
    /// The segment to go on in, and where.
    pub(super) active: Option<Arc<Segment>>,
    pub(super) offset: usize,
    pub(super) spares: VecDeque<Arc<Segment>>,
}

/// What changes with each record.
pub(super) struct Appender {
    scratch: Scratch,
    active: Option<Arc<Segment>>,
    offset: usize,
    pub(super) next_seq: u64,
    pub(super) spares: VecDeque<Arc<Segment>>,
}

/// What only changes in the background.
pub(super) struct Upkeep {
    pub(super) next_spare: u64,
    pub(super) is_removed: bool,
}

/// One journal. Locks are taken in the order upkeep, sync, appender, runs; `kept` is the last.
pub(super) struct Log {
    pub(super) root: Arc<Root>,
    pub(super) id: Uuid,
    pub(super) dir: PathBuf,
    /// `dir`, to sync it.
    pub(super) directory: File,
    pub(super) capacity: Capacity,
    pub(super) appender: Mutex<Appender>,
    pub(super) runs: RwLock<VecDeque<Run>>,
    pub(super) upkeep: Mutex<Upkeep>,
    /// Held during an `fdatasync`: who waits for it shares the next one.
    pub(super) sync: Mutex<()>,
    /// Worst-case records that fit into what is allocated, less the reservations given out.
    /// Only grows after the space is there, so a successful decrement is a promise.
    pub(super) room: AtomicU64,
    pub(super) next_seq: AtomicU64,
    pub(super) synced: AtomicU64,
    pub(super) watermark: AtomicU64,
    pub(super) failed: AtomicBool,
    /// Records that somebody still needs, applied or not.
    kept: Mutex<BTreeSet<u64>>,
}

impl Log {
    pub(super) fn new(
        root: Arc<Root>,
        id: Uuid,
        (dir, directory): (PathBuf, File),
        capacity: Capacity,
        state: State,
    ) -> Self {
        let mut runs = state.runs;
        runs.reserve(state.spares.len());
        let appender = Appender {
            scratch: Scratch::new(),
            active: state.active,
            offset: state.offset,
            next_seq: state.next_seq,
            spares: state.spares,
        };
        let room = appender.room();
        Self {
            root,
            id,
            dir,
            directory,
            capacity,
            appender: Mutex::new(appender),
            runs: RwLock::new(runs),
            upkeep: Mutex::new(Upkeep {
                next_spare: state.next_spare,
                is_removed: false,
            }),
            sync: Mutex::new(()),
            room: AtomicU64::new(room),
            next_seq: AtomicU64::new(state.next_seq),
            // Recovery syncs every segment it reads.
            synced: AtomicU64::new(state.next_seq),
            watermark: AtomicU64::new(state.watermark),
            failed: AtomicBool::new(false),
            kept: Mutex::default(),
        }
    }

    /// The first record that somebody still needs.
    pub(super) fn first_kept(&self) -> Option<u64> {
        self.kept.lock().first().copied()
    }

    pub(super) fn keep(log: &Arc<Self>, seq: u64) -> Kept {
        log.kept.lock().insert(seq);
        Kept {
            log: Arc::clone(log),
            seq,
        }
    }

    pub(super) fn next_seq(&self) -> u64 {
        self.next_seq.load(Ordering::Acquire)
    }

    pub(super) fn synced_seq(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    pub(super) fn watermark(&self) -> u64 {
        self.watermark.load(Ordering::Acquire)
    }

    pub(super) fn is_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    pub(super) fn stats(&self) -> Stats {
        // In this order each figure is at most the next one, whatever happens in between.
        let watermark = self.watermark();
        let synced_seq = self.synced_seq();
        let next_seq = self.next_seq();
        Stats {
            bytes: self.root.bytes(),
            bytes_max: self.capacity.bytes_max,
            next_seq,
            synced_seq,
            watermark,
            unapplied: next_seq.saturating_sub(watermark),
            room_records: self
                .room
                .load(Ordering::Relaxed)
                .saturating_sub(self.capacity.final_records),
            is_failed: self.is_failed(),
        }
    }

    pub(super) fn reserve(log: &Arc<Self>) -> Option<Reservation> {
        if log.root.bytes() > log.capacity.bytes_max {
            return None;
        }
        Self::take_room(log, log.capacity.final_records)
    }

    /// [`Log::reserve`] regardless of the high-water mark, if there is room for more than `left`
    /// records.
    pub(super) fn take_room(log: &Arc<Self>, left: u64) -> Option<Reservation> {
        if log.is_failed() {
            return None;
        }
        let less = |room: u64| room.checked_sub(1).filter(|rest| left <= *rest);
        log.room
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, less)
            .ok()?;
        Some(Reservation {
            log: Arc::clone(log),
            is_used: false,
        })
    }

    /// Why nothing could be reserved.
    pub(super) fn refusal(&self) -> Error {
        if self.is_failed() {
            Error::Failed
        } else {
            Error::Full
        }
    }

    /// Writes a record; the caller has taken room for it, which this uses up or gives back.
    fn append<R>(&self, write: impl FnOnce(Slot<'_>) -> (usize, R)) -> (u64, R) {
        let mut guard = self.appender.lock();
        let appender = &mut *guard;
        let seq = appender.next_seq;
        let slot = Slot {
            seq,
            buf: appender.scratch.payload_mut(),
        };
        let (payload_bytes, value) = write(slot);
        assert!(
            (1..=RECORD_BYTES_MAX).contains(&payload_bytes),
            "a record of {payload_bytes} bytes"
        );
        let bytes = frame_bytes(payload_bytes);
        let segment = self.segment_for(appender, bytes);
        let room_before = frames_in(segment.left(appender.offset));
        segment.put(appender.offset, &mut appender.scratch, seq, payload_bytes);
        appender.offset = appender.offset.strict_add(bytes);
        appender.next_seq = seq.strict_add(1);
        self.next_seq.store(appender.next_seq, Ordering::Release);

        let used = room_before.strict_sub(frames_in(segment.left(appender.offset)));
        assert!(used <= 1, "a record takes at most the room of one");
        self.room
            .fetch_add(1_u64.strict_sub(used), Ordering::AcqRel);
        (seq, value)
    }

    /// The segment for a frame of so many bytes, at the appender's offset.
    ///
    /// Leaving a segment wastes less than the largest frame, which no reservation counted on.
    fn segment_for(&self, appender: &mut Appender, bytes: usize) -> Arc<Segment> {
        if let Some(active) = &appender.active
            && active.left(appender.offset) >= bytes
        {
            return Arc::clone(active);
        }
        let segment = appender
            .spares
            .pop_front()
            .expect("reserved room is allocated room");
        let first_seq = appender.next_seq;
        segment.write_header(self.id, first_seq);
        let run = Run {
            segment: Arc::clone(&segment),
            first_seq,
            offset: HEADER_BYTES,
            end_seq: u64::MAX,
        };
        // Readers look for the next run only once they know of a record in it.
        self.runs.write().push_back(run);
        appender.offset = HEADER_BYTES;
        appender.active = Some(Arc::clone(&segment));
        segment
    }

    /// Adds an allocated segment. Everything a rotation needs is allocated here, in advance.
    pub(super) fn add_spare(&self, segment: Segment) {
        let room = frames_in(segment.left(HEADER_BYTES));
        let mut appender = self.appender.lock();
        appender.spares.push_back(Arc::new(segment));
        let spares = appender.spares.len();
        self.runs.write().reserve(spares);
        self.room.fetch_add(room, Ordering::AcqRel);
    }

    /// Takes all room for good, unless somebody still holds a reservation: then their number.
    pub(super) fn close(&self) -> std::result::Result<(), u64> {
        let appender = self.appender.lock();
        let room = appender.room();
        match self
            .room
            .compare_exchange(room, 0, Ordering::AcqRel, Ordering::Acquire)
        {
            Ok(_) => Ok(()),
            Err(unreserved) => Err(room.saturating_sub(unreserved)),
        }
    }
}

impl Appender {
    /// Worst-case records that fit into what is allocated.
    fn room(&self) -> u64 {
        let active = self
            .active
            .as_ref()
            .map_or(0, |segment| frames_in(segment.left(self.offset)));
        let spares = self.spares.iter();
        let spares = spares.map(|segment| frames_in(segment.left(HEADER_BYTES)));
        spares.fold(active, u64::strict_add)
    }
}

/// Room for one record. Dropping it gives the room back.
#[must_use = "a dropped reservation gives its room back"]
pub struct Reservation {
    log: Arc<Log>,
    is_used: bool,
}

impl Reservation {
    /// Appends the record this was made for; see [`super::Journal::append`]. Never fails, never
    /// blocks on I/O, never allocates: fit for a drop guard.
    pub fn append<R>(mut self, write: impl FnOnce(Slot<'_>) -> (usize, R)) -> (u64, R) {
        let done = self.log.append(write);
        self.is_used = true;
        crash_point!("gateway.appended");
        done
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.is_used {
            self.log.room.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// Keeps a record, and all behind it, in the journal. Dropping it lets go of them.
#[must_use = "a dropped guard keeps nothing"]
pub struct Kept {
    log: Arc<Log>,
    seq: u64,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.log.kept.lock().remove(&self.seq);
    }
}

/// Keeps [`Error::Removed`] apart from a full journal.
pub(super) fn not_removed(upkeep: &Upkeep) -> Result<()> {
    if upkeep.is_removed {
        Err(Error::Removed)
    } else {
        Ok(())
    }
}
