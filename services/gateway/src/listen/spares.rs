//! Buffers that a thread reads into, kept for another time.

use std::cell::RefCell;

use super::limits::{BODY_READ_BYTES, BODY_SPARES_MAX, READ_BYTES, SPARES_MAX};

/// Empty buffers of two sizes.
#[derive(Default)]
pub(super) struct Spares {
    /// For a head and a small body.
    short: RefCell<Vec<Vec<u8>>>,
    /// For what follows of a long body.
    long: RefCell<Vec<Vec<u8>>>,
}

impl Spares {
    /// An empty buffer for as many bytes as are expected, or a part of them.
    pub(super) fn take(&self, expected: u64) -> Vec<u8> {
        let (spares, bytes) = match usize::try_from(expected) {
            Ok(..=READ_BYTES) => (&self.short, READ_BYTES),
            _ => (&self.long, BODY_READ_BYTES),
        };
        let spare = spares.borrow_mut().pop();
        spare.unwrap_or_else(|| Vec::with_capacity(bytes))
    }

    /// Keeps a buffer, unless it has grown or there are enough.
    pub(super) fn keep(&self, mut buffer: Vec<u8>) {
        let (spares, most) = match buffer.capacity() {
            READ_BYTES => (&self.short, SPARES_MAX),
            BODY_READ_BYTES => (&self.long, BODY_SPARES_MAX),
            _ => return,
        };
        let mut spares = spares.borrow_mut();
        if spares.len() < most {
            buffer.clear();
            spares.push(buffer);
        }
    }
}
