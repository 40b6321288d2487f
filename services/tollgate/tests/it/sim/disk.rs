//! A disk that knows what is durable, and loses the rest with the power: whole sectors, in any
//! order, and the last changes of names. It can die at any of its operations.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use gateway::journal::{Disk, SystemDisk};
use parking_lot::Mutex;

use super::dice::Dice;

const SECTOR_BYTES: usize = 512;

/// The disk of one gateway.
#[derive(Default)]
pub(super) struct SimDisk(Mutex<State>);

#[derive(Default)]
struct State {
    /// What a file held when it was synced last.
    durable: BTreeMap<PathBuf, Vec<u8>>,
    /// Changes of names whose directory was not synced since, in order.
    unsynced: Vec<Change>,
    /// Operations until death, and whether the last one still takes effect.
    doom: Option<(u64, bool)>,
    is_dead: bool,
}

enum Change {
    Created(PathBuf),
    Renamed {
        from: PathBuf,
        to: PathBuf,
        /// What `to` held before: as read, and as synced.
        replaced: Option<(Vec<u8>, Option<Vec<u8>>)>,
    },
    Exchanged(PathBuf, PathBuf),
    Unlinked(PathBuf, Vec<u8>),
}

impl Change {
    fn path(&self) -> &Path {
        match self {
            Self::Created(path)
            | Self::Renamed { to: path, .. }
            | Self::Exchanged(path, _)
            | Self::Unlinked(path, _) => path,
        }
    }
}

fn dead() -> io::Error {
    io::Error::other("the process is dead")
}

impl SimDisk {
    /// Lets the process die at one of its next operations.
    pub(super) fn doom(&self, operations: u64, takes_effect: bool) {
        self.0.lock().doom = Some((operations, takes_effect));
    }

    /// True when the process has died at an operation.
    pub(super) fn is_dead(&self) -> bool {
        self.0.lock().is_dead
    }

    /// The next process begins.
    pub(super) fn revive(&self) {
        let mut state = self.0.lock();
        (state.doom, state.is_dead) = (None, false);
    }

    /// Damages a byte of a file for good: hit again, it does not become what it was.
    pub(super) fn flip(&self, path: &Path, at: usize) {
        let mut bytes = fs::read(path).expect("it is there");
        bytes[at] = bytes[at].wrapping_add(0x41);
        fs::write(path, &bytes).expect("writable");
        if let Some(durable) = self.0.lock().durable.get_mut(path) {
            durable[at] = bytes[at];
        }
    }

    /// Takes a file away.
    pub(super) fn destroy(&self, path: &Path) {
        fs::remove_file(path).expect("removable");
        let mut state = self.0.lock();
        state.durable.remove(path);
        state.unsynced.retain(|change| change.path() != path);
    }

    /// Loses what is not durable. Nobody has a file open.
    pub(super) fn lose_power(&self, dice: &mut Dice) {
        let mut state = self.0.lock();
        // A journal of the file system keeps a prefix of what happened to names.
        let kept = dice.below(state.unsynced.len() + 1);
        for change in state.unsynced.split_off(kept).into_iter().rev() {
            state.undo(change);
        }
        state.unsynced.clear();
        let survival = [0, 500, 900, 1000][dice.below(4)];
        let State { durable, .. } = &mut *state;
        durable.retain(|path, _| path.is_file());
        for (path, durable) in durable {
            let mut bytes = fs::read(path).expect("it is a file");
            if bytes.len() == durable.len() {
                let sectors = bytes.chunks_mut(SECTOR_BYTES);
                for (sector, old) in sectors.zip(durable.chunks(SECTOR_BYTES)) {
                    if sector != old && !dice.chance(survival) {
                        sector.copy_from_slice(old);
                    }
                }
            } else if !dice.chance(survival) {
                bytes.clone_from(durable);
            }
            fs::write(path, &bytes).expect("writable");
            *durable = bytes;
        }
    }

