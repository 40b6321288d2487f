//! Users of this machine.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Somebody we can run a process as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl User {
    /// The first of these names that `/etc/passwd` knows.
    pub(crate) fn first_of(names: &[&str]) -> Option<Self> {
        let passwd = fs::read_to_string("/etc/passwd").ok()?;
        names
            .iter()
            .find_map(|name| passwd.lines().find_map(|line| Self::parse(line, name)))
    }

    fn parse(line: &str, name: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.first() == Some(&name)).then_some(())?;
        Some(Self {
            name: name.to_owned(),
            uid: fields.get(2)?.parse().ok()?,
            gid: fields.get(3)?.parse().ok()?,
        })
    }

    /// May this user enter the folder and every folder above it?
    pub(crate) fn can_enter(&self, folder: &Path) -> bool {
        folder.ancestors().all(|folder| {
            fs::metadata(folder).is_ok_and(|folder| {
                let needed = match folder {
                    _ if folder.uid() == self.uid => 0o100,
                    _ if folder.gid() == self.gid => 0o010,
                    _ => 0o001,
                };
                folder.mode() & needed != 0
            })
        })
    }
}
