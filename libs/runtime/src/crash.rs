//! Points at which a debug build can be made to die, so that tests can kill a process between any
//! two steps; and protections that it can be made to do without, so that tests can show that the
//! oracle objects. Release builds have neither.

/// Dies here with SIGKILL when `TOLLGATE_CRASH_AT` names this point (`point` or `point:n` for the
/// n-th passage), or a folder whose file for this process does. Names are
/// `<service>.<step just finished>`.
#[macro_export]
macro_rules! crash_point {
    ($name:literal) => {
        #[cfg(debug_assertions)]
        $crate::crash::passed($name);
    };
}

/// Fails here with `EIO`, once, when `TOLLGATE_CRASH_AT` names this point instead.
#[macro_export]
macro_rules! error_point {
    ($name:literal) => {
        #[cfg(debug_assertions)]
        $crate::crash::failing($name)?;
    };
}

/// Is this protection taken away? Only when `TOLLGATE_MUTANT` names it; in release builds never.
/// Names are `<service>.<what it then does>`.
#[macro_export]
macro_rules! mutant {
    ($name:literal) => {
        $crate::crash::is_mutant($name)
    };
}

/// Release builds keep all their protections.
#[cfg(not(debug_assertions))]
pub const fn is_mutant(_: &str) -> bool {
    false
}

/// The protection that this process does without.
#[cfg(not(debug_assertions))]
pub(crate) const fn mutant() -> Option<&'static str> {
    None
}

#[cfg(debug_assertions)]
mod armed {
    use std::{
        fs::File,
        io::{Read, Seek, Write},
        path::Path,
        sync::{
            OnceLock,
            atomic::{AtomicU64, Ordering},
        },
    };

    use anyhow::Context as _;

    static POINT: OnceLock<(String, AtomicU64)> = OnceLock::new();
    static MUTANT: OnceLock<String> = OnceLock::new();

    /// Takes a protection away, for the life of this process.
    pub(crate) fn mutate(name: &str) {
        MUTANT.get_or_init(|| name.to_owned());
        tracing::error!(mutant = name, "this process does without a protection");
    }

    /// Is this the one?
    pub fn is_mutant(name: &str) -> bool {
        mutant() == Some(name)
    }

    pub(crate) fn mutant() -> Option<&'static str> {
        MUTANT.get().map(String::as_str)
    }

    /// Arms a point, once per process: `spec` names it, or else the absolute path of a folder.
    /// There the file of the process, named after its services, has a point a line; each life
    /// takes one, and a life that finds none is not armed.
    pub(crate) fn arm(spec: &str, services: &[&str]) -> anyhow::Result<()> {
        let folder = Path::new(spec);
        let taken = if folder.is_absolute() {
            take_line(&folder.join(services.join(","))).context("TOLLGATE_CRASH_AT")?
        } else {
            Some(spec.to_owned())
        };
        if let Some(spec) = taken {
            let (name, passage) = spec.split_once(':').unwrap_or((&spec, "1"));
            let passage = passage.parse().unwrap_or(1);
            POINT.get_or_init(|| (name.to_owned(), AtomicU64::new(passage)));
            tracing::warn!(point = spec, "dies at this point");
        }
        Ok(())
    }

    /// Removes the first line of a file. Processes with one name share the file, so it is locked.
    fn take_line(path: &Path) -> std::io::Result<Option<String>> {
        let mut file = match File::options().read(true).write(true).open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        file.lock()?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let Some((first, rest)) = text.split_once('\n') else {
            return Ok(None);
        };
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(rest.as_bytes())?;
        Ok(Some(first.to_owned()))
    }

    /// Is this the passage of the point at which something is to happen?
    fn is_due(name: &str) -> bool {
        let Some((point, left)) = POINT.get() else {
            return false;
        };
        point == name && left.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Counts a passage; the counted-down one fails.
    ///
    /// # Errors
    /// `EIO`, as a disk says it.
    pub fn failing(name: &str) -> std::io::Result<()> {
        if is_due(name) {
            tracing::warn!(point = name, "failed at this point");
            return Err(rustix::io::Errno::IO.into());
        }
        Ok(())
    }

    /// Counts a passage; the counted-down one does not return.
    pub fn passed(name: &str) {
        if is_due(name) {
            tracing::warn!(point = name, "died at this point");
            let myself = rustix::process::getpid();
            // A failed kill would leave the test waiting for a death: it would say so.
            if rustix::process::kill_process(myself, rustix::process::Signal::KILL).is_ok() {
                std::thread::park();
            }
        }
    }
}

#[cfg(debug_assertions)]
pub use armed::{failing, is_mutant, passed};

#[cfg(debug_assertions)]
pub(crate) use armed::{arm, mutant, mutate};
