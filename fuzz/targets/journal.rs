//! Recovery of a directory that a script has laid out: with right checksums where it wants, since
//! no fuzzer guesses those.

use std::{fs, path::Path};

use gateway::journal::{Error, Journal, Limits, Options, Recovered, SEGMENT_BYTES_MIN};
use uuid::Uuid;

use super::Input;

const NOW_MS: u64 = 1_790_000_000_000;
const JOURNAL: u128 = 1;
/// Files of one directory; a script that wants more is at its end.
const FILES_MAX: usize = 6;

/// A segment in the making.
struct Segment {
    name: String,
    bytes: Vec<u8>,
}

/// A directory in the making.
#[derive(Default)]
struct Layout {
    segments: Vec<Segment>,
    watermark: Option<Vec<u8>>,
    /// The number that a right frame has next.
    seq: u64,
    /// Nothing is wrong so far: every record must be found.
    is_sound: bool,
}

fn header(first_seq: u64, journal: u128) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(b"TGJL");
    header.extend(1_u32.to_le_bytes());
    header.extend(Uuid::from_u128(journal).as_bytes());
    header.extend(first_seq.to_le_bytes());
    header.extend(NOW_MS.to_le_bytes());
    header.extend(
        u32::try_from(SEGMENT_BYTES_MIN)
            .expect("64 KiB")
            .to_le_bytes(),
    );
    header.resize(60, 0);
    let crc = crc32c::crc32c(&header);
    header.extend(crc.to_le_bytes());
    header
}

fn frame(seq: u64, payload: &[u8]) -> Vec<u8> {
    let covered: Vec<u8> = seq.to_le_bytes().iter().chain(payload).copied().collect();
    let length = u32::try_from(payload.len()).expect("short");
    let mut frame = length.to_le_bytes().to_vec();
    frame.extend(crc32c::crc32c(&covered).to_le_bytes());
    frame.extend(payload);
    frame.resize(frame.len().next_multiple_of(8), 0);
    frame
}

impl Layout {
    fn read(input: &mut Input<'_>) -> Self {
        let mut layout = Self {
            is_sound: true,
            ..Self::default()
        };
        while !input.is_empty() && layout.segments.len() <= FILES_MAX {
            layout.step(input);
        }
        layout
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let operation = input.byte();
        match operation % 12 {
            0 => self.begin(input, 0),
            1 => {
                self.is_sound = false;
                self.begin(
                    input,
                    i64::from(input.0.first().copied().unwrap_or(0)) - 128,
                );
            }
            // The watermark: right, or whatever.
            2 => {
                self.is_sound = false;
                let watermark = u64::from(input.short());
                let mut text = b"TGJW".to_vec();
                text.extend(1_u32.to_le_bytes());
                text.extend(watermark.to_le_bytes());
                let crc = crc32c::crc32c(&text);
                text.extend(crc.to_le_bytes());
                self.watermark = Some(text);
            }
            3 => {
                self.is_sound = false;
                let bytes = usize::from(input.byte() % 32);
                self.watermark = Some(input.take(bytes).to_vec());
            }
            4..=8 => {
                let payload = input.take(usize::from(operation) + 1).to_vec();
                self.record(&payload);
            }
            // A record of any number.
            9 => {
                self.is_sound = false;
                let seq = u64::from(input.short());
                let payload = input.take(9);
                let frame = frame(seq, payload);
                self.extend(&frame);
            }
            // Any bytes, or zeros.
            10 => {
                self.is_sound = false;
                let bytes = usize::from(input.byte());
                let raw = input.take(bytes).to_vec();
                self.extend(&raw);
            }
            _ => {
                self.is_sound = false;
                let zeros = vec![0; usize::from(input.byte())];
                self.extend(&zeros);
            }
        }
    }

