//! The only unsafe code of the gateway: a shared memory mapping seen as a slice of atomic words.
//!
//! Everything above works on atomics: whatever another thread does at the same time, there is no
//! data race, only a value that a checksum has to judge.
#![expect(
    unsafe_code,
    reason = "turns a mapping into a slice of atomics; nothing else here"
)]

use std::fs::File;
use std::io;
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};

/// Bytes of one word; every offset is a multiple of it.
pub(super) const WORD_BYTES: usize = 8;

/// A file mapped shared, as 64-bit words in memory order.
pub(super) struct Map {
    /// `None` for a file shorter than a word, which cannot be mapped.
    raw: Option<MmapRaw>,
    is_writable: bool,
}

impl Map {
    /// Maps the whole file for reading and writing.
    pub(super) fn writable(file: &File) -> io::Result<Self> {
        let raw = options(file)?
            .map(|options| options.map_raw(file))
            .transpose()?;
        Ok(Self {
            raw,
            is_writable: true,
        })
    }

    /// Maps the whole file for reading.
    pub(super) fn read_only(file: &File) -> io::Result<Self> {
        let raw = options(file)?
            .map(|options| options.map_raw_read_only(file))
            .transpose()?;
        Ok(Self {
            raw,
            is_writable: false,
        })
    }

    /// The mapping as words; a last, incomplete word of an odd-sized file is left out.
    fn words(&self) -> &[AtomicU64] {
        let Some(raw) = &self.raw else { return &[] };
        // SAFETY: the pointer is page-aligned, so it is aligned for AtomicU64, and valid for
        // `raw.len()` bytes as long as `raw`, which the returned borrow keeps alive. Any bit
        // pattern is a u64. All access in this process is atomic, as this is the only place that
        // hands the memory out; other processes are kept from writing by the directory lock.
        unsafe { slice::from_raw_parts(raw.as_ptr().cast::<AtomicU64>(), raw.len() / WORD_BYTES) }
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(
            offset.is_multiple_of(WORD_BYTES),
            "offset {offset} is not aligned"
        );
        self.words()
            .get(offset / WORD_BYTES)
            .expect("callers stay inside the mapping")
    }

    /// Mapped length in whole words, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.words().len().saturating_mul(WORD_BYTES)
    }

    /// Reads a commit word: what was written before it is visible afterwards.
    pub(super) fn load(&self, offset: usize) -> u64 {
        u64::from_le(self.word(offset).load(Ordering::Acquire))
    }

    /// Writes a commit word: what was written before it is visible to who reads it.
    pub(super) fn store(&self, offset: usize, value: u64) {
        assert!(self.is_writable, "the mapping is read-only");
        self.word(offset).store(value.to_le(), Ordering::Release);
    }

    /// Copies bytes out, from `offset` on.
    pub(super) fn read(&self, offset: usize, into: &mut [u8]) {
        let words = self.span(offset, into.len());
        for (word, chunk) in words.iter().zip(into.chunks_mut(WORD_BYTES)) {
            let bytes = word.load(Ordering::Relaxed).to_ne_bytes();
            for (to, from) in chunk.iter_mut().zip(bytes) {
                *to = from;
            }
        }
    }

    /// Copies bytes in, from `offset` on; `from` is a whole number of words.
    pub(super) fn write(&self, offset: usize, from: &[u8]) {
        assert!(self.is_writable, "the mapping is read-only");
        let (chunks, rest) = from.as_chunks::<WORD_BYTES>();
        assert!(rest.is_empty(), "whole words only");
        for (word, chunk) in self.span(offset, from.len()).iter().zip(chunks) {
            word.store(u64::from_ne_bytes(*chunk), Ordering::Relaxed);
        }
    }

    fn span(&self, offset: usize, bytes: usize) -> &[AtomicU64] {
        assert!(
            offset.is_multiple_of(WORD_BYTES),
            "offset {offset} is not aligned"
        );
        let words = self.words().get(offset / WORD_BYTES..).unwrap_or_default();
        words
            .get(..bytes.div_ceil(WORD_BYTES))
            .expect("callers stay inside the mapping")
    }
}

/// How to map the whole file; `None` if it is too short.
fn options(file: &File) -> io::Result<Option<MmapOptions>> {
    let bytes = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let mut options = MmapOptions::new();
    options.len(bytes);
    Ok((bytes >= WORD_BYTES).then_some(options))
}
