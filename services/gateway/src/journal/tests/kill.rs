//! SIGKILL: every number the dead process told us is in its journal.

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use super::{NOW_MS, Patience, id, options, payload, read};
use crate::journal::Journal;

const ROUNDS: u128 = 6;

fn record_bytes(seq: u64) -> usize {
    usize::try_from(seq * 53 % 700).expect("small") + 1
}

/// Not a test of its own: the process to be killed. Its directory and id come by standard input;
/// without them there is nothing to do.
#[test]
#[ignore = "started and killed by a_killed_process_leaves_every_record_it_announced"]
fn victim() {
    let mut input = String::new();
    std::io::stdin()
        .read_line(&mut input)
        .expect("a line or nothing");
    let Some((number, dir)) = input.trim().split_once(' ') else {
        return;
    };
    let options = options(&PathBuf::from(dir));
    let number = number.parse().expect("a number");
    let (journal, _old) = Journal::open(&options, id(number), NOW_MS).expect("opens");
    let mut out = std::io::stdout().lock();
    let patience = Patience::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !patience.is_over() && journal.maintain(NOW_MS).is_ok() {
                thread::yield_now();
            }
        });
        // Ends by being killed; the bound is for a parent that died.
        while !patience.is_over() {
            let Some(reservation) = journal.reserve() else {
                continue;
            };
            let (seq, ()) = reservation.append(|slot| {
                let bytes = record_bytes(slot.seq);
                slot.buf[..bytes].copy_from_slice(&payload(slot.seq, bytes));
                (bytes, ())
            });
            if writeln!(out, "seq {seq}").is_err() {
                break;
            }
        }
        std::process::abort();
    });
}

/// Starts a victim, kills it after so many announcements, returns how many records it announced.
fn kill_after(dir: &std::path::Path, number: u128, announcements: usize) -> u64 {
    let mut child = Command::new(env::current_exe().expect("this test"))
        .args([
            "--exact",
            "journal::tests::kill::victim",
            "--ignored",
            "--nocapture",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let mut stdin = child.stdin.take().expect("piped");
    writeln!(stdin, "{number} {}", dir.display()).expect("written");
    let mut lines = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    let mut announced = 0;
    for _ in 0..announcements {
        line.clear();
        assert!(
            lines.read_line(&mut line).expect("readable") > 0,
            "died early"
        );
        // The first announcement follows the test runner's text on the same line.
        if let Some((_, seq)) = line.rsplit_once("seq ") {
            announced = seq.trim().parse::<u64>().expect("a number") + 1;
        }
    }
    child.kill().expect("killed");
    child.wait().expect("dead");
    // What it said before it died counts as well; a last line may be cut short.
    let mut rest = String::new();
    lines.read_to_string(&mut rest).expect("readable");
    for line in rest
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
    {
        if let Some((_, seq)) = line.rsplit_once("seq ") {
            announced = seq.trim().parse::<u64>().expect("a number") + 1;
        }
    }
    announced
}

#[test]
fn a_killed_process_leaves_every_record_it_announced() {
    let dir = tempfile::tempdir().expect("a place");
    let mut announced = Vec::new();
    for round in 1..=ROUNDS {
        let announcements = 20 + usize::try_from(round * 977 % 3000).expect("small");
        announced.push(kill_after(dir.path(), round, announcements));
    }
    let options = options(dir.path());
    let (_journal, old) = Journal::open(&options, id(ROUNDS + 1), NOW_MS).expect("recovers");
    assert_eq!(old.len(), announced.len());
    for (old, announced) in old.iter().zip(announced) {
        assert!(announced > 0 && old.damage.is_empty() && old.torn_seq.is_none());
        let records = read(&old.journal, 0);
        assert!(
            records.len() as u64 >= announced,
            "{} of {announced}",
            records.len()
        );
        assert_eq!(records.len() as u64, old.journal.next_seq());
        for (index, (seq, record)) in records.into_iter().enumerate() {
            assert_eq!(seq, index as u64);
            assert_eq!(record, payload(seq, record_bytes(seq)));
        }
    }
}
