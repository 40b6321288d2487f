//! What the cell is made of. The interleaving tests compile the cell once more, with a scheduler's
//! atomics in this place.

pub(super) use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
