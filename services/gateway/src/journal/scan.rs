//! Judging the segments of an old journal; changes nothing.

use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::map::Map;
use super::recover::Cause;
use super::root::Root;
use super::segment::{Frame, Header, Scratch, Segment, frame_bytes};
use super::upkeep::{QUARANTINED_SUFFIX, SEGMENT_SUFFIX, SPARE_PREFIX};
use super::{Error, FRAME_BYTES_MAX, HEADER_BYTES, Result};

/// Digits in the name of a segment in use.
const SEQ_DIGITS: usize = 20;

/// A segment file that may hold records.
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) is_quarantined: bool,
    /// To be quarantined.
    pub(super) is_damaged: bool,
    pub(super) first_seq: u64,
    /// What can be read: numbers, and where the first one lies.
    pub(super) runs: Vec<(Range<u64>, usize)>,
    segment: Segment,
    start: Start,
    /// The next frame might not have fitted: a successor is due.
    is_full: bool,
}

/// What is known of a segment's beginning.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Start {
    Header,
    /// The header is lost; the name has the number.
    Name,
    /// The header is lost and so is the number: a spare that never got its name.
    Unknown,
    Foreign,
}

impl Found {
    /// True when nothing is wrong with it.
    pub(super) fn is_intact(&self) -> bool {
        self.start == Start::Header && !self.is_damaged && !self.is_quarantined
    }

    /// Whether its name is to be its number: that of what is intact, and of what has it nowhere
    /// else.
    pub(super) fn has_number(&self) -> bool {
        self.start == Start::Name || !(self.is_damaged || self.is_quarantined)
    }

    /// Searches for the first valid record behind a damaged one. Of a segment whose number is lost
    /// the first record is only known to come after all others.
    fn resync(
        &self,
        bad_offset: usize,
        bad_seq: u64,
        before_seq: u64,
        scratch: &mut Scratch,
    ) -> Option<(usize, u64)> {
        let is_guess = self.start == Start::Unknown && self.runs.is_empty();
        self.segment
            .resync(bad_offset, bad_seq, before_seq, is_guess, scratch)
    }

    /// Tells the number of a segment that had lost it from its first readable record, for its name:
    /// by the next time others may have come behind it.
    fn find_number(&mut self) {
        if self.start != Start::Unknown {
            return;
        }
        if let Some((seqs, offset)) = self.runs.first() {
            self.first_seq = match *offset {
                HEADER_BYTES => seqs.start,
                _ => seqs.start.saturating_sub(1),
            };
            self.start = Start::Name;
        }
    }

    pub(super) fn into_segment(self) -> Segment {
        let mut segment = self.segment;
        segment.path = self.path.into();
        segment.is_quarantined = self.is_quarantined;
        segment
    }
}

/// What a file name says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Name {
    Segment(u64),
    Spare(u64),
}

/// Parses a segment's name; `None` for any other file.
pub(super) fn parse_name(path: &Path) -> Option<(Name, bool)> {
    let name = path.file_name()?.to_str()?;
    let plain = name.strip_suffix(QUARANTINED_SUFFIX);
    let stem = plain.unwrap_or(name).strip_suffix(SEGMENT_SUFFIX)?;
    let digits = stem.strip_prefix(SPARE_PREFIX).unwrap_or(stem);
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = digits.parse().ok()?;
    let name = match stem.len() {
        _ if digits.len() != stem.len() => Name::Spare(number),
        SEQ_DIGITS => Name::Segment(number),
        _ => return None,
    };
    Some((name, plain.is_some()))
}

/// The files of a journal.
pub(super) struct Files {
    /// Used segments in order, durable.
    pub(super) found: Vec<Found>,
    /// Spares that were never used, in the order they were made.
    pub(super) spares: Vec<PathBuf>,
    /// Number for the next spare.
    pub(super) next_spare: u64,
}

