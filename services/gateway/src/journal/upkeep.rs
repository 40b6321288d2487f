//! What blocks: allocating ahead, naming, syncing, trimming, removing.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use runtime::crash_point;

use super::log::{Capacity, Log, Reservation, Run, Upkeep, not_removed};
use super::map::Map;
use super::root::Root;
use super::scan::parse_name;
use super::segment::{Segment, wide};
use super::sync::Ordering;
use super::{Error, Result};

pub(super) const SEGMENT_SUFFIX: &str = ".seg";
pub(super) const SPARE_PREFIX: &str = "spare_";
pub(super) const QUARANTINED_SUFFIX: &str = ".quarantined";
pub(super) const WATERMARK: &str = "watermark";
const WATERMARK_NEW: &str = "watermark.new";
const WATERMARK_MAGIC: [u8; 4] = *b"TGJW";
const WATERMARK_VERSION: u32 = 1;
/// Where the watermark file's checksum starts.
const WATERMARK_CRC_AT: usize = 16;
/// Segments that a new journal gets above the high-water mark, if it cannot do with fewer: small
/// ones hold no more than what is left to final records.
const FIRST_SEGMENTS: u64 = 2;

/// The name of a segment in use.
pub(super) fn segment_name(first_seq: u64) -> String {
    format!("{first_seq:020}{SEGMENT_SUFFIX}")
}

impl Log {
    pub(super) fn maintain(&self, now_ms: u64) -> Result<()> {
        // The disk being full must not keep what is written from being synced.
        let kept = self.keep_room(now_ms);
        self.sync_to_end()?;
        self.name_segments()?;
        kept
    }

    /// Allocates segments until there is as much unreserved room as configured.
    pub(super) fn keep_room(&self, now_ms: u64) -> Result<()> {
        let mut upkeep = self.upkeep.lock();
        let Capacity {
            room_records_min,
            final_records,
            ..
        } = self.capacity;
        while self.room.load(Ordering::Acquire) < room_records_min.saturating_add(final_records) {
            let bytes = self
                .root
                .bytes()
                .saturating_add(wide(self.capacity.segment_bytes));
            // A new journal gets room for its first records, or it could never take a GRANT.
            let is_first = self.room.load(Ordering::Acquire) <= final_records
                && upkeep.next_spare < FIRST_SEGMENTS;
            if bytes > self.capacity.bytes_max && !is_first {
                return Ok(()); // reservations run out: this is the high-water mark at work
            }
            self.allocate(&mut upkeep, now_ms)?;
        }
        Ok(())
    }

    /// Takes room for one record, allocating a segment for it if there is none.
    pub(super) fn make_room(self: &Arc<Self>, now_ms: u64) -> Result<Reservation> {
        loop {
            if let Some(reservation) = Self::take_room(self, self.capacity.final_records) {
                return Ok(reservation);
            }
            // Fails in the end, if others take whatever there is.
            self.allocate(&mut self.upkeep.lock(), now_ms)?;
        }
    }

    /// [`Log::make_room`] for a record that completes the journal: on a full disk it has the room
    /// that was left for it.
    pub(super) fn make_final_room(self: &Arc<Self>, now_ms: u64) -> Result<Reservation> {
        match self.make_room(now_ms) {
            Err(error) if error.is_disk_full() => Self::take_room(self, 0).ok_or(error),
            room => room,
        }
    }

    /// Adds one spare segment, durable in size and name before it counts as room.
    fn allocate(&self, upkeep: &mut Upkeep, now_ms: u64) -> Result<()> {
        not_removed(upkeep)?;
        if self.is_failed() {
            return Err(Error::Failed);
        }
        let number = upkeep.next_spare;
        let path = self
            .dir
            .join(format!("{SPARE_PREFIX}{number:08}{SEGMENT_SUFFIX}"));
        let bytes = wide(self.capacity.segment_bytes);
        let file = match self.root.disk.create(&path, bytes) {
            Ok(file) => file,
            Err(error) => {
                // What was allocated before the disk was full would only be in the way.
                drop(self.root.disk.unlink(&path));
                return Err(Error::io("allocate", &path)(error));
            }
        };
        upkeep.next_spare = number.strict_add(1);
        self.root.count(bytes);
        self.final_sync(&path, self.root.disk.sync(&path, &file))?;
        let disk = &self.root.disk;
        let synced = disk.sync_directory(&self.dir, &self.directory);
        self.final_sync(&self.dir, synced)?;
        let map = Map::writable(&file).map_err(Error::io("map", &path))?;
        self.add_spare(Segment::new(map, path, file, now_ms));
        crash_point!("gateway.segment_created");
        Ok(())
    }

