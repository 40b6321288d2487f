//! Time and ids as values that are handed in.

use std::{
    marker::PhantomData,
    time::{Instant, SystemTime},
};

use jiff::Timestamp;
use types::{Id, Kind};
use uuid::{
    Uuid,
    timestamp::context::{ContextV7, ThreadLocalContext},
};

/// The clock of a process. Everything that decides takes the time from here.
#[derive(Clone, Debug)]
pub struct Clock {
    start: Instant,
    #[cfg(debug_assertions)]
    step: step::Step,
}

impl Clock {
    /// The system's clock.
    #[must_use]
    pub fn system() -> Self {
        Self {
            start: Instant::now(),
            #[cfg(debug_assertions)]
            step: step::Step::default(),
        }
    }

    /// A clock whose wall time is off by what a file says, read again all the time: a test's way
    /// to let time jump. `path` is the file, or a folder with one named after the services.
    ///
    /// # Errors
    /// The thread that reads it cannot be started.
    #[cfg(debug_assertions)]
    pub(crate) fn stepped(path: &str, services: &[&str]) -> std::io::Result<Self> {
        let step = step::Step::follow(path, services)?;
        Ok(Self {
            step,
            ..Self::system()
        })
    }

    /// Wall-clock time.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that asks the system"
    )]
    pub fn now(&self) -> Timestamp {
        let now = Timestamp::now();
        #[cfg(debug_assertions)]
        let now = self.step.apply(now);
        now
    }

    /// Wall-clock time for the trace interface.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that asks the system"
    )]
    pub fn system_time(&self) -> SystemTime {
        SystemTime::now()
    }

    /// Nanoseconds since the process began; never goes back.
    #[must_use]
    pub fn monotonic_nanos(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Time that jumps, for tests. Release builds have none of it.
#[cfg(debug_assertions)]
mod step {
    use std::{
        path::Path,
        sync::{
            Arc,
            atomic::{AtomicI64, Ordering},
        },
        time::Duration,
    };

    use jiff::{SignedDuration, Timestamp};

    /// Between two looks at the file.
    const LOOK_PERIOD: Duration = Duration::from_millis(10);

    /// By how many milliseconds a clock is off.
    #[derive(Clone, Debug, Default)]
    pub(super) struct Step(Arc<AtomicI64>);

    impl Step {
        #[expect(
            clippy::disallowed_methods,
            reason = "a thread of a debug build that lives as long as the process"
        )]
        pub(super) fn follow(path: &str, services: &[&str]) -> std::io::Result<Self> {
            let path = match Path::new(path) {
                folder if folder.is_dir() => folder.join(services.join(",")),
                file => file.to_owned(),
            };
            let step = Self::default();
            let own = step.clone();
            own.read(&path);
            let thread = std::thread::Builder::new().name("clock-step".to_owned());
            thread.spawn(move || {
                while Arc::strong_count(&own.0) > 1 {
                    own.read(&path);
                    std::thread::sleep(LOOK_PERIOD);
                }
            })?;
            Ok(step)
        }

        /// No file, or half a one: the clock stays as it is.
        fn read(&self, path: &Path) {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            if let Ok(millis) = text.trim().parse() {
                self.0.store(millis, Ordering::Relaxed);
            }
        }

        pub(super) fn apply(&self, now: Timestamp) -> Timestamp {
            let step = SignedDuration::from_millis(self.0.load(Ordering::Relaxed));
            now.saturating_add(step).unwrap_or(now)
        }
    }
}

thread_local! {
    /// Each thread counts for itself: a lock that all share would be taken for every call.
    static CONTEXT: ContextV7 = const { ContextV7::new() };
}

/// Makes new ids, on each thread in their order.
#[derive(Clone, Debug, Default)]
pub struct Ids(PhantomData<()>);

impl Ids {
    /// A new UUIDv7 of a kind.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that makes ids")]
    pub fn new_id<K: Kind>(&self) -> Id<K> {
        let context = ThreadLocalContext::new(&CONTEXT);
        Id::new(Uuid::new_v7(uuid::Timestamp::now(context)))
    }

    /// The same for who knows what the time is.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that makes ids")]
    pub fn new_id_at<K: Kind>(&self, at: Timestamp) -> Id<K> {
        let context = ThreadLocalContext::new(&CONTEXT);
        let seconds = u64::try_from(at.as_second()).unwrap_or(0);
        let nanos = u32::try_from(at.subsec_nanosecond()).unwrap_or(0);
        let at = uuid::Timestamp::from_unix(context, seconds, nanos);
        Id::new(Uuid::new_v7(at))
    }
}