/// Opens the segments of a journal.
pub(super) fn list(root: &Root, id: Uuid, dir: &Path) -> Result<Files> {
    let (mut found, mut spares) = (Vec::new(), Vec::new());
    let mut next_spare = 0;
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let path = entry.map_err(Error::io("list", dir))?.path();
        let Some((name, is_quarantined)) = parse_name(&path) else {
            continue;
        };
        if let Name::Spare(number) = name {
            next_spare = next_spare.max(number.saturating_add(1));
        }
        match open(root, id, path.clone(), &name, is_quarantined)? {
            Some(segment) => found.push(segment),
            None => spares.push(path),
        }
    }
    spares.sort_unstable();
    // Of two that start alike, the named one comes first: it turned out to be empty.
    found.sort_by_cached_key(|it| {
        let is_named = matches!(parse_name(&it.path), Some((Name::Segment(_), _)));
        // Of two that repeat each other, the same one is read each time.
        (it.first_seq, !is_named, it.is_quarantined, it.path.clone())
    });
    Ok(Files {
        found,
        spares,
        next_spare,
    })
}

/// Opens a segment; `None`: an unused spare.
fn open(
    root: &Root,
    id: Uuid,
    path: PathBuf,
    name: &Name,
    is_quarantined: bool,
) -> Result<Option<Found>> {
    let file = File::open(&path).map_err(Error::io("open", &path))?;
    // What is read from here on may be shipped, so it has to be durable as well.
    root.disk
        .sync(&path, &file)
        .map_err(Error::io("sync", &path))?;
    let map = Map::read_only(&file).map_err(Error::io("map", &path))?;
    let segment = Segment::recovered(map, path.clone());
    let (start, first_seq) = match (segment.header(), name) {
        (Header::Zero, Name::Spare(_)) => return Ok(None),
        (Header::Version(found), _) => return Err(Error::Version { path, found }),
        (Header::Valid { journal, first_seq }, _) if journal == id => (Start::Header, first_seq),
        (Header::Valid { first_seq, .. }, _) => (Start::Foreign, first_seq),
        (Header::Zero | Header::Bad, Name::Segment(seq)) => (Start::Name, *seq),
        (Header::Bad, Name::Spare(_)) => (Start::Unknown, u64::MAX),
    };
    Ok(Some(Found {
        path,
        is_quarantined,
        is_damaged: false,
        first_seq,
        runs: Vec::new(),
        segment,
        start,
        is_full: false,
    }))
}

/// Goes over the segments of a journal in order.
pub(super) struct Scanner {
    /// Number of the first record that is still there.
    pub(super) first_seq: u64,
    /// Number after the last record found.
    pub(super) expected: u64,
    /// What is wrong with the segment of that index.
    pub(super) damage: Vec<(usize, Cause, Range<u64>)>,
    pub(super) torn_seq: Option<u64>,
    /// The last segment that was read, and where its last record ends.
    pub(super) tail: Option<(usize, usize)>,
    is_first_known: bool,
    watermark: u64,
    scratch: Scratch,
}

impl Scanner {
    /// `first_expected`: the watermark, at or below which the journal has to start.
    pub(super) fn new(first_expected: Option<u64>) -> Self {
        Self {
            first_seq: 0,
            expected: first_expected.unwrap_or(0),
            damage: Vec::new(),
            torn_seq: None,
            tail: None,
            is_first_known: first_expected.is_some(),
            watermark: first_expected.unwrap_or(0),
            scratch: Scratch::new(),
        }
    }

