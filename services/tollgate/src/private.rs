//! Files that only their owner may read.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;

use anyhow::Context;

/// Replaces a file, or makes it: a reader sees the old one or the new one, also after a power
/// failure. Who owned it before, owns it.
pub(crate) fn replace(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

fn write(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let mut name = path.file_name().context("it has no name")?.to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let mut file = File::options()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    if let Ok(old) = fs::metadata(path) {
        let made = file.metadata()?;
        if (old.uid(), old.gid()) != (made.uid(), made.gid()) {
            fchown(&file, Some(old.uid()), Some(old.gid()))?;
        }
    }
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    sync_folder(path)
}

/// Removes a file for good.
pub(crate) fn remove(path: &Path) -> anyhow::Result<()> {
    let gone = fs::remove_file(path);
    gone.with_context(|| format!("cannot remove {}", path.display()))?;
    sync_folder(path)
}

fn sync_folder(path: &Path) -> anyhow::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder)?.sync_all()?;
    Ok(())
}
