//! What the journal's threads meet in. The interleaving tests compile the journal once more, with
//! a scheduler's in this place.

pub(super) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub(super) use parking_lot::{Mutex, RwLock};
