//! What an earlier process left: found, judged, kept readable.

use std::mem;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use uuid::Uuid;

use runtime::crash_point;

use super::log::{Capacity, Log, Run, State};
use super::root::Root;
use super::scan::{Found, Scanner, list};
use super::upkeep::{QUARANTINED_SUFFIX, Saved, WATERMARK, load_watermark, segment_name};
use super::{Error, Journal, Result, SEGMENT_BYTES_MIN};

/// A journal of an earlier process: to be read, completed, trimmed and removed.
pub struct Recovered {
    /// The journal. Reading starts at its watermark.
    pub journal: Journal,
    /// What is wrong with it; each entry is worth an alarm.
    pub damage: Vec<Damage>,
    /// The record being written when the power failed, if remains of it were found. Not an
    /// alarm: nobody was promised a record that was not synced.
    pub torn_seq: Option<u64>,
}

/// A damaged place in a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file it was found in, under its present name.
    pub path: PathBuf,
    /// What is wrong.
    pub cause: Cause,
    /// Records that cannot be read because of it; empty if all can.
    pub missing: Range<u64>,
}

/// What can be wrong with a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The header of a segment is damaged.
    Header,
    /// Records within a segment or at its end are damaged.
    Records,
    /// Segments before this one are missing, though nothing allowed to remove them.
    MissingSegment,
    /// The segment belongs to another journal or repeats numbers. It is not read.
    Foreign,
    /// The watermark file is damaged; applied records may be read again.
    Watermark,
}

/// Records of a recovered journal that can never be read again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Their numbers.
    pub seqs: Range<u64>,
    /// Why.
    pub cause: Cause,
}

impl Recovered {
    /// What of the journal is lost, in order. Between two records that can be read there is one
    /// gap at most, whatever was damaged between them.
    pub fn gaps(&self) -> Vec<Gap> {
        let missing = self.damage.iter().filter(|it| !it.missing.is_empty());
        let mut lost: Vec<Gap> = missing
            .map(|it| Gap {
                seqs: it.missing.clone(),
                cause: it.cause,
            })
            .collect();
        lost.sort_by_key(|gap| gap.seqs.start);
        let mut gaps: Vec<Gap> = Vec::with_capacity(lost.len());
        for gap in lost {
            match gaps.last_mut().filter(|it| gap.seqs.start <= it.seqs.end) {
                Some(last) => last.seqs.end = last.seqs.end.max(gap.seqs.end),
                None => gaps.push(gap),
            }
        }
        gaps
    }
}

/// Recovers all journals in the root directory.
pub(super) fn recover_all(root: &Arc<Root>) -> Result<Vec<Recovered>> {
    let mut recovered = Vec::new();
    for (id, dir) in root.journals()? {
        recovered.push(recover(root, id, dir)?);
    }
    Ok(recovered)
}

/// Recovers one journal. One without records counts: credits may have been lent to it, and the
/// reply may never have come.
fn recover(root: &Arc<Root>, id: Uuid, dir: PathBuf) -> Result<Recovered> {
    let saved = load_watermark(&dir)?;
    let (mut found, next_spare) = list(root, id, &dir)?;
    let first_expected = match saved {
        Saved::None => Some(0),
        Saved::Watermark(watermark) => Some(watermark),
        Saved::Bad => None,
    };
    let mut scanner = Scanner::new(first_expected);
    scanner.scan(&mut found);
    crash_point!("gateway.recovery_scanned");
    for segment in &mut found {
        rename(root, segment)?;
    }
    root.disk
        .sync_directory(&dir)
        .map_err(Error::io("sync", &dir))?;

    // Damage names files as they are called from now on.
    let mut damage = Vec::new();
    for (index, cause, missing) in mem::take(&mut scanner.damage) {
        let path = found
            .get(index)
            .map(|segment| segment.path.clone())
            .unwrap_or_default();
        damage.push(Damage {
            path,
            cause,
            missing,
        });
    }
    if saved == Saved::Bad {
        damage.push(Damage {
            path: dir.join(WATERMARK),
            cause: Cause::Watermark,
            missing: 0..0,
        });
    }
    let watermark = first_expected.unwrap_or(scanner.first_seq);
    let mut state = State {
        next_seq: scanner.expected.max(watermark),
        watermark,
        next_spare,
        ..State::default()
    };
    for segment in found {
        add_runs(root, segment, &mut state);
    }
    let capacity = Capacity {
        segment_bytes: SEGMENT_BYTES_MIN,
        room_records_min: 0,
        // What completes an old journal is what lets it be removed in the end.
        bytes_max: u64::MAX,
    };
    let log = Arc::new(Log::new(Arc::clone(root), id, dir, capacity, state));
    Ok(Recovered {
        journal: Journal { log },
        damage,
        torn_seq: scanner.torn_seq,
    })
}

/// Gives a damaged segment the name that says so, and a used spare the name it should have.
fn rename(root: &Root, found: &mut Found) -> Result<()> {
    if found.is_quarantined {
        return Ok(());
    }
    let name = if found.is_damaged {
        let mut name = found.path.clone().into_os_string();
        name.push(QUARANTINED_SUFFIX);
        PathBuf::from(name)
    } else {
        found.path.with_file_name(segment_name(found.first_seq))
    };
    // An empty segment may have the name already; the header decides, not the name.
    if !name.exists() {
        root.disk
            .rename(&found.path, &name)
            .map_err(Error::io("rename", &found.path))?;
        found.path = name;
        found.is_quarantined = found.is_damaged;
    }
    Ok(())
}

/// Makes a segment's records readable.
fn add_runs(root: &Root, mut found: Found, state: &mut State) {
    let runs = mem::take(&mut found.runs);
    if runs.is_empty() {
        return;
    }
    let segment = Arc::new(found.into_segment());
    root.count(segment.file_bytes);
    for (seqs, offset) in runs {
        state.runs.push_back(Run {
            segment: Arc::clone(&segment),
            first_seq: seqs.start,
            offset,
            end_seq: seqs.end,
        });
    }
}
