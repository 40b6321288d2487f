//! The reader beside hyper, beside another parser: `httparse`, which hyper reads heads with, and
//! which reads a body in chunks here too.
//!
//! Of the bytes that the one lets pass, both see the same requests. Only what names, values,
//! methods and targets are made of is left to hyper: there it may refuse, but not read on.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "a test that is wrong about its own data may panic"
)]

mod faults;

use std::cell::Cell;

use httparse::{EMPTY_HEADER, Header, Request, Status};
use proptest::{
    prelude::*,
    test_runner::{RngSeed, TestCaseResult, TestRunner},
};

use self::faults::stream;
use super::super::{Framing, Head};
use crate::listen::limits::FIELDS_MAX;

const CASES: u32 = 4_096;

/// A request as one of the two reads it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Read {
    method: String,
    target: String,
    is_http10: bool,
    hosts: usize,
    /// As they stand there.
    lengths: Vec<String>,
    /// In lower case.
    codings: Vec<String>,
    /// Where its head ends, and all of it; None: not in these bytes.
    head: usize,
    end: Option<usize>,
}

/// What `Framing` reads, byte by byte. Returns how many of them it lets pass, too.
fn by_framing(bytes: &[u8]) -> (Vec<Read>, usize) {
    let mut framing = Framing::new();
    let (mut reads, mut begin) = (Vec::<Read>::new(), 0);
    for (at, byte) in bytes.iter().enumerate() {
        // It is forgotten with its request, which may end here.
        let head = framing.head;
        if framing.pass(&[*byte]).is_err() {
            return (reads, at);
        }
        if framing.heads() > u64::try_from(reads.len()).expect("few") {
            reads.push(read(&bytes[begin..=at], head, at + 1));
        }
        let is_between = !framing.is_in_head() && !framing.is_in_body();
        if let Some(last) = reads.last_mut().filter(|it| it.end.is_none() && is_between) {
            last.end = Some(at + 1);
            begin = at + 1;
        }
    }
    (reads, bytes.len())
}

/// The request line is read as by who looks for the first space and the last one.
fn read(bytes: &[u8], head: Head, end: usize) -> Read {
    let text = String::from_utf8_lossy(bytes);
    let line = text.trim_start_matches("\r\n").lines().next();
    let (method, behind) = line.and_then(|it| it.split_once(' ')).expect("a space");
    let target = behind.rsplit_once(' ').map_or(behind, |(target, _)| target);
    Read {
        method: method.to_owned(),
        target: target.to_owned(),
        is_http10: head.is_http10,
        hosts: usize::from(head.has_host),
        lengths: head.length.iter().map(ToString::to_string).collect(),
        codings: vec!["chunked".to_owned(); usize::from(head.is_chunked)],
        head: end,
        end: None,
    }
}

/// What `httparse` reads, and where it refuses to read on.
fn by_httparse(bytes: &[u8]) -> (Vec<Read>, Option<usize>) {
    let (mut reads, mut begin) = (Vec::new(), 0);
    loop {
        let mut fields = [EMPTY_HEADER; FIELDS_MAX];
        let mut request = Request::new(&mut fields);
        let head = match request.parse(&bytes[begin..]) {
            Ok(Status::Complete(head)) => begin + head,
            Ok(Status::Partial) => return (reads, None),
            Err(_) => return (reads, Some(begin)),
        };
        let all = |name: &str| -> Vec<String> {
            let named = |field: &&Header<'_>| field.name.eq_ignore_ascii_case(name);
            let named = request.headers.iter().filter(named);
            let text = |field: &Header<'_>| String::from_utf8_lossy(field.value).into_owned();
            named.map(text).collect()
        };
        let lengths = all("content-length");
        let codings = all("transfer-encoding").into_iter();
        let codings: Vec<_> = codings.map(|it| it.to_ascii_lowercase()).collect();
        // As hyper takes them, which asks for less than we do.
        let is_chunked = codings.last().is_some_and(|it| it.ends_with("chunked"));
        let length = lengths.first().and_then(|it| it.parse().ok());
        let end = match is_chunked {
            true => chunks_end(bytes, head),
            false => Ok(behind(bytes, head, length.unwrap_or(0))),
        };
        reads.push(Read {
            method: request.method.unwrap_or_default().to_owned(),
            target: request.path.unwrap_or_default().to_owned(),
            is_http10: request.version == Some(0),
            hosts: all("host").len(),
            lengths,
            codings,
            head,
            end: end.unwrap_or(None),
        });
        match end {
            Ok(Some(end)) => begin = end,
            Ok(None) => return (reads, None),
            Err(refused) => return (reads, Some(refused)),
        }
    }
}