    /// Gives used segments the name that says where they start. Readers go by the header, so a
    /// crash before this costs nothing.
    fn name_segments(&self) -> Result<()> {
        let _upkeep = self.upkeep.lock();
        let is_unnamed = |run: &&Run| {
            let path = run.segment.path.lock();
            path.file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with(SPARE_PREFIX))
        };
        // Names are given in order, so the unnamed ones are the last.
        let recent: Vec<_> = self
            .runs
            .read()
            .iter()
            .rev()
            .take_while(is_unnamed)
            .cloned()
            .collect();
        for run in recent {
            let mut path = run.segment.path.lock();
            let named = self.dir.join(segment_name(run.first_seq));
            if run.segment.is_quarantined || named.exists() {
                continue;
            }
            self.root
                .disk
                .rename(&path, &named)
                .map_err(Error::io("rename", &path))?;
            *path = named;
        }
        Ok(())
    }

    pub(super) fn sync_to(&self, seq: u64) -> Result<()> {
        assert!(seq < self.next_seq(), "record {seq} was not written");
        if self.synced_seq() <= seq {
            let _sync = self.sync.lock();
            // Who held the lock may have synced this record too.
            if self.synced_seq() <= seq {
                self.sync_dirty()?;
            }
        }
        Ok(())
    }

    fn sync_to_end(&self) -> Result<()> {
        match self.next_seq().checked_sub(1) {
            Some(last) => self.sync_to(last),
            None => Ok(()),
        }
    }

    /// Syncs every record written so far, segment by segment in order, so that a synced record
    /// never has an unsynced one before it. The caller holds the sync lock.
    fn sync_dirty(&self) -> Result<()> {
        if self.is_failed() {
            return Err(Error::Failed);
        }
        // First the number, then the segments: they hold at least all records below it.
        let end = self.next_seq();
        let mut dirty = Vec::new();
        for run in self.runs.read().iter().rev() {
            if run.segment.file.lock().is_none() {
                break;
            }
            dirty.push(Arc::clone(&run.segment));
        }
        let mut dirty = dirty.into_iter().rev().peekable();
        while let Some(segment) = dirty.next() {
            let mut file = segment.file.lock();
            let path = segment.path.lock().clone();
            if let Some(file) = &*file {
                self.final_sync(&path, self.root.disk.sync(&path, file))?;
            }
            if dirty.peek().is_some() {
                *file = None; // full and synced: not written again
            }
        }
        self.synced.store(end, Ordering::Release);
        crash_point!("gateway.journal_synced");
        Ok(())
    }

    /// Judges the result of an `fsync`: a failed one ends the journal, since the kernel may have
    /// dropped the pages and a second try would succeed without them.
    fn final_sync(&self, path: &Path, result: io::Result<()>) -> Result<()> {
        result.map_err(|error| {
            self.failed.store(true, Ordering::Release);
            Error::io("sync", path)(error)
        })
    }

    pub(super) fn trim(&self, watermark: u64) -> Result<()> {
        let next_seq = self.next_seq();
        if watermark > next_seq {
            return Err(Error::Watermark {
                watermark,
                next_seq,
            });
        }
        let upkeep = self.upkeep.lock();
        not_removed(&upkeep)?;
        let watermark = watermark.min(self.first_kept().unwrap_or(u64::MAX));
        // Consumers report in any order; the watermark only rises.
        let watermark = self
            .watermark
            .fetch_max(watermark, Ordering::AcqRel)
            .max(watermark);
        if !self.is_first_segment_below(watermark) {
            return Ok(());
        }
        self.save_watermark(watermark)?;
        while self.is_first_segment_below(watermark) {
            self.unlink_first()?;
        }
        Ok(())
    }

    /// The first segment may go once another one starts at or below the watermark. The last
    /// segment stays: it knows the journal's end.
    fn is_first_segment_below(&self, watermark: u64) -> bool {
        let runs = self.runs.read();
        let Some(first) = runs.front() else {
            return false;
        };
        let next = runs
            .iter()
            .find(|run| !Arc::ptr_eq(&run.segment, &first.segment));
        next.is_some_and(|next| next.first_seq <= watermark)
    }

    fn unlink_first(&self) -> Result<()> {
        let first = self.runs.read().front().map(|run| Arc::clone(&run.segment));
        let Some(segment) = first else { return Ok(()) };
        self.unlink(&segment)?;
        self.runs
            .write()
            .retain(|run| !Arc::ptr_eq(&run.segment, &segment));
        Ok(())
    }

    fn unlink(&self, segment: &Segment) -> Result<()> {
        if segment.is_quarantined {
            return Ok(());
        }
        let path = segment.path.lock();
        self.root
            .disk
            .unlink(&path)
            .map_err(Error::io("unlink", &path))?;
        self.root.uncount(segment.file_bytes);
        crash_point!("gateway.segment_unlinked");
        Ok(())
    }

    /// Makes both files of the watermark while there is room for them. A full disk must not keep
    /// segments from going.
    pub(super) fn prepare_watermark(&self) -> Result<()> {
        self.save_watermark(self.watermark())?;
        self.write_new_watermark(self.watermark())
    }

    fn save_watermark(&self, watermark: u64) -> Result<()> {
        self.write_new_watermark(watermark)?;
        let (new, path) = (self.dir.join(WATERMARK_NEW), self.dir.join(WATERMARK));
        let disk = &self.root.disk;
        let named = match path.exists() {
            true => disk.exchange(&new, &path),
            false => disk.rename(&new, &path),
        };
        named.map_err(Error::io("rename", &new))?;
        let synced = disk.sync_directory(&self.dir, &self.directory);
        self.final_sync(&self.dir, synced)?;
        crash_point!("gateway.watermark_saved");
        Ok(())
    }

    /// Writes a watermark where nobody reads it, over the one before the last.
    fn write_new_watermark(&self, watermark: u64) -> Result<()> {
        let mut text = Vec::with_capacity(WATERMARK_CRC_AT.saturating_mul(2));
        text.extend(WATERMARK_MAGIC);
        text.extend(WATERMARK_VERSION.to_le_bytes());
        text.extend(watermark.to_le_bytes());
        text.extend(crc32c::crc32c(&text).to_le_bytes());

        let (new, disk) = (self.dir.join(WATERMARK_NEW), &self.root.disk);
        let mut file = match new.exists() {
            true => disk.reopen(&new).map_err(Error::io("open", &new))?,
            false => disk.create(&new, 0).map_err(Error::io("create", &new))?,
        };
        file.write_all(&text).map_err(Error::io("write", &new))?;
        self.final_sync(&new, disk.sync(&new, &file))
    }

    pub(super) fn remove(&self) -> Result<()> {
        let mut upkeep = self.upkeep.lock();
        // One that failed on its way goes on where it was.
        if !upkeep.is_removed {
            self.end(&mut upkeep)?;
        }
        if !self.dir.exists() {
            let root = &self.root;
            let done = root.disk.sync_directory(&root.dir, &root.directory);
            return done.map_err(Error::io("sync", &self.root.dir));
        }
        loop {
            let spare = self.appender.lock().spares.front().cloned();
            let Some(spare) = spare else { break };
            self.unlink(&spare)?;
            self.appender.lock().spares.pop_front();
        }
        self.save_watermark(self.watermark())?;
        while !self.runs.read().is_empty() {
            self.unlink_first()?;
        }
        remove_directory(&self.root, &self.dir)
    }

    /// Nothing is written to it any more: everything was applied.
    fn end(&self, upkeep: &mut Upkeep) -> Result<()> {
        let (watermark, next_seq) = (self.watermark(), self.next_seq());
        if watermark < next_seq {
            return Err(Error::InUse {
                watermark,
                next_seq,
                reserved: 0,
            });
        }
        // From here on nobody can reserve, so no record can come after the check.
        self.close().map_err(|reserved| Error::InUse {
            watermark,
            next_seq,
            reserved,
        })?;
        let next_seq = self.next_seq();
        if watermark < next_seq {
            return Err(Error::InUse {
                watermark,
                next_seq,
                reserved: 0,
            });
        }
        upkeep.is_removed = true;
        Ok(())
    }
}

