//! The folder of `tollgate dev`: what lies where, and the lock that keeps a second one out.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Serialize;

use crate::pepper::PepperFiles;
use crate::private;

/// Where `tollgate dev` lives unless told otherwise.
pub(crate) const FOLDER: &str = ".tollgate";
/// Held by the running one; its text is the pid.
pub(crate) const LOCK: &str = "lock";
/// What the running one says of itself.
pub(crate) const READY: &str = "dev.json";

/// Debian's `tor-geoipdb`.
const COUNTRY_DB: &str = "/usr/share/tor/geoip";
/// Somebody who looks whether the lock is held, holds it for a moment.
const LOCK_WITHIN: Duration = Duration::from_secs(1);

/// Paths, all absolute.
pub(super) struct Layout {
    folder: PathBuf,
    /// Secrets and journals: the folder itself, or what is thrown away at the end.
    kept: PathBuf,
    is_ephemeral: bool,
    /// Held, not read: frees itself when this process dies, however it dies.
    _lock: File,
}

impl Layout {
    /// Makes the folder and locks it.
    pub(super) async fn open(folder: &Path, is_ephemeral: bool) -> anyhow::Result<Self> {
        // PostgreSQL may have to run as somebody else, who must get through to its folder.
        make(folder, 0o711)?;
        let folder = folder
            .canonicalize()
            .with_context(|| format!("cannot enter {}", folder.display()))?;
        let lock = lock(&folder).await?;
        let kept = if is_ephemeral {
            folder.join("ephemeral")
        } else {
            folder.clone()
        };
        let layout = Self {
            folder,
            kept,
            is_ephemeral,
            _lock: lock,
        };
        // Both are left only by one that was killed.
        layout.remove_ready()?;
        layout.remove_ephemeral()?;
        make(&layout.kept, 0o711)?;
        for name in ["log", "pid"] {
            make(&layout.folder.join(name), 0o700)?;
        }
        make(&layout.kept.join("journal"), 0o700)?;
        Ok(layout)
    }

    /// Where the servers keep their data; nowhere when nothing is kept.
    pub(super) fn servers(&self) -> Option<PathBuf> {
        (!self.is_ephemeral).then(|| self.folder.join("servers"))
    }

    pub(super) fn secrets(&self) -> PathBuf {
        self.kept.join("secrets.json")
    }

    /// Read again by services that run.
    pub(super) fn peppers(&self) -> PepperFiles {
        PepperFiles {
            current: self.kept.join("pepper"),
            previous: self.kept.join("pepper-previous"),
        }
    }

    pub(super) fn ready(&self) -> PathBuf {
        self.folder.join(READY)
    }

    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.folder.join("log").join(format!("{name}.log"))
    }

    pub(super) fn pid(&self, name: &str) -> PathBuf {
        self.folder.join("pid").join(name)
    }

    /// Root directory of a gateway's journals.
    pub(super) fn journal(&self, gateway: &str) -> PathBuf {
        self.kept.join("journal").join(gateway)
    }

    /// Root directories of all gateways there ever were: one that is gone may have left records.
    pub(super) fn journals(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(self.kept.join("journal"))? {
            all.push(entry?.path());
        }
        all.sort();
        Ok(all)
    }

    /// A country database of the folder, else the one of Debian.
    pub(super) fn country_db(&self) -> Option<PathBuf> {
        let is_database = |path: &PathBuf| path.extension().is_some_and(|it| it == "mmdb");
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut own: Vec<PathBuf> = entries.map(|it| it.path()).filter(is_database).collect();
        own.sort();
        let debian = Path::new(COUNTRY_DB);
        own.into_iter()
            .next()
            .or_else(|| debian.exists().then(|| debian.to_owned()))
    }

    /// From here on nobody takes this for a running system.
    pub(super) fn remove_ready(&self) -> anyhow::Result<()> {
        match fs::remove_file(self.ready()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.ready().display()))
            }
            _ => Ok(()),
        }
    }

    /// Throws away what was not to be kept.
    pub(super) fn remove_ephemeral(&self) -> anyhow::Result<()> {
        let folder = self.folder.join("ephemeral");
        if !folder.exists() {
            return Ok(());
        }
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))
    }
}

fn make(folder: &Path, mode: u32) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(folder);
    made.with_context(|| format!("cannot make the folder {}", folder.display()))
}

async fn lock(folder: &Path) -> anyhow::Result<File> {
    let path = folder.join(LOCK);
    let file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path);
    let mut file = file.with_context(|| format!("cannot open {}", path.display()))?;
    let taken = testkit::eventually(LOCK_WITHIN, "the lock is free", || async {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => Err("it is held"),
            other => Ok(other),
        }
    });
    match taken.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
        Err(_held) => {
            let pid = fs::read_to_string(&path).unwrap_or_default();
            let (folder, pid) = (folder.display(), pid.trim());
            bail!(
                "another `tollgate dev` (pid {pid}) uses {folder}: stop it, or use another --data"
            );
        }
    }
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file)
}

/// Replaces a file that only its owner may read; a reader sees the old one or the new one.
pub(super) fn write_private(path: &Path, content: &impl Serialize) -> anyhow::Result<()> {
    private::replace(path, &serde_json::to_vec_pretty(content)?)
}