/// So many bytes further, if they are there.
fn behind(bytes: &[u8], at: usize, length: u64) -> Option<usize> {
    let end = at.checked_add(usize::try_from(length).ok()?)?;
    (end <= bytes.len()).then_some(end)
}

/// Where a body in chunks ends. `Err`: where it is none.
fn chunks_end(bytes: &[u8], mut at: usize) -> Result<Option<usize>, usize> {
    loop {
        let (line, size) = match httparse::parse_chunk_size(&bytes[at..]) {
            Ok(Status::Complete(read)) => read,
            Ok(Status::Partial) => return Ok(None),
            Err(_) => return Err(at),
        };
        at += line;
        if size == 0 {
            let mut fields = [EMPTY_HEADER; FIELDS_MAX];
            return match httparse::parse_headers(&bytes[at..], &mut fields) {
                Ok(Status::Complete((trailers, _))) => Ok(Some(at + trailers)),
                Ok(Status::Partial) => Ok(None),
                Err(_) => Err(at),
            };
        }
        let Some(end) = behind(bytes, at, size) else {
            return Ok(None);
        };
        at = match bytes.get(end..end + 2) {
            Some(b"\r\n") => end + 2,
            Some(_) => return Err(end),
            None => return Ok(None),
        };
    }
}

/// Whether lines are made of what RFC 9110 has for them: then nobody may refuse them. The first one
/// is a request line, or all are fields.
fn is_plain(bytes: &[u8], is_head: bool) -> bool {
    let is_token = |text: &str| {
        let is_of_token =
            |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        !text.is_empty() && text.bytes().all(is_of_token)
    };
    let is_value = |text: &str| text.bytes().all(|it| it == b'\t' || !it.is_ascii_control());
    let is_field = |line: &str| {
        let field = line.split_once(':');
        field.is_some_and(|(name, value)| is_token(name) && is_value(value))
    };
    let is_target = |text: &str| !text.is_empty() && text.bytes().all(|it| it.is_ascii_graphic());
    let is_request = |line: &str| match line.split(' ').collect::<Vec<_>>()[..] {
        [method, target, "HTTP/1.0" | "HTTP/1.1"] => is_token(method) && is_target(target),
        _ => false,
    };
    let Ok(text) = str::from_utf8(bytes) else {
        return false;
    };
    let mut lines = text.split("\r\n").filter(|line| !line.is_empty());
    (!is_head || lines.next().is_some_and(is_request)) && lines.all(is_field)
}

/// Whether a line says where a request ends or whom it is for, or could be taken to: that is not
/// left to others.
fn is_framing(line: &str) -> bool {
    let names = ["content-length", "transfer-encoding", "host"];
    let is_this = |name: &str| {
        let Some((given, behind)) = line.split_at_checked(name.len()) else {
            return false;
        };
        let mut pairs = given.bytes().zip(name.bytes());
        let is_like = pairs.all(|(given, wanted)| match wanted {
            b'-' => !given.is_ascii_alphanumeric(),
            _ => given.eq_ignore_ascii_case(&wanted),
        });
        let goes_on = |next: u8| next.is_ascii_alphanumeric() || b"-_".contains(&next);
        is_like && !behind.bytes().next().is_some_and(goes_on)
    };
    line.starts_with([' ', '\t']) || names.into_iter().any(is_this)
}