/// Deletes what is left of a journal without records. What it does not know, or what is evidence
/// of damage, is set aside.
pub(super) fn remove_directory(root: &Root, dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let path = entry.map_err(Error::io("list", dir))?.path();
        let is_watermark = [WATERMARK, WATERMARK_NEW]
            .iter()
            .any(|name| path.ends_with(name));
        if is_watermark || matches!(parse_name(&path), Some((_, false))) {
            root.disk
                .unlink(&path)
                .map_err(Error::io("unlink", &path))?;
        }
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            let mut aside = dir.to_path_buf().into_os_string();
            aside.push(QUARANTINED_SUFFIX);
            let aside = PathBuf::from(aside);
            root.disk
                .rename(dir, &aside)
                .map_err(Error::io("rename", dir))?;
        }
        result => result.map_err(Error::io("remove", dir))?,
    }
    root.disk
        .sync_directory(&root.dir, &root.directory)
        .map_err(Error::io("sync", &root.dir))
}

/// What the watermark file says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Saved {
    None,
    Bad,
    Watermark(u64),
}

pub(super) fn load_watermark(dir: &Path) -> Result<Saved> {
    let path = dir.join(WATERMARK);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Saved::None),
        Err(error) => return Err(Error::io("read", &path)(error)),
    };
    Ok(parse_watermark(&text).map_or(Saved::Bad, Saved::Watermark))
}

fn parse_watermark(text: &[u8]) -> Option<u64> {
    let (covered, crc) = text.split_at_checked(WATERMARK_CRC_AT)?;
    if crc != crc32c::crc32c(covered).to_le_bytes() {
        return None;
    }
    let rest = covered.strip_prefix(&WATERMARK_MAGIC)?;
    let rest = rest.strip_prefix(&WATERMARK_VERSION.to_le_bytes())?;
    Some(u64::from_le_bytes(rest.try_into().ok()?))
}
