//! Points at which a debug build can be made to die, so that tests can kill a process between any
//! two steps. Release builds have none.

/// Dies here with SIGKILL when `TOLLGATE_CRASH_AT` names this point (`point` or `point:n` for the
/// n-th passage). Names are `<service>.<step just finished>`.
#[macro_export]
macro_rules! crash_point {
    ($name:literal) => {
        #[cfg(debug_assertions)]
        $crate::crash::passed($name);
    };
}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    };

    static POINT: OnceLock<(String, AtomicU64)> = OnceLock::new();

    /// Arms a point, once per process.
    pub(crate) fn arm(spec: &str) {
        let (name, passage) = spec.split_once(':').unwrap_or((spec, "1"));
        let passage = passage.parse().unwrap_or(1);
        POINT.get_or_init(|| (name.to_owned(), AtomicU64::new(passage)));
    }

    /// Counts a passage; the counted-down one does not return.
    pub fn passed(name: &str) {
        let Some((point, left)) = POINT.get() else {
            return;
        };
        if point == name && left.fetch_sub(1, Ordering::AcqRel) == 1 {
            let myself = rustix::process::getpid();
            // A failed kill would leave the test waiting for a death: it would say so.
            if rustix::process::kill_process(myself, rustix::process::Signal::KILL).is_ok() {
                std::thread::park();
            }
        }
    }
}

#[cfg(debug_assertions)]
pub use armed::passed;

#[cfg(debug_assertions)]
pub(crate) use armed::arm;
