//! Reads journals from the description of their format, changing nothing.
//!
//! A journal may be written, named and trimmed by its owner at the same time: the commit word of a
//! frame is written last and its watermark before anything is unlinked, so what is read here is
//! right, if not always the last.

use std::fs;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::Context;
use uuid::Uuid;

const HEADER_BYTES: usize = 64;
const HEADER_CRC_AT: usize = 60;
const FRAME_HEAD_BYTES: usize = 8;
const PAYLOAD_BYTES_MAX: usize = 4096;
/// No frame is shorter: head and one padded word.
const FRAME_BYTES_MIN: usize = 16;
const SEARCH_RECORDS_MAX: usize = 1024;
/// A directory that changes while it is listed is listed again, so often.
const LISTINGS_MAX: usize = 20;

/// All journals below some root directories.
#[derive(Debug, Default)]
pub struct Journals {
    /// In the order of their ids.
    pub all: Vec<Journal>,
}

/// One journal as it lies on disk.
#[derive(Debug)]
pub struct Journal {
    /// Its id.
    pub id: Uuid,
    /// Its directory.
    pub dir: PathBuf,
    /// Every record below it was applied by all consumers.
    pub watermark: u64,
    /// Its segments in order.
    pub segments: Vec<Segment>,
    /// Number and payload of every readable record, in order.
    pub records: Vec<(u64, Vec<u8>)>,
    /// Records that cannot be read though they should be there.
    pub gaps: Vec<Range<u64>>,
    /// Number after the last record.
    pub end: u64,
    /// Remains of an unfinished record lie at the end.
    pub is_torn: bool,
    /// What else is wrong with it, in words.
    pub damage: Vec<String>,
}

/// One segment file.
#[derive(Debug)]
pub struct Segment {
    /// Name of the file.
    pub name: String,
    /// Number of its first record.
    pub first_seq: u64,
    /// Readable records in it.
    pub records: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Set aside as damaged by its owner.
    pub is_quarantined: bool,
}

impl Journals {
    /// Reads every journal of every root. A root that does not exist holds none.
    ///
    /// # Errors
    /// A directory or file cannot be read.
    pub fn read(roots: &[PathBuf]) -> anyhow::Result<Self> {
        let mut all = Vec::new();
        for root in roots {
            let entries = match fs::read_dir(root) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                entries => entries.with_context(|| format!("cannot list {}", root.display()))?,
            };
            for entry in entries {
                let dir = entry?.path();
                let Some(id) = journal_id(&dir) else { continue };
                let read = Journal::read(id, &dir);
                all.extend(read.with_context(|| format!("cannot read {}", dir.display()))?);
            }
        }
        all.sort_by_key(|journal| journal.id);
        Ok(Self { all })
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// Is there one of this id?
    #[must_use]
    pub fn has(&self, id: Uuid) -> bool {
        self.all
            .binary_search_by_key(&id, |journal| journal.id)
            .is_ok()
    }
}

fn journal_id(dir: &Path) -> Option<Uuid> {
    let digits = dir.file_name()?.to_str()?.strip_prefix("jrn_")?;
    let is_canonical = digits.len() == 32 && !digits.bytes().any(|b| b.is_ascii_uppercase());
    is_canonical.then(|| Uuid::try_parse(digits).ok())?
}

/// A segment file with its content.
struct File {
    name: String,
    bytes: Vec<u8>,
    first_seq: Start,
    is_quarantined: bool,
    is_canonical: bool,
}

/// How a segment's first number is known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Start {
    Known(u64),
    /// The header is damaged; the name says it.
    Named(u64),
    /// The header is damaged and the segment has no number in its name.
    AfterAllOthers,
    /// Another journal's.
    Foreign,
}

impl Start {
    fn order(self) -> u64 {
        match self {
            Self::Known(seq) | Self::Named(seq) => seq,
            Self::AfterAllOthers | Self::Foreign => u64::MAX,
        }
    }
}

impl Journal {
    /// `None` if it was removed meanwhile.
    fn read(id: Uuid, dir: &Path) -> io::Result<Option<Self>> {
        let Some(mut files) = files(id, dir)? else {
            return Ok(None);
        };
        files.sort_by_key(|file| (file.first_seq.order(), !file.is_canonical));
        // After the segments: a trimmed segment is missing only below the watermark of later.
        let (watermark, is_watermark_bad) = watermark(dir)?;
        let mut journal = Self {
            id,
            dir: dir.to_owned(),
            watermark,
            segments: Vec::new(),
            records: Vec::new(),
            gaps: Vec::new(),
            end: watermark,
            is_torn: false,
            damage: Vec::new(),
        };
        if is_watermark_bad {
            journal
                .damage
                .push("the watermark file is damaged".to_owned());
        }
        let mut is_first = true;
        for (index, file) in files.iter().enumerate() {
            let limit = files
                .iter()
                .skip(index + 1)
                .find_map(|next| match next.first_seq {
                    Start::Known(seq) | Start::Named(seq) => Some(seq),
                    Start::AfterAllOthers | Start::Foreign => None,
                });
            is_first &= !journal.take(file, limit, is_first);
        }
        if files.iter().all(|file| file.first_seq == Start::Foreign) {
            journal.end = watermark;
        }
        journal.end = journal.end.max(watermark);
        Ok(Some(journal))
    }