    fn begin(&mut self, input: &mut Input<'_>, distance: i64) {
        let first_seq = self.seq.saturating_add_signed(distance);
        let kind = input.byte();
        let name = match kind % 4 {
            0 | 1 => format!("{first_seq:020}.seg"),
            2 => format!("spare_{:08}.seg", self.segments.len()),
            _ => format!("{first_seq:020}.seg.quarantined"),
        };
        let journal = if kind >= 250 { 2 } else { JOURNAL };
        self.is_sound &= journal == JOURNAL;
        if self.segments.iter().any(|it| it.name == name) {
            self.is_sound = false;
            return;
        }
        self.seq = first_seq;
        let bytes = header(first_seq, journal);
        self.segments.push(Segment { name, bytes });
    }

    fn record(&mut self, payload: &[u8]) {
        if payload.is_empty() || self.segments.is_empty() {
            return;
        }
        let frame = frame(self.seq, payload);
        self.seq += 1;
        self.extend(&frame);
    }

    fn extend(&mut self, bytes: &[u8]) {
        if let Some(segment) = self.segments.last_mut() {
            segment.bytes.extend(bytes);
        }
    }

    fn write(&self, dir: &Path, is_whole: bool) {
        fs::create_dir_all(dir).expect("creatable");
        for segment in &self.segments {
            let mut bytes = segment.bytes.clone();
            if is_whole {
                bytes.resize(SEGMENT_BYTES_MIN, 0);
            }
            fs::write(dir.join(&segment.name), bytes).expect("writable");
        }
        if let Some(watermark) = &self.watermark {
            fs::write(dir.join("watermark"), watermark).expect("writable");
        }
    }
}

fn open(root: &Path, number: u128) -> Result<(Journal, Option<Recovered>), Error> {
    let options = Options {
        segment_bytes: SEGMENT_BYTES_MIN,
        room_bytes_min: 0,
        ..Options::new(root)
    };
    let (journal, recovered) = Journal::open(&options, Uuid::from_u128(number), NOW_MS)?;
    let of_the_script = |it: &Recovered| it.journal.id() == Uuid::from_u128(JOURNAL);
    Ok((journal, recovered.into_iter().find(of_the_script)))
}

/// Everything that can be read: in order, none twice.
fn read(journal: &Journal) -> Vec<(u64, Vec<u8>)> {
    let mut reader = journal.reader(0);
    let mut all: Vec<(u64, Vec<u8>)> = Vec::new();
    while let Ok(Some(batch)) = reader.next_batch(Limits::before(u64::MAX)) {
        for (seq, record) in (batch.first_seq..).zip(batch.records) {
            assert!(all.last().is_none_or(|(last, _)| *last < seq));
            assert!(seq < journal.next_seq());
            all.push((seq, record.to_vec()));
        }
    }
    all
}

/// In memory where that can be had.
fn place() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a place")
}

/// Recovers twice, adds a record in between, and brings the journal to its end.
pub(super) fn recover(data: &[u8]) {
    let mut input = Input(data);
    let is_whole = input.byte() % 2 == 0;
    let layout = Layout::read(&mut input);
    let place = place();
    let dir = place.path().join(format!("jrn_{:032x}", JOURNAL));
    layout.write(&dir, is_whole);
    let (own, Some(old)) = open(place.path(), 100).expect("of our version") else {
        return;
    };
    let first = read(&old.journal);
    if layout.is_sound && is_whole && !layout.segments.is_empty() {
        assert!(old.damage.is_empty(), "{:?}", old.damage);
        assert_eq!(u64::try_from(first.len()).expect("few"), layout.seq);
    }
    let last = old.journal.append_synced(NOW_MS, |slot| {
        slot.buf[..3].copy_from_slice(b"end");
        (3, ())
    });
    let (last, ()) = last.expect("there is room for what ends a journal");
    drop((own, old));
    let (own, old) = open(place.path(), 101).expect("of our version");
    let old = old.expect("it is still there");
    let mut again = read(&old.journal);
    assert_eq!(again.pop(), Some((last, b"end".to_vec())));
    // Below the watermark a segment may go.
    let kept = first.iter().filter(|record| !again.contains(record));
    assert!(
        kept.into_iter()
            .all(|(seq, _)| *seq < old.journal.watermark())
    );
    old.journal.trim(old.journal.next_seq()).expect("trimmed");
    old.journal.remove().expect("all of it is applied");
    drop(own);
}
