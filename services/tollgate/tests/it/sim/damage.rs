//! Journals that are damaged between two lives: bytes flipped in records and headers, segments
//! gone.
//!
//! The last record is spared: damage to it cannot be told from a record that was never finished.

use std::{fs, path::PathBuf};

use types::JournalId;
use uuid::Uuid;

use super::world::World;

const HEADER_BYTES: usize = 64;
/// Somewhere in the header, neither its magic nor its number.
const HEADER_BYTE: usize = 41;
/// Where a header has the number of the first record.
const FIRST_SEQ_AT: usize = 24;
/// Records that are hit in a row, at most.
const ROW_MAX: usize = 10;

/// A segment with records.
struct Segment {
    path: PathBuf,
    first_seq: u64,
    /// Where each record's frame begins.
    frames: Vec<usize>,
}

impl Segment {
    /// Walks over the frames, whatever is in them. `None`: it has none.
    fn read(path: PathBuf) -> Option<Self> {
        let bytes = fs::read(&path).ok()?;
        let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let first_seq = u64::from_le_bytes(*bytes.get(FIRST_SEQ_AT..)?.first_chunk()?);
        let (mut frames, mut at) = (Vec::new(), HEADER_BYTES);
        while let Some(length) = word(at).filter(|length| (1..=4096).contains(length)) {
            frames.push(at);
            at += 8 + usize::try_from(length).ok()?.next_multiple_of(8);
        }
        (!frames.is_empty()).then_some(Self {
            path,
            first_seq,
            frames,
        })
    }

    fn seq(&self, index: usize) -> u64 {
        self.first_seq + u64::try_from(index).unwrap()
    }
}

impl World {
    /// Damages a journal of a gateway that does not run.
    pub(super) fn damage(&mut self, index: usize) {
        if self.slots[index].running.is_some() {
            return;
        }
        let journals = folders(&self.slots[index].dir);
        let Some((journal, dir)) = journals.get(self.dice.below(journals.len())) else {
            return;
        };
        let mut paths: Vec<PathBuf> = fs::read_dir(dir)
            .expect("a folder")
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| path.to_string_lossy().contains(".seg"))
            .collect();
        paths.sort();
        let mut segments: Vec<Segment> = paths.into_iter().filter_map(Segment::read).collect();
        segments.sort_by_key(|segment| segment.first_seq);
        let Some(last) = segments.len().checked_sub(1) else {
            return;
        };
        let chosen = self.dice.below(segments.len());
        let segment = &segments[chosen];
        let spared = usize::from(chosen == last);
        let records = segment.frames.len() - spared;
        let hit = match self.dice.below(8) {
            0 => {
                self.slots[index].disk.flip(&segment.path, HEADER_BYTE);
                0..0
            }
            1 if chosen != last => {
                self.slots[index].disk.destroy(&segment.path);
                0..records
            }
            _ if records > 0 => {
                let length = 1 + self.dice.below(ROW_MAX);
                // What was written last is what was applied least.
                let first = match self.dice.chance(500) {
                    true => records.saturating_sub(length),
                    false => self.dice.below(records),
                };
                let row = first..records.min(first + length);
                for frame in &segment.frames[row.clone()] {
                    self.slots[index].disk.flip(&segment.path, frame + 8);
                }
                row
            }
            _ => return,
        };
        self.figures.faults += 1;
        self.figures.damaged += u64::try_from(hit.len()).unwrap();
        self.note(format!(
            "{index}: {journal} is damaged in the segment of {}, records {hit:?} of it",
            segment.first_seq
        ));
        let hit = hit.map(|record| (*journal, segment.seq(record)));
        self.hit.extend(hit);
        self.damaged_journals.insert(*journal);
    }
}

/// The journals in a place, in order.
pub(super) fn folders(place: &std::path::Path) -> Vec<(JournalId, PathBuf)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let id = name
            .strip_prefix("jrn_")
            .and_then(|id| Uuid::try_parse(id).ok());
        found.extend(id.map(|id| (JournalId::new(id), entry.path())));
    }
    found.sort();
    found
}
