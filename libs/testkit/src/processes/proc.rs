//! What `/proc` knows about processes. Elsewhere than on Linux nothing is found, and nothing done.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

/// A process that is told from a later one with the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) pid: Pid,
    /// Clock ticks since boot.
    pub(super) started: u64,
}

impl Identity {
    /// The process that has this pid now; a zombie counts as gone.
    pub(super) fn of(pid: Pid) -> Option<Self> {
        let stat = Stat::read(pid)?;
        (stat.state != "Z").then_some(Self {
            pid,
            started: stat.started,
        })
    }

    /// Does this very process still live?
    pub(super) fn lives(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Signals it, unless the pid is somebody else's by now.
    pub(super) fn signal(self, signal: Signal) {
        if self.lives()
            && let Err(error) = kill_process(self.pid, signal)
            && error != rustix::io::Errno::SRCH
        {
            tracing::warn!(pid = self.pid.as_raw_nonzero(), %error, "cannot be signalled");
        }
    }
}

/// Does this pid belong to a living process of this name? A zombie does not live.
pub(crate) fn lives_as(pid: i32, name: &str) -> bool {
    let stat = Pid::from_raw(pid).and_then(Stat::read);
    stat.is_some_and(|stat| stat.state != "Z" && stat.name == name)
}

/// Children, their children, and so on.
pub(super) fn descendants(of: Pid) -> Vec<Identity> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let Some(pid) = pid.and_then(Pid::from_raw) else {
            continue;
        };
        if let Some(stat) = Stat::read(pid) {
            all.push((
                stat.parent,
                Identity {
                    pid,
                    started: stat.started,
                },
            ));
        }
    }
    let mut found: Vec<Identity> = Vec::new();
    let mut parents = vec![of];
    while let Some(parent) = parents.pop() {
        for (_, child) in all
            .iter()
            .filter(|(of, _)| *of == parent.as_raw_nonzero().get())
        {
            found.push(*child);
            parents.push(child.pid);
        }
    }
    found
}

struct Stat {
    name: String,
    state: String,
    parent: i32,
    started: u64,
}

impl Stat {
    fn read(pid: Pid) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
        // The name in brackets may hold anything, so count the fields from its end.
        let (head, fields) = text.rsplit_once(')')?;
        let (_, name) = head.split_once('(')?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        Some(Self {
            name: name.to_owned(),
            state: (*fields.first()?).to_owned(),
            parent: fields.get(1)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
        })
    }
}
