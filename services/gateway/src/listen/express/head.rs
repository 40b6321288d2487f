//! Heads as most are, read in one pass.
//!
//! What is read here has one reading only, for hyper and for
//! [`Framing`](super::super::framing::Framing) too: each line ends in CR LF, each name is a token
//! right before its colon, and no value has a control character. Whatever is otherwise is for them
//! to judge.

use super::super::framing::{is_unambiguous, without_blanks};

/// Fields of a head; more are for hyper.
const FIELDS_MAX: usize = 64;

/// What a byte may be part of.
const TARGET: u8 = 1;
const NAME: u8 = 2;
/// Of names too, but with these others may take one for another.
const ODD: u8 = 4;

const CLASSES: [u8; 256] = classes();

#[expect(
    clippy::indexing_slicing,
    reason = "of a table with a place for each byte"
)]
const fn classes() -> [u8; 256] {
    let mut classes = [0; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        let is_plain = byte.is_ascii_alphanumeric();
        let of_target = matches!(
            byte,
            b'/' | b'-'
                | b'.'
                | b'_'
                | b'~'
                | b'%'
                | b'='
                | b'&'
                | b','
                | b':'
                | b'@'
                | b'+'
                | b'!'
                | b'$'
                | b'('
                | b')'
                | b'*'
                | b'\''
        );
        let of_name = matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        );
        classes[byte as usize] = match (is_plain, of_target, of_name) {
            (true, ..) => TARGET | NAME,
            _ if byte == b'-' => TARGET | NAME,
            (_, true, true) => TARGET | ODD,
            (_, true, false) => TARGET,
            (_, false, true) => ODD,
            (_, false, false) => 0,
        };
        byte = byte.wrapping_add(1);
    }
    classes
}

fn class(byte: u8) -> u8 {
    CLASSES.get(usize::from(byte)).copied().unwrap_or(0)
}

/// How many bytes of a target there are at the beginning, as targets mostly are: hyper knows what
/// else may stand there. A `?` ends them.
pub(super) fn target_bytes(text: &[u8]) -> usize {
    let end = text.iter().position(|byte| class(*byte) & TARGET == 0);
    end.unwrap_or(text.len())
}

/// Whether a name is this one, which has small letters and hyphens only.
pub(super) fn is_named(name: &[u8], other: &str) -> bool {
    // Of what stands in names, nothing else becomes a letter or a hyphen so.
    let mut pairs = name.iter().zip(other.as_bytes());
    name.len() == other.len() && pairs.all(|(byte, wanted)| byte | 0x20 == *wanted)
}

/// A field as it came.
#[derive(Clone, Copy)]
pub(super) struct Field<'a> {
    pub(super) name: &'a [u8],
    /// Without blanks around it.
    pub(super) value: &'a [u8],
}

/// Where the name of a field ends, and its line without CR LF.
type Ends = (u16, u16);

/// Room for the fields of a head.
pub(super) type Room = [Ends; FIELDS_MAX];

pub(super) const NO_FIELDS: Room = [(0, 0); FIELDS_MAX];

/// The fields of a head.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    head: &'a [u8],
    /// Where the first one begins.
    begin: usize,
    ends: &'a [Ends],
}

impl<'a> Fields<'a> {
    /// Reads the fields that begin `at` some place, and notes each. Returns them with the place
    /// behind the head. None: it has not come whole, is of another shape, or one was not to be
    /// noted.
    pub(super) fn read(
        (head, begin): (&'a [u8], usize),
        room: &'a mut Room,
        is_ascii: bool,
        mut note: impl FnMut(Field<'a>) -> Option<()>,
    ) -> Option<(Self, usize)> {
        let (mut at, mut count) = (begin, 0_usize);
        loop {
            let left = head.get(at..)?;
            if left.starts_with(b"\r\n") {
                let ends = room.get(..count)?;
                return Some((Self { head, begin, ends }, at.wrapping_add(2)));
            }
            let (name, line) = field_bytes(left, is_ascii)?;
            note(field(left.get(..line)?, name)?)?;
            let place = |bytes| u16::try_from(at.wrapping_add(bytes)).ok();
            *room.get_mut(count)? = (place(name)?, place(line)?);
            count = count.wrapping_add(1);
            at = at.wrapping_add(line).wrapping_add(2);
        }
    }

    /// Each of them.
    pub(super) fn iter(self) -> impl DoubleEndedIterator<Item = Field<'a>> {
        (0..self.ends.len()).filter_map(move |at| {
            let begin = match at.checked_sub(1) {
                None => self.begin,
                Some(before) => usize::from(self.ends.get(before)?.1).wrapping_add(2),
            };
            let (name, line) = *self.ends.get(at)?;
            let line = self.head.get(begin..usize::from(line))?;
            field(line, usize::from(name).wrapping_sub(begin))
        })
    }
}

/// The field of a line, whose name has so many bytes.
fn field(line: &[u8], name: usize) -> Option<Field<'_>> {
    let (name, behind) = line.split_at_checked(name)?;
    let value = without_blanks(behind.get(1..)?);
    Some(Field { name, value })
}

/// Length of the name at the beginning, and of its line without CR LF.
fn field_bytes(text: &[u8], is_ascii: bool) -> Option<(usize, usize)> {
    let mut seen = 0;
    let end = text.iter().position(|byte| {
        let class = class(*byte);
        seen |= class;
        class & (NAME | ODD) == 0
    });
    let name = end.filter(|end| *end > 0)?;
    if text.get(name) != Some(&b':') {
        return None;
    }
    let mut line = name;
    loop {
        line = line.wrapping_add(text_bytes(text.get(line..)?, is_ascii));
        match text.get(line)? {
            b'\t' => line = line.wrapping_add(1),
            b'\r' if text.get(line.wrapping_add(1)) == Some(&b'\n') => break,
            _ => return None,
        }
    }
    (seen & ODD == 0 || is_unambiguous(text.get(..line)?)).then_some((name, line))
}

/// How many bytes of text there are at the beginning: up to the first control character, or the
/// first byte beyond ASCII where there must be none.
pub(super) fn text_bytes(text: &[u8], is_ascii: bool) -> usize {
    /// One in each byte of a word.
    const EACH: u64 = u64::MAX / 255;
    const HIGH: u64 = EACH * 0x80;
    let beyond = if is_ascii { HIGH } else { 0 };
    // Sets the high bit of the first byte that ends the text; those behind it do not matter.
    let ends = |word: u64| {
        let control = word.wrapping_sub(EACH.wrapping_mul(0x20)) & !word;
        let delete = word ^ EACH.wrapping_mul(0x7f);
        let delete = delete.wrapping_sub(EACH) & !delete;
        ((control | delete) & HIGH) | (word & beyond)
    };
    let (words, rest) = text.as_chunks::<8>();
    let mut bytes = 0_usize;
    for word in words {
        let ends = ends(u64::from_le_bytes(*word));
        if ends != 0 {
            let more = usize::try_from(ends.trailing_zeros() / 8).unwrap_or(0);
            return bytes.wrapping_add(more);
        }
        bytes = bytes.wrapping_add(8);
    }
    let is_text = |byte: &u8| !byte.is_ascii_control() && (byte.is_ascii() || !is_ascii);
    let more = rest.iter().position(|byte| !is_text(byte));
    bytes.wrapping_add(more.unwrap_or(rest.len()))
}

#[cfg(test)]
mod tests;
