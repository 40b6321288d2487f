//! No descriptor is left: that is no failed sync, and it passes.

use std::env;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::io::dup;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{NOW_MS, append, id, options};
use crate::journal::{Journal, RECORD_BYTES_MAX};

/// Descriptors that a process may still open, where the limit is met in between.
const LEFT: u64 = 4;

/// Not a test of its own: the limit is the whole process's. Its directory comes by standard input;
/// without it there is nothing to do.
#[test]
#[ignore = "started by a_process_without_descriptors_goes_on_when_there_are_some_again"]
fn short_of_descriptors() {
    let mut input = String::new();
    std::io::stdin()
        .read_line(&mut input)
        .expect("a line or nothing");
    if input.trim().is_empty() {
        return;
    }
    let options = options(&PathBuf::from(input.trim()));
    let (journal, _old) = Journal::open(&options, id(1), NOW_MS).expect("opens");
    journal.maintain(NOW_MS).expect("room");
    let usual = getrlimit(Resource::Nofile);
    let mut refused = 0;
    for left in 0..LEFT {
        // Each operation meets the end of the descriptors at another place.
        limit(free_descriptor() + left, usual);
        for _ in 0..20 {
            if journal.stats().room_records == 0 {
                break;
            }
            append(&journal, RECORD_BYTES_MAX);
        }
        let outcomes = [
            journal.maintain(NOW_MS).map(drop),
            journal.trim(journal.next_seq()),
            journal.maintain(NOW_MS).map(drop),
        ];
        for error in outcomes.into_iter().filter_map(Result::err) {
            assert!(!error.is_final(), "{left} left: {error}");
            refused += 1;
        }
        assert!(!journal.is_failed(), "{left} left");
        assert!(setrlimit(Resource::Nofile, usual).is_ok());
        journal.maintain(NOW_MS).expect("there are some again");
        journal.trim(journal.next_seq()).expect("trimmed");
    }
    assert!(refused > 0, "the limit was never met");
    assert_eq!(journal.synced_seq(), journal.next_seq());
}

/// The number that the next file to be opened gets.
fn free_descriptor() -> u64 {
    use std::os::fd::AsRawFd as _;
    let next = dup(std::io::stdin()).expect("one is left");
    u64::try_from(next.as_raw_fd()).expect("a number")
}

fn limit(descriptors: u64, usual: Rlimit) {
    let short = Rlimit {
        current: Some(descriptors),
        maximum: usual.maximum,
    };
    assert!(setrlimit(Resource::Nofile, short).is_ok());
}

#[test]
fn a_process_without_descriptors_goes_on_when_there_are_some_again() {
    let dir = tempfile::tempdir().expect("a place");
    let mut child = Command::new(env::current_exe().expect("this test"))
        .args([
            "--exact",
            "journal::tests::descriptors::short_of_descriptors",
        ])
        .args(["--ignored", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut stdin = child.stdin.take().expect("piped");
    writeln!(stdin, "{}", dir.path().display()).expect("written");
    drop(stdin);
    let output = child.wait_with_output().expect("ended");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let ran = String::from_utf8_lossy(&output.stdout);
    assert!(ran.contains("1 passed"), "{ran}");
}
