//! The root directory: its lock, its journals, the bytes they take.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use uuid::Uuid;

use super::segment::wide;
use super::{Disk, Error, Result};

const LOCK: &str = "LOCK";
const JOURNAL_PREFIX: &str = "jrn_";
/// The directory of the next journal, made while there is room for one.
const PREPARED: &str = "prepared";
/// Longest text of a process id we care to read.
const PID_BYTES_MAX: u64 = 16;

/// A locked root directory. The lock ends with the process, however it ends.
pub(super) struct Root {
    pub(super) dir: PathBuf,
    pub(super) disk: Arc<dyn Disk>,
    bytes: AtomicU64,
    /// `dir`, to sync it.
    pub(super) directory: File,
    /// Holds the lock while open.
    _lock: File,
}

impl Root {
    pub(super) fn lock(disk: Arc<dyn Disk>, dir: &Path) -> Result<Arc<Self>> {
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        Self::lock_existing(disk, dir)
    }

    /// [`Root::lock`] of a directory that must be there.
    pub(super) fn lock_existing(disk: Arc<dyn Disk>, dir: &Path) -> Result<Arc<Self>> {
        let path = dir.join(LOCK);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut lock = options.open(&path).map_err(Error::io("open", &path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(Error::Locked {
                    dir: dir.to_path_buf(),
                    holder: holder(&lock),
                });
            }
            Err(error) => return Err(Error::io("lock", &path)(error.into())),
        }
        match write_holder(&mut lock) {
            // Only people read it; recovery may be what makes room.
            Err(error) if error.kind() == ErrorKind::StorageFull => {}
            written => written.map_err(Error::io("write", &path))?,
        }
        let bytes = AtomicU64::new(0);
        let directory = File::open(dir).map_err(Error::io("open", dir))?;
        Ok(Arc::new(Self {
            dir: dir.to_path_buf(),
            disk,
            bytes,
            directory,
            _lock: lock,
        }))
    }

    /// Makes the directory of a new journal, and opens it to be synced.
    pub(super) fn create_journal(&self, id: Uuid) -> Result<(PathBuf, File)> {
        let dir = self.dir.join(format!("{JOURNAL_PREFIX}{}", id.simple()));
        if dir.exists() {
            return Err(Error::Exists(id));
        }
        // A full disk may have no room for a directory; an earlier life has made this one. It is
        // opened before it is used up: one that cannot be is there for the next life.
        let prepared = self.dir.join(PREPARED);
        match fs::create_dir(&prepared) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            made => made.map_err(Error::io("create", &prepared))?,
        }
        let directory = File::open(&prepared).map_err(Error::io("open", &prepared))?;
        fs::rename(&prepared, &dir).map_err(Error::io("create", &dir))?;
        // Without one, the next life has to find room itself.
        drop(fs::create_dir(&prepared));
        self.disk
            .sync_directory(&self.dir, &self.directory)
            .map_err(Error::io("sync", &self.dir))?;
        Ok((dir, directory))
    }

    /// The journals found, oldest first, as version 7 ids sort by time.
    pub(super) fn journals(&self) -> Result<Vec<(Uuid, PathBuf)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(Error::io("list", &self.dir))? {
            let path = entry.map_err(Error::io("list", &self.dir))?.path();
            if let Some(id) = journal_id(&path) {
                found.push((id, path));
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn count(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn uncount(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The id in a journal directory's name, if it is one in the canonical spelling.
fn journal_id(path: &Path) -> Option<Uuid> {
    let digits = path.file_name()?.to_str()?.strip_prefix(JOURNAL_PREFIX)?;
    let id = Uuid::try_parse(digits).ok()?;
    (id.simple().to_string() == digits).then_some(id)
}

fn holder(mut lock: &File) -> Option<u32> {
    let mut text = String::new();
    Read::by_ref(&mut lock)
        .take(PID_BYTES_MAX)
        .read_to_string(&mut text)
        .ok()?;
    text.trim().parse().ok()
}

fn write_holder(lock: &mut File) -> std::io::Result<()> {
    // In place, which needs no room: what is longer of the holder before is cut off.
    let text = std::process::id().to_string();
    lock.rewind()?;
    lock.write_all(text.as_bytes())?;
    lock.set_len(wide(text.len()))
}
