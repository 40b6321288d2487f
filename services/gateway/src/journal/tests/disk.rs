//! A disk that fails on command, remembers what was synced, and can lose the rest.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::journal::{Disk, SystemDisk};

const SECTOR_BYTES: usize = 512;

#[derive(Default)]
pub(crate) struct TestDisk {
    pub(super) is_full: AtomicBool,
    pub(super) fails_sync: AtomicBool,
    pub(crate) fails_unlink: AtomicBool,
    pub(super) syncs: AtomicU64,
    /// Keeps what was synced, for [`TestDisk::lose_power`].
    pub(crate) remembers: AtomicBool,
    durable: Mutex<HashMap<PathBuf, Vec<u8>>>,
    /// Operations that change names, in order.
    pub(super) log: Mutex<Vec<String>>,
}

impl TestDisk {
    fn note(&self, what: &str, path: &Path) {
        let name = path
            .file_name()
            .expect("a file")
            .to_string_lossy()
            .into_owned();
        self.log.lock().push(format!("{what} {name}"));
    }

    fn sync_result(&self) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::SeqCst);
        if self.fails_sync.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(5)); // EIO
        }
        Ok(())
    }

    /// Of what was not synced, each sector survives if `survives` says so.
    pub(crate) fn lose_power(&self, mut survives: impl FnMut() -> bool) {
        for (path, durable) in self.durable.lock().iter() {
            let mut bytes = fs::read(path).expect("synced files exist");
            for (sector, old) in bytes
                .chunks_mut(SECTOR_BYTES)
                .zip(durable.chunks(SECTOR_BYTES))
            {
                if !survives() {
                    sector.copy_from_slice(old);
                }
            }
            fs::write(path, bytes).expect("writable");
        }
    }
}

impl Disk for TestDisk {
    fn create(&self, path: &Path, bytes: u64) -> io::Result<File> {
        if self.is_full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        SystemDisk.create(path, bytes)
    }

    fn reopen(&self, path: &Path) -> io::Result<File> {
        SystemDisk.reopen(path)
    }

    fn sync(&self, path: &Path, _file: &File) -> io::Result<()> {
        if self.remembers.load(Ordering::SeqCst) {
            self.durable
                .lock()
                .insert(path.to_path_buf(), fs::read(path)?);
        }
        self.sync_result()
    }

    fn sync_directory(&self, _path: &Path, _directory: &File) -> io::Result<()> {
        self.sync_result()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.note("rename", to);
        let mut durable = self.durable.lock();
        if let Some(bytes) = durable.remove(from) {
            durable.insert(to.to_path_buf(), bytes);
        }
        SystemDisk.rename(from, to)
    }

    fn exchange(&self, left: &Path, right: &Path) -> io::Result<()> {
        self.note("exchange", right);
        let mut durable = self.durable.lock();
        let (was_left, was_right) = (durable.remove(left), durable.remove(right));
        durable.extend(was_left.map(|bytes| (right.to_path_buf(), bytes)));
        durable.extend(was_right.map(|bytes| (left.to_path_buf(), bytes)));
        SystemDisk.exchange(left, right)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        if self.fails_unlink.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(5)); // EIO
        }
        self.note("unlink", path);
        self.durable.lock().remove(path);
        SystemDisk.unlink(path)
    }
}
