//! Answers of the common shape.

use std::mem::MaybeUninit;

use httparse::{Header, ParserConfig, Status};

use super::super::framing::read_length;
use crate::units;

/// Fields of an answer; more are for hyper.
const FIELDS_MAX: usize = 64;

/// Room for the fields, which nobody fills in vain.
pub(super) type Room<'a> = [MaybeUninit<Header<'a>>; FIELDS_MAX];

pub(super) const fn no_fields<'a>() -> Room<'a> {
    [const { MaybeUninit::uninit() }; FIELDS_MAX]
}

/// The head of an answer.
pub(super) struct Answer<'a> {
    pub(super) status: u16,
    pub(super) fields: &'a [Header<'a>],
    pub(super) has_date: bool,
    /// Of the body.
    pub(super) length: u64,
    /// Of the head.
    pub(super) bytes: usize,
}

/// Why a head is for hyper.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Uncommon {
    /// It has not come whole.
    Partial,
    /// It has another shape.
    Shape,
}

impl<'a> Answer<'a> {
    /// Reads the head of an answer.
    pub(super) fn parse(read: &'a [u8], fields: &'a mut Room<'a>) -> Result<Self, Uncommon> {
        let mut answer = httparse::Response::new(&mut []);
        let config = ParserConfig::default();
        match config.parse_response_with_uninit_headers(&mut answer, read, fields) {
            Ok(Status::Complete(bytes)) => Self::of(answer, bytes).ok_or(Uncommon::Shape),
            Ok(Status::Partial) => Err(Uncommon::Partial),
            Err(_) => Err(Uncommon::Shape),
        }
    }

    /// None: it has another shape.
    fn of(answer: httparse::Response<'a, 'a>, bytes: usize) -> Option<Self> {
        let status = answer.code.filter(|code| is_last(*code))?;
        if answer.version != Some(1) {
            return None;
        }
        let fields: &[Header<'_>] = answer.headers;
        let (mut length, mut has_date) = (None, false);
        for Header { name, value } in fields {
            let is = |other: &str| name.eq_ignore_ascii_case(other);
            match name.len() {
                4 if is("date") => has_date = true,
                7 if is("upgrade") => return None,
                10 if is("connection") && !value.eq_ignore_ascii_case(b"keep-alive") => {
                    return None;
                }
                // More than one length, or one that is no plain number.
                14 if is("content-length") && length.replace(read_length(value)?).is_some() => {
                    return None;
                }
                14 if is(units::USAGE) => return None,
                17 if is("transfer-encoding") => return None,
                _ => {}
            }
        }
        Some(Self {
            status,
            fields,
            has_date,
            length: if has_body(status) { length? } else { 0 },
            bytes,
        })
    }
}

/// Whether an answer of a status is the last one to its request.
const fn is_last(status: u16) -> bool {
    matches!(status, 200..=599) && status != 205
}

/// Whether it has a body, whatever its fields say.
pub(super) const fn has_body(status: u16) -> bool {
    !matches!(status, 100..=199 | 204 | 304)
}