    /// Reads one segment, whose successor starts with `limit`. False: there was nothing to read.
    fn take(&mut self, file: &File, limit: Option<u64>, is_first: bool) -> bool {
        let expected = self.end;
        let (first_seq, needs_record) = match file.first_seq {
            Start::Known(seq) => (seq, false),
            Start::Named(seq) => (seq, true),
            Start::AfterAllOthers => (expected, true),
            Start::Foreign => {
                self.damage
                    .push(format!("{} belongs to another journal", file.name));
                return false;
            }
        };
        let begins = has_record(&file.bytes, first_seq);
        let is_guess = file.first_seq == Start::AfterAllOthers && !begins;
        let is_readable =
            begins || search(&file.bytes, (HEADER_BYTES, first_seq), None, is_guess).is_some();
        if needs_record {
            self.damage
                .push(format!("the header of {} is damaged", file.name));
        }
        let is_repeat = !is_first && first_seq < expected;
        if is_repeat && begins {
            self.damage.push(format!("{} repeats numbers", file.name));
        }
        if is_repeat || (needs_record && !is_readable) {
            return false;
        }
        self.miss(expected.max(self.watermark)..first_seq);
        self.end = first_seq;
        let before = self.records.len();
        self.scan(file, (first_seq, is_guess), limit);
        self.segments.push(Segment {
            name: file.name.clone(),
            first_seq,
            records: wide(self.records.len() - before),
            bytes: wide(file.bytes.len()),
            is_quarantined: file.is_quarantined,
        });
        true
    }

    fn miss(&mut self, gap: Range<u64>) {
        if !gap.is_empty() {
            self.gaps.push(gap);
        }
    }

    fn scan(&mut self, file: &File, first: (u64, bool), limit: Option<u64>) {
        let (mut offset, (mut seq, mut is_guess)) = (HEADER_BYTES, first);
        loop {
            let stop = frame(&file.bytes, offset, seq);
            if let Frame::Record(payload) = stop {
                self.records.push((seq, payload.to_vec()));
                offset += frame_bytes(payload.len());
                seq += 1;
                self.end = seq;
                continue;
            }
            if limit == Some(seq) || (limit.is_none() && stop == Frame::End) {
                return;
            }
            let place = (offset, seq);
            let Some((found, number)) = search(&file.bytes, place, limit, is_guess) else {
                // With a successor the gap reaches to it; without, this is a torn tail.
                self.is_torn |= limit.is_none();
                return;
            };
            self.miss(seq..number);
            (offset, seq, is_guess) = (found, number, false);
        }
    }
}

/// Reads all segments in use; lists again when one was renamed or unlinked in between.
fn files(id: Uuid, dir: &Path) -> io::Result<Option<Vec<File>>> {
    for _ in 0..LISTINGS_MAX {
        let mut files = Vec::new();
        let mut has_changed = false;
        let entries = match fs::read_dir(dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            entries => entries?,
        };
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            match open(id, dir, name) {
                Ok(file) => files.extend(file),
                Err(error) if error.kind() == ErrorKind::NotFound => has_changed = true,
                Err(error) => return Err(error),
            }
        }
        if !has_changed {
            return Ok(Some(files));
        }
    }
    Err(io::Error::other(
        "its files change faster than they can be listed",
    ))
}

/// `None`: no segment, or one that was never used.
fn open(id: Uuid, dir: &Path, name: String) -> io::Result<Option<File>> {
    let stem = name.strip_suffix(".quarantined");
    let is_quarantined = stem.is_some();
    let Some(stem) = stem.unwrap_or(&name).strip_suffix(".seg") else {
        return Ok(None);
    };
    let digits = stem.strip_prefix("spare_").unwrap_or(stem);
    let is_canonical = digits.len() == stem.len();
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number || (is_canonical && digits.len() != 20) {
        return Ok(None);
    }
    let named = is_canonical.then(|| digits.parse().ok()).flatten();
    let bytes = fs::read(dir.join(&name))?;
    let Some(first_seq) = start(id, &bytes, named) else {
        return Ok(None);
    };
    Ok(Some(File {
        name,
        bytes,
        first_seq,
        is_quarantined,
        is_canonical,
    }))
}

