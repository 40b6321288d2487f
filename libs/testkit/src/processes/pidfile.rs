//! A file that remembers a process so well that no other is taken for it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal};

use super::proc::{Identity, descendants};
use crate::eventually;

const GONE_WITHIN: Duration = Duration::from_secs(10);

/// Writes `pid start boot`: a start time counts from the boot, so both are needed.
pub(super) fn write(path: &Path, pid: Pid) -> std::io::Result<()> {
    // It may have ended already; then there is nothing to remember.
    let Some(identity) = Identity::of(pid) else {
        return Ok(());
    };
    fs::write(path, line(identity))
}

/// Removes the file if it still speaks of this process.
pub(super) fn remove(path: &Path, pid: Pid) {
    let speaks_of = fs::read_to_string(path)
        .is_ok_and(|text| text.split(' ').next() == Some(&pid.as_raw_nonzero().to_string()));
    if speaks_of && let Err(error) = fs::remove_file(path) {
        tracing::debug!(path = %path.display(), %error, "pid file stays");
    }
}

/// Kills what an earlier run left behind, and waits until it is gone. Never touches a process
/// that merely got the same pid.
pub(crate) async fn clean_leftover(path: &Path) -> Result<()> {
    let Some(left) = read(path) else {
        return Ok(());
    };
    let mut doomed = descendants(left.pid);
    doomed.push(left);
    for process in &doomed {
        process.signal(Signal::KILL);
    }
    eventually(
        GONE_WITHIN,
        "the processes of an earlier run are gone",
        || async {
            match doomed.iter().find(|process| process.lives()) {
                Some(process) => Err(format!("pid {} lives", process.pid.as_raw_nonzero())),
                None => Ok(()),
            }
        },
    )
    .await
    .with_context(|| format!("{} names them", path.display()))?;
    tracing::warn!(
        pid = left.pid.as_raw_nonzero(),
        "stopped what an earlier run left behind"
    );
    Ok(())
}

fn read(path: &Path) -> Option<Identity> {
    let text = fs::read_to_string(path).ok()?;
    let pid = text
        .split(' ')
        .next()?
        .parse()
        .ok()
        .and_then(Pid::from_raw)?;
    let identity = Identity::of(pid)?;
    (text == line(identity)).then_some(identity)
}

fn line(identity: Identity) -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    format!(
        "{} {} {}\n",
        identity.pid.as_raw_nonzero(),
        identity.started,
        boot.trim()
    )
}