    pub(super) fn scan(&mut self, found: &mut [Found]) {
        let mut previous: Option<usize> = None;
        for index in 0..found.len() {
            let behind = found.iter().skip(index.saturating_add(1));
            let limit = behind
                .filter(|it| matches!(it.start, Start::Header | Start::Name))
                .map(|it| it.first_seq)
                .next();
            let is_previous_full = previous
                .and_then(|previous| found.get(previous))
                .is_none_or(|it| it.is_full);
            let Some(it) = found.get_mut(index) else {
                break;
            };
            if !self.begins(index, it, previous.is_none()) {
                continue;
            }
            // Records below the watermark are applied: nobody misses them.
            let missing = self.expected.max(self.watermark)..it.first_seq;
            if !missing.is_empty() && (previous.is_some() || self.is_first_known) {
                // Either the segment before broke off, or there was another one in between.
                match previous.filter(|_| !is_previous_full) {
                    Some(previous) => self.damage.push((previous, Cause::Records, missing)),
                    None => self.damage.push((index, Cause::MissingSegment, missing)),
                }
            }
            if previous.is_none() {
                self.first_seq = it.first_seq;
            }
            self.expected = it.first_seq;
            self.scan_segment(index, it, limit);
            it.find_number();
            previous = Some(index);
        }
        for (index, cause, _) in &self.damage {
            if let Some(it) = found.get_mut(*index) {
                it.is_damaged |= *cause != Cause::MissingSegment;
            }
        }
    }

    /// Whether the segment is to be read, and from which number on.
    fn begins(&mut self, index: usize, it: &mut Found, is_first: bool) -> bool {
        if it.start == Start::Unknown {
            it.first_seq = self.expected;
        }
        let first = it
            .segment
            .check(HEADER_BYTES, &mut self.scratch, it.first_seq);
        let has_record = matches!(first, Frame::Record { .. });
        match it.start {
            Start::Foreign => self.damage.push((index, Cause::Foreign, 0..0)),
            Start::Header if is_first || it.first_seq >= self.expected => return true,
            // Repeats numbers. An empty one was left by a crash right at its beginning.
            Start::Header if has_record => self.damage.push((index, Cause::Foreign, 0..0)),
            Start::Header => {}
            Start::Name | Start::Unknown => {
                // A sector that is lost takes the first records with the header.
                let is_readable = has_record
                    || it
                        .resync(HEADER_BYTES, it.first_seq, u64::MAX, &mut self.scratch)
                        .is_some();
                if is_readable || it.segment.header() == Header::Bad {
                    self.damage.push((index, Cause::Header, 0..0));
                }
                return is_readable && (is_first || it.first_seq >= self.expected);
            }
        }
        false
    }

    /// Finds the readable records of a segment whose successor starts with `limit`.
    fn scan_segment(&mut self, index: usize, it: &mut Found, limit: Option<u64>) {
        let mut offset = HEADER_BYTES;
        let mut seq = it.first_seq;
        self.torn_seq = None;
        loop {
            let (first_seq, first_offset) = (seq, offset);
            let stop = loop {
                match it.segment.check(offset, &mut self.scratch, seq) {
                    Frame::Record { payload_bytes } => {
                        offset = offset.strict_add(frame_bytes(payload_bytes));
                        seq = seq.strict_add(1);
                    }
                    stop @ (Frame::End | Frame::Bad) => break stop,
                }
            };
            if first_seq > self.expected {
                self.damage
                    .push((index, Cause::Records, self.expected..first_seq));
            }
            if seq > first_seq {
                it.runs.push((first_seq..seq, first_offset));
            }
            self.expected = seq;
            self.tail = Some((index, offset));
            // Where the header is lost, so may be the first frame.
            let is_lost = it.start != Start::Header && it.runs.is_empty();
            let is_end = stop == Frame::End && !is_lost;
            it.is_full = is_end && it.segment.left(offset) < FRAME_BYTES_MAX;
            if limit == Some(seq) || (is_end && limit.is_none()) {
                return;
            }
            // Records are missing here, or what lies here is the torn tail of the journal.
            let before = limit.unwrap_or(u64::MAX);
            let Some(next) = it.resync(offset, seq, before, &mut self.scratch) else {
                if limit.is_none() {
                    self.torn_seq = Some(seq);
                }
                return;
            };
            (offset, seq) = next;
        }
    }
}