fn start(id: Uuid, bytes: &[u8], named: Option<u64>) -> Option<Start> {
    let header = bytes.get(..HEADER_BYTES)?;
    if header.iter().all(|byte| *byte == 0) {
        // A spare that was not used, or a numbered segment whose header is gone.
        let is_readable = |seq: &u64| {
            has_record(bytes, *seq) || search(bytes, (HEADER_BYTES, *seq), None, false).is_some()
        };
        return named.filter(is_readable).map(Start::Named);
    }
    let is_valid = header.starts_with(b"TGJL")
        && u32_at(header, 4) == 1
        && u32_at(header, HEADER_CRC_AT) == crc32c::crc32c(header.get(..HEADER_CRC_AT)?);
    if !is_valid {
        return Some(named.map_or(Start::AfterAllOthers, Start::Named));
    }
    if header.get(8..24)? != id.as_bytes() {
        return Some(Start::Foreign);
    }
    Some(Start::Known(u64_at(header, 24)))
}

fn has_record(bytes: &[u8], seq: u64) -> bool {
    matches!(frame(bytes, HEADER_BYTES, seq), Frame::Record(_))
}

fn watermark(dir: &Path) -> io::Result<(u64, bool)> {
    let bytes = match fs::read(dir.join("watermark")) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok((0, false)),
        bytes => bytes?,
    };
    let is_valid = bytes.len() == 20
        && bytes.starts_with(b"TGJW")
        && u32_at(&bytes, 4) == 1
        && bytes
            .get(..16)
            .is_some_and(|covered| u32_at(&bytes, 16) == crc32c::crc32c(covered));
    Ok(if is_valid {
        (u64_at(&bytes, 8), false)
    } else {
        (0, true)
    })
}

/// What lies at an offset.
#[derive(PartialEq, Eq)]
enum Frame<'a> {
    End,
    Bad,
    Record(&'a [u8]),
}

fn frame(bytes: &[u8], offset: usize, seq: u64) -> Frame<'_> {
    match plausible(bytes, offset) {
        None => Frame::End,
        Some(Some((payload, crc))) if checksum(seq, payload) == crc => Frame::Record(payload),
        Some(_) => Frame::Bad,
    }
}

/// Outer `None`: nothing was written here. Inner: it cannot be a frame.
fn plausible(bytes: &[u8], offset: usize) -> Option<Option<(&[u8], u32)>> {
    let head = bytes.get(offset..offset + FRAME_HEAD_BYTES)?;
    let length = usize::try_from(u32_at(head, 0)).unwrap_or(usize::MAX);
    if length == 0 {
        return None;
    }
    if length > PAYLOAD_BYTES_MAX || bytes.len() < offset + frame_bytes(length) {
        return Some(None);
    }
    let from = offset + FRAME_HEAD_BYTES;
    Some(
        bytes
            .get(from..from + length)
            .map(|payload| (payload, u32_at(head, 4))),
    )
}

/// The first valid record behind a bad frame, and its number; of a segment that has lost its own,
/// the first valid one, with a number from the guessed one on.
fn search(
    bytes: &[u8],
    (bad, seq): (usize, u64),
    limit: Option<u64>,
    is_guess: bool,
) -> Option<(usize, u64)> {
    let mut offset = if is_guess { bad } else { bad + FRAME_BYTES_MIN };
    while offset + FRAME_HEAD_BYTES <= bytes.len() {
        if let Some(Some((payload, crc))) = plausible(bytes, offset) {
            let between = ((offset - bad) / FRAME_BYTES_MIN).min(SEARCH_RECORDS_MAX);
            let between = if is_guess {
                SEARCH_RECORDS_MAX
            } else {
                between
            };
            let last = seq + wide(between);
            let last = limit.map_or(last, |limit| last.min(limit.saturating_sub(1)));
            let first = seq + u64::from(!is_guess);
            if let Some(number) = (first..=last).find(|it| checksum(*it, payload) == crc) {
                return Some((offset, number));
            }
        }
        offset += 8;
    }
    None
}

fn checksum(seq: u64, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&seq.to_le_bytes()), payload)
}

fn frame_bytes(payload_bytes: usize) -> usize {
    FRAME_HEAD_BYTES + payload_bytes.next_multiple_of(8)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let field = bytes
        .get(at..at + 4)
        .and_then(|field| field.try_into().ok());
    u32::from_le_bytes(field.unwrap_or_default())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let field = bytes
        .get(at..at + 8)
        .and_then(|field| field.try_into().ok());
    u64::from_le_bytes(field.unwrap_or_default())
}

fn wide(size: usize) -> u64 {
    u64::try_from(size).unwrap_or(u64::MAX)
}
