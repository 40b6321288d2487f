//! The folder a server lives in: its data, its log, the lock that keeps a second supervisor out.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use super::Options;
use crate::processes::User;

#[derive(Debug)]
pub struct Home {
    pub(super) folder: PathBuf,
    /// Who owns it and runs the server, if not we.
    pub(super) user: Option<User>,
    /// Held, not read: frees itself when this process dies, however it dies.
    _lock: File,
    /// Removed with the last server that lives in it.
    _temporary: Option<Arc<TempDir>>,
}

impl Home {
    /// Makes `name`'s folder, owned by `user` if there is one, and locks it.
    pub(super) fn open(name: &str, user: Option<User>, options: &Options) -> Result<Self> {
        let temporary = match &options.data_dir {
            Some(_) => None,
            None => Some(Arc::new(temporary()?)),
        };
        let base = match (&options.data_dir, &temporary) {
            (Some(folder), _) => folder.clone(),
            (None, Some(temporary)) => temporary.path().to_owned(),
            (None, None) => bail!("a server needs a folder"),
        };
        make(&base, 0o711)?;
        let base = base
            .canonicalize()
            .with_context(|| format!("cannot enter {}", base.display()))?;
        let base = match &user {
            Some(user) if !user.can_enter(&base) => elsewhere(&base, name, user)?,
            _ => base,
        };

        let folder = base.join(name);
        make(&folder, 0o700)?;
        if let Some(user) = &user {
            chown(&folder, Some(user.uid), Some(user.gid))
                .with_context(|| format!("cannot give {} to {}", folder.display(), user.name))?;
        }
        let lock = lock(&folder.join("supervisor.lock"))?;
        Ok(Self {
            folder,
            user,
            _lock: lock,
            _temporary: temporary,
        })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// Under the system's folder for such things, which anybody may enter.
fn temporary() -> Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder
        .prefix("tollgate-")
        .permissions(fs::Permissions::from_mode(0o711));
    builder.tempdir().context("cannot make a temporary folder")
}

fn make(folder: &Path, mode: u32) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(folder);
    made.with_context(|| format!("cannot make the folder {}", folder.display()))
}

/// Where a server goes whose user cannot enter the folder it was meant for (below `/root`, say):
/// a folder of ours that is the same one the next time.
fn elsewhere(base: &Path, name: &str, user: &User) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    base.hash(&mut hasher);
    let folder = PathBuf::from(format!("/var/tmp/tollgate-{:016x}", hasher.finish()));
    make(&folder, 0o711)?;
    let owner = fs::symlink_metadata(&folder)?;
    let ours = rustix::process::geteuid().as_raw();
    ensure!(
        owner.is_dir() && owner.uid() == ours,
        "{} is somebody else's",
        folder.display()
    );
    tracing::warn!(
        server = name,
        folder = %folder.display(),
        "{} runs as {}, who may not enter {}: its data are kept elsewhere",
        name,
        user.name,
        base.display(),
    );
    Ok(folder)
}

fn lock(path: &Path) -> Result<File> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let folder = path.parent().unwrap_or(path).display();
            bail!(
                "{folder} is in use by another running supervisor: stop it, or use another --data"
            )
        }
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}
