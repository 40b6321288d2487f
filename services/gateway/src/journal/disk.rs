//! What the journal asks of the file system, in one place so that tests can make it fail.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

use runtime::error_point;
use rustix::fs::{FallocateFlags, fallocate};

/// The file operations whose failure the journal must survive.
pub trait Disk: Send + Sync {
    /// Creates an empty file whose `bytes` are allocated: writing them cannot run out of space.
    fn create(&self, path: &Path, bytes: u64) -> io::Result<File>;
    /// Makes the file's data durable. Also covers what was written through a mapping.
    fn sync(&self, path: &Path, file: &File) -> io::Result<()>;
    /// Makes creations, renames and removals in a directory durable.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;
    /// Gives a file its name, replacing what had it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn unlink(&self, path: &Path) -> io::Result<()>;
}

/// The operating system's file system. Needs one with `fallocate` that writes in place
/// (ext4, xfs, tmpfs); one that copies on write may break the promise of [`Disk::create`].
pub struct SystemDisk;

impl Disk for SystemDisk {
    fn create(&self, path: &Path, bytes: u64) -> io::Result<File> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?;
        if bytes > 0 {
            fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
        }
        Ok(file)
    }

    fn sync(&self, _path: &Path, file: &File) -> io::Result<()> {
        error_point!("gateway.disk_sync");
        file.sync_data()
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
}
