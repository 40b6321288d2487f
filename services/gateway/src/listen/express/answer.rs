//! Answers of the common shape.

use httparse::{EMPTY_HEADER, Status};

use super::{
    super::framing::read_length,
    head::{Field, Fields, Room, is_named, text_bytes},
};
use crate::units;

/// Fields of an answer that are looked at to see whether it has come whole.
const FIELDS_MAX: usize = 64;

/// The head of an answer.
pub(super) struct Answer<'a> {
    pub(super) status: u16,
    pub(super) fields: Fields<'a>,
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
    pub(super) fn parse(read: &'a [u8], room: &'a mut Room) -> Result<Self, Uncommon> {
        Self::common(read, room).ok_or_else(|| Uncommon::of(read))
    }

    /// None: it has not come whole, or has another shape.
    fn common(read: &'a [u8], room: &'a mut Room) -> Option<Self> {
        let (code, reason) = read.strip_prefix(b"HTTP/1.1 ")?.split_first_chunk::<3>()?;
        let status = str::from_utf8(code).ok()?.parse().ok()?;
        if !is_last(status) || !matches!(reason.first()?, b' ' | b'\r') {
            return None;
        }
        let behind = reason.get(text_bytes(reason, false)..)?;
        let behind = behind.strip_prefix(b"\r\n")?;
        let (mut length, mut has_date) = (None, false);
        let note = |Field { name, value }: Field<'a>| {
            let is = |other: &str| is_named(name, other);
            let is_common = match name.len() {
                4 if is("date") => {
                    has_date = true;
                    true
                }
                7 if is("upgrade") => false,
                10 if is("connection") => value.eq_ignore_ascii_case(b"keep-alive"),
                // One length, which is a plain number.
                14 if is("content-length") => length.replace(read_length(value)?).is_none(),
                14 if is(units::USAGE) => false,
                17 if is("transfer-encoding") => false,
                _ => true,
            };
            is_common.then_some(())
        };
        let begin = read.len().wrapping_sub(behind.len());
        let (fields, bytes) = Fields::read((read, begin), room, false, note)?;
        Some(Self {
            status,
            fields,
            has_date,
            length: if has_body(status) { length? } else { 0 },
            bytes,
        })
    }
}

impl Uncommon {
    /// Of a head that is not common.
    fn of(read: &[u8]) -> Self {
        let mut fields = [EMPTY_HEADER; FIELDS_MAX];
        match httparse::Response::new(&mut fields).parse(read) {
            Ok(Status::Partial) => Self::Partial,
            Ok(Status::Complete(_)) | Err(_) => Self::Shape,
        }
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
