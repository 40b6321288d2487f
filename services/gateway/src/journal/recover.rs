//! What an earlier process left: found, judged, kept readable.

use std::fs::File;
use std::mem;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use runtime::crash_point;

use super::log::{Capacity, Log, Run, State};
use super::map::Map;
use super::root::Root;
use super::scan::{Files, Found, Scanner, list};
use super::segment::{Segment, wide};
use super::upkeep::{QUARANTINED_SUFFIX, Saved, WATERMARK, load_watermark, segment_name};
use super::{Error, HEADER_BYTES, Journal, Result, SEGMENT_BYTES_MIN, is_segment_size};

/// Of what the earlier life had set aside and not used, so much is kept for what completes its
/// journal, which may have to be written to a full disk: final counts, and the ends of open calls.
const COMPLETION_BYTES: usize = 1024 * 1024;

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
    let Files {
        mut found,
        spares,
        next_spare,
    } = list(root, id, &dir)?;
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
    let directory = File::open(&dir).map_err(Error::io("open", &dir))?;
    root.disk
        .sync_directory(&dir, &directory)
        .map_err(Error::io("sync", &dir))?;

    let mut damage = damages(mem::take(&mut scanner.damage), &found);
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
    // Numbers are counted from the beginning of a segment: only the next one can be added to it.
    let tail = scanner.tail.filter(|_| scanner.expected == state.next_seq);
    for (index, segment) in found.into_iter().enumerate() {
        let end = tail.filter(|(last, _)| *last == index);
        match end.filter(|_| segment.is_intact()) {
            Some((_, offset)) => go_on(root, segment, offset, &mut state)?,
            None => add_runs(root, segment, &mut state),
        }
    }
    keep_spares(root, spares, &mut state)?;
    let capacity = Capacity {
        segment_bytes: SEGMENT_BYTES_MIN,
        room_records_min: 0,
        final_records: 0,
        // What completes an old journal is what lets it be removed in the end.
        bytes_max: u64::MAX,
    };
    let log = Arc::new(Log::new(
        Arc::clone(root),
        id,
        (dir, directory),
        capacity,
        state,
    ));
    Ok(Recovered {
        journal: Journal { log },
        damage,
        torn_seq: scanner.torn_seq,
    })
}

/// What is damaged, by the names that files have from now on.
fn damages(scanned: Vec<(usize, Cause, Range<u64>)>, found: &[Found]) -> Vec<Damage> {
    let named = scanned.into_iter().map(|(index, cause, missing)| Damage {
        path: found
            .get(index)
            .map(|segment| segment.path.clone())
            .unwrap_or_default(),
        cause,
        missing,
    });
    named.collect()
}

/// Gives a damaged segment the name that says so, and a used spare the name it should have.
fn rename(root: &Root, found: &mut Found) -> Result<()> {
    if found.is_quarantined && !found.has_number() {
        return Ok(());
    }
    let mut name = found.path.clone().into_os_string();
    if found.has_number() {
        name = found
            .path
            .with_file_name(segment_name(found.first_seq))
            .into();
    }
    if found.is_damaged || found.is_quarantined {
        name.push(QUARANTINED_SUFFIX);
    }
    let name = PathBuf::from(name);
    // An empty segment may have the name already; the header decides, not the name.
    if !name.exists() {
        root.disk
            .rename(&found.path, &name)
            .map_err(Error::io("rename", &found.path))?;
        found.path = name;
        found.is_quarantined |= found.is_damaged;
    }
    Ok(())
}

/// Makes the last segment the one to go on in, behind its last record.
fn go_on(root: &Root, found: Found, offset: usize, state: &mut State) -> Result<()> {
    let Some(segment) = reuse(root, &found.path, offset)? else {
        add_runs(root, found, state);
        return Ok(());
    };
    root.count(segment.file_bytes);
    let segment = Arc::new(segment);
    state.runs.push_back(Run {
        segment: Arc::clone(&segment),
        first_seq: found.first_seq,
        offset: HEADER_BYTES,
        end_seq: u64::MAX,
    });
    (state.active, state.offset) = (Some(segment), offset);
    Ok(())
}

/// Keeps as many of the unused spares as may be needed; the others go.
fn keep_spares(root: &Root, spares: Vec<PathBuf>, state: &mut State) -> Result<()> {
    let active = state.active.as_ref();
    let mut room = active.map_or(0, |segment| segment.left(state.offset));
    for path in spares {
        let kept = match room < COMPLETION_BYTES {
            true => reuse(root, &path, 0)?,
            false => None,
        };
        let Some(segment) = kept else {
            root.disk
                .unlink(&path)
                .map_err(Error::io("unlink", &path))?;
            continue;
        };
        room = room.saturating_add(segment.left(HEADER_BYTES));
        root.count(segment.file_bytes);
        state.spares.push_back(Arc::new(segment));
    }
    Ok(())
}

/// Opens a segment for writing, and erases what lies in it from `offset` on: there may be remains
/// of what was never synced, and the next record must not end right before one. `None`: it is not
/// what a life leaves.
fn reuse(root: &Root, path: &Path, offset: usize) -> Result<Option<Segment>> {
    let file = match root.disk.reopen(path).map_err(Error::io("open", path)) {
        // A copy has holes where nothing was written, and there is no room for them.
        Err(error) if error.is_disk_full() => return Ok(None),
        file => file?,
    };
    let is_spare = offset == 0;
    let bytes = file.metadata().map_err(Error::io("read", path))?.len();
    if is_spare && bytes > wide(COMPLETION_BYTES) {
        file.set_len(wide(COMPLETION_BYTES))
            .map_err(Error::io("cut", path))?;
    }
    let map = Map::writable(&file).map_err(Error::io("map", path))?;
    if !is_segment_size(map.bytes()) {
        return Ok(None);
    }
    let segment = Segment::new(map, path.to_path_buf(), file, 0);
    segment.erase(offset);
    if let Some(file) = &*segment.file.lock() {
        root.disk
            .sync(path, file)
            .map_err(Error::io("sync", path))?;
    }
    Ok(Some(segment))
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
