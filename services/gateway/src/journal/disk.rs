//! What the journal asks of the file system, in one place so that tests can make it fail.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

use runtime::error_point;
use rustix::fs::{CWD, FallocateFlags, RenameFlags, fallocate, renameat_with};
use rustix::io::Errno;

/// The file operations whose failure the journal must survive.
pub trait Disk: Send + Sync {
    /// Creates an empty file whose `bytes` are allocated: writing them cannot run out of space.
    fn create(&self, path: &Path, bytes: u64) -> io::Result<File>;
    /// Opens a file for writing where it is, all of it allocated: overwriting what it holds cannot
    /// run out of space either.
    fn reopen(&self, path: &Path) -> io::Result<File>;
    /// Makes the file's data durable. Also covers what was written through a mapping.
    fn sync(&self, path: &Path, file: &File) -> io::Result<()>;
    /// Makes creations, renames and removals in a directory durable. It is open already: a failed
    /// `fsync` is final, and having no descriptor left is none.
    fn sync_directory(&self, path: &Path, directory: &File) -> io::Result<()>;
    /// Gives a file its name, replacing what had it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives each of two files the other's name, at once. Needs no space, as nothing is made.
    fn exchange(&self, left: &Path, right: &Path) -> io::Result<()>;
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

    fn reopen(&self, path: &Path) -> io::Result<File> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let bytes = file.metadata()?.len();
        if bytes > 0 {
            fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
        }
        Ok(file)
    }

    fn sync(&self, _path: &Path, file: &File) -> io::Result<()> {
        error_point!("gateway.disk_sync");
        file.sync_data()
    }

    fn sync_directory(&self, _path: &Path, directory: &File) -> io::Result<()> {
        directory.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn exchange(&self, left: &Path, right: &Path) -> io::Result<()> {
        match renameat_with(CWD, left, CWD, right, RenameFlags::EXCHANGE) {
            // A file system that cannot: the one that is replaced has to be made again.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => fs::rename(left, right),
            result => Ok(result?),
        }
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
}