    /// Does an operation, unless the process is dead or dies before it.
    fn operate<T>(&self, operation: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.0.lock();
        if state.is_dead {
            return Err(dead());
        }
        match &mut state.doom {
            Some((0, takes_effect)) => {
                let takes_effect = *takes_effect;
                state.is_dead = true;
                if takes_effect {
                    drop(operation(&mut state));
                }
                return Err(dead());
            }
            Some((left, _)) => *left -= 1,
            None => {}
        }
        operation(&mut state)
    }
}

impl State {
    fn exchange(&mut self, left: &Path, right: &Path) {
        SystemDisk.exchange(left, right).expect("both are there");
        let (was_left, was_right) = (self.durable.remove(left), self.durable.remove(right));
        self.durable
            .extend(was_left.map(|bytes| (right.to_path_buf(), bytes)));
        self.durable
            .extend(was_right.map(|bytes| (left.to_path_buf(), bytes)));
    }

    fn undo(&mut self, change: Change) {
        match change {
            Change::Created(path) => {
                self.durable.remove(&path);
                drop(fs::remove_file(&path));
            }
            Change::Renamed { from, to, replaced } => {
                drop(fs::rename(&to, &from));
                if let Some(durable) = self.durable.remove(&to) {
                    self.durable.insert(from, durable);
                }
                if let Some((bytes, durable)) = replaced {
                    fs::write(&to, bytes).expect("writable");
                    self.durable.extend(durable.map(|durable| (to, durable)));
                }
            }
            Change::Exchanged(left, right) => self.exchange(&left, &right),
            Change::Unlinked(path, bytes) => {
                let parent = path.parent().expect("it was in a directory");
                fs::create_dir_all(parent).expect("creatable");
                fs::write(&path, &bytes).expect("writable");
                self.durable.insert(path, bytes);
            }
        }
    }
}

impl Disk for SimDisk {
    fn create(&self, path: &Path, bytes: u64) -> io::Result<File> {
        self.operate(|state| {
            let file = SystemDisk.create(path, bytes)?;
            let zeros = vec![0; usize::try_from(bytes).unwrap()];
            if state.durable.insert(path.to_path_buf(), zeros).is_none() {
                state.unsynced.push(Change::Created(path.to_path_buf()));
            }
            Ok(file)
        })
    }

    fn reopen(&self, path: &Path) -> io::Result<File> {
        self.operate(|_| SystemDisk.reopen(path))
    }

    fn sync(&self, path: &Path, _file: &File) -> io::Result<()> {
        self.operate(|state| {
            state.durable.insert(path.to_path_buf(), fs::read(path)?);
            Ok(())
        })
    }

    fn sync_directory(&self, path: &Path, _directory: &File) -> io::Result<()> {
        self.operate(|state| {
            state.unsynced.retain(|change| {
                let parent = change.path().parent().expect("in a directory");
                parent != path && parent.exists()
            });
            Ok(())
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.operate(|state| {
            let replaced = fs::read(to).ok();
            let was_durable = state.durable.remove(to);
            SystemDisk.rename(from, to)?;
            if let Some(durable) = state.durable.remove(from) {
                state.durable.insert(to.to_path_buf(), durable);
            }
            if to.is_file() {
                state.unsynced.push(Change::Renamed {
                    from: from.to_path_buf(),
                    to: to.to_path_buf(),
                    replaced: replaced.map(|bytes| (bytes, was_durable)),
                });
            }
            Ok(())
        })
    }

    fn exchange(&self, left: &Path, right: &Path) -> io::Result<()> {
        self.operate(|state| {
            state.exchange(left, right);
            let (left, right) = (left.to_path_buf(), right.to_path_buf());
            state.unsynced.push(Change::Exchanged(left, right));
            Ok(())
        })
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.operate(|state| {
            SystemDisk.unlink(path)?;
            if let Some(durable) = state.durable.remove(path) {
                let path = path.to_path_buf();
                state.unsynced.push(Change::Unlinked(path, durable));
            }
            Ok(())
        })
    }
}
