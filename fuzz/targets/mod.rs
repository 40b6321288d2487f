//! What is fuzzed: functions of bytes that must not panic. `it::fuzz` runs them over the corpus,
//! `make fuzz` over whatever reaches new code.

mod batch;
mod journal;
mod text;

/// A function of bytes.
pub(crate) type Target = fn(&[u8]);

/// The targets by the names of their corpora.
pub(crate) const TARGETS: [(&str, Target); 5] = [
    ("journal", journal::recover),
    ("batch", batch::settle),
    ("key", text::key),
    ("path", text::path),
    ("units", text::units),
];

/// Takes small values off the input; zeros when it is used up.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn short(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn take(&mut self, bytes: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(bytes.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