/// Whether hyper may refuse these lines by itself.
fn is_hypers(bytes: &[u8], is_head: bool) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.split("\r\n").filter(|line| !line.is_empty());
    let mut fields = lines.skip(usize::from(is_head));
    let is_ours = |line: &str| is_framing(line) && !is_plain(line.as_bytes(), false);
    !is_plain(bytes, is_head) && !fields.any(is_ours)
}

/// What came of the cases so far: a test whose cases are all refused says nothing.
#[derive(Default)]
struct Tally {
    /// Requests that both have read to their end: all, those with a body, those in chunks.
    same: Cell<u32>,
    full: Cell<u32>,
    chunked: Cell<u32>,
    /// Cases that the one refuses, and of the others those that the other one does.
    refused: Cell<u32>,
    left: Cell<u32>,
}

fn compare(bytes: &[u8], tally: &Tally) -> TestCaseResult {
    let add = |count: &Cell<u32>, is_one: bool| count.set(count.get() + u32::from(is_one));
    let (ours, passed) = by_framing(bytes);
    add(&tally.refused, passed < bytes.len());
    let (theirs, refused) = by_httparse(&bytes[..passed]);
    for (number, our) in ours.iter().enumerate() {
        let their = theirs.get(number);
        if their == Some(our) {
            add(&tally.same, our.end.is_some());
            add(&tally.full, our.end > Some(our.head) && number == 0);
            add(&tally.chunked, our.end.is_some() && !our.codings.is_empty());
            continue;
        }
        // It reads what we do, or says that it does not: it neither waits nor reads on.
        let is_cut = their.is_none_or(|their| {
            let end = our.end;
            their.end.is_none()
                && *our
                    == Read {
                        end,
                        ..their.clone()
                    }
        });
        prop_assert!(is_cut, "{our:?}, not {their:?}");
        prop_assert!(refused.is_some(), "{our:?}, and it waits: {their:?}");
        let from = refused.unwrap_or_default();
        let to = if their.is_some() {
            our.end
        } else {
            Some(our.head)
        };
        let lines = &bytes[from..to.unwrap_or(passed)];
        prop_assert!(
            is_hypers(lines, their.is_none()),
            "{our:?} is refused at {from}: {their:?}"
        );
        add(&tally.left, true);
        return Ok(());
    }
    prop_assert_eq!(
        ours.len(),
        theirs.len(),
        "it reads requests in {:?}",
        theirs
    );
    Ok(())
}

/// `PROPTEST_RNG_SEED` tries the same cases again.
#[test]
fn another_parser_sees_the_same_requests() {
    let config = ProptestConfig {
        failure_persistence: None, // the seed says all
        ..ProptestConfig::with_cases(CASES)
    };
    let seed = match config.rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => TestRunner::default().rng().next_u64(),
    };
    println!("seed {seed}");
    let config = ProptestConfig {
        rng_seed: RngSeed::Fixed(seed),
        ..config
    };
    let tally = Tally::default();
    let compared = TestRunner::new(config).run(&stream(), |sent| compare(&sent.0, &tally));
    if let Err(wrong) = compared {
        panic!("seed {seed}: {wrong}");
    }
    let [same, full, chunked, refused, left] = [
        &tally.same,
        &tally.full,
        &tally.chunked,
        &tally.refused,
        &tally.left,
    ]
    .map(Cell::get);
    println!("alike: {same} requests, {full} with a body, {chunked} in chunks");
    println!("of {CASES} cases: {refused} refused, {left} by hyper only");
    assert!(same >= CASES / 2 && full >= CASES / 10 && chunked >= CASES / 20);
    assert!(refused >= CASES / 8 && left >= CASES / 50);
}
