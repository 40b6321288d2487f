//! Child processes that cannot outlive us, and the roster that keeps them alive.

mod pidfile;
mod proc;
mod spawn;
mod supervisor;
mod user;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use parking_lot::{Condvar, Mutex};
pub use rustix::process::Signal;
use rustix::process::{Pid, WaitId, WaitIdOptions, kill_process, waitid};
use tokio::sync::watch;
use tokio::time::timeout;

pub(crate) use pidfile::clean_leftover;
pub(crate) use proc::lives_as;
#[cfg(test)]
pub(crate) use spawn::watch;
pub use supervisor::{Event, OnEvent, Supervisor};
pub(crate) use supervisor::{Kept, keep_alive};
pub(crate) use user::User;

/// A log that has grown beyond this is set aside at the next start.
const LOG_BYTES_MAX: u64 = 16 << 20;
/// How much of a log is shown when a process fails.
const TAIL_BYTES_MAX: u64 = 4096;
/// How long dropping the last handle waits for the death of what it killed.
const DROP_WAIT_MAX: Duration = Duration::from_secs(2);

/// What to run, and how to stop it.
#[derive(Debug, Clone)]
pub struct ProcessSpec {
    /// Name in messages and events.
    pub name: String,
    /// Absolute path of the program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Variables on top of our own environment.
    pub env: Vec<(OsString, OsString)>,
    /// Working directory; ours if there is none.
    pub directory: Option<PathBuf>,
    /// Takes standard output and error; appended to.
    pub log: PathBuf,
    /// Remembers the process, so that the next start stops it if it was left behind.
    pub pid_file: Option<PathBuf>,
    /// Asks for an orderly end.
    pub stop_signal: Signal,
    /// How long an orderly end may take before it is forced.
    pub stop_within: Duration,
    pub(crate) user: Option<User>,
}

impl ProcessSpec {
    /// A program without arguments that is stopped by SIGTERM within ten seconds.
    pub fn new(name: &str, program: impl Into<PathBuf>, log: impl Into<PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            directory: None,
            log: log.into(),
            pid_file: None,
            stop_signal: Signal::TERM,
            stop_within: Duration::from_secs(10),
            user: None,
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<T: Into<OsString>>(mut self, args: impl IntoIterator<Item = T>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }
}

/// A running child. Handles may be cloned; dropping the last one kills it.
#[derive(Debug, Clone)]
pub struct Process {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    spec: ProcessSpec,
    life: Arc<Life>,
    exited: watch::Receiver<Option<ExitStatus>>,
    /// Where this life begins in the log.
    log_from: u64,
}

/// Shared with the thread that reaps the child.
#[derive(Debug)]
struct Life {
    pid: Pid,
    /// Held while signalling and while reaping: the pid cannot become somebody else's in between.
    status: Mutex<Option<ExitStatus>>,
    reaped: Condvar,
}

impl Process {
    /// Starts the program. What an earlier run left behind must have been cleaned before.
    pub fn start(spec: &ProcessSpec) -> Result<Self> {
        ensure!(
            spec.program.is_file(),
            "{}: {} is not a program",
            spec.name,
            spec.program.display()
        );
        let (log, log_from) =
            open_log(&spec.log).with_context(|| format!("cannot open {}", spec.log.display()))?;
        let mut child = spawn::spawn(spec, log)
            .with_context(|| format!("cannot start {}", spec.program.display()))?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.context("a child has a positive pid")?;
        if let Some(path) = &spec.pid_file {
            pidfile::write(path, pid)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }

        let life = Arc::new(Life {
            pid,
            status: Mutex::new(None),
            reaped: Condvar::new(),
        });
        let (tell, exited) = watch::channel(None);
        let reaper = {
            let life = Arc::clone(&life);
            move || {
                // Waits without reaping, so that the pid stays ours until the lock is held.
                let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
                while let Err(rustix::io::Errno::INTR) = waitid(WaitId::Pid(pid), options) {}
                let mut status = life.status.lock();
                *status = Some(child.wait().unwrap_or_default());
                tell.send_replace(*status);
                life.reaped.notify_all();
            }
        };
        std::thread::Builder::new()
            .name(format!("reap-{}", spec.name))
            .spawn(reaper)?;
        Ok(Self {
            inner: Arc::new(Inner {
                spec: spec.clone(),
                life,
                exited,
                log_from,
            }),
        })
    }

    /// Name in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.spec.name
    }

    /// The process id; stale once it has exited.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.inner.life.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn exit_status(&self) -> Option<ExitStatus> {
        *self.inner.life.status.lock()
    }

    /// Sends a signal to this process alone; nothing happens if it has ended.
    pub fn signal(&self, signal: Signal) {
        self.inner.life.signal(signal);
    }

    /// SIGKILL for it and its children: what a dying machine does.
    pub fn kill(&self) {
        self.inner.life.kill_tree();
    }

    /// SIGSTOP for it and its children.
    pub fn pause(&self) {
        self.inner.life.signal(Signal::STOP);
        self.inner.life.signal_children(Signal::STOP);
    }

    /// SIGCONT for it and its children.
    pub fn resume(&self) {
        self.inner.life.signal_children(Signal::CONT);
        self.inner.life.signal(Signal::CONT);
    }

    /// Waits until it has ended, for whatever reason.
    pub async fn wait_exit(&self) -> ExitStatus {
        let mut exited = self.inner.exited.clone();
        match exited.wait_for(Option::is_some).await {
            Ok(status) => status.unwrap_or_default(),
            // The reaper tells before it leaves; only a panic of it gets here.
            Err(_gone) => self.exit_status().unwrap_or_default(),
        }
    }

    /// Asks for an orderly end, and forces it when that takes too long.
    pub async fn stop(&self) -> ExitStatus {
        self.signal(self.inner.spec.stop_signal);
        // A paused process gets no signal but this one.
        self.resume();
        match timeout(self.inner.spec.stop_within, self.wait_exit()).await {
            Ok(status) => status,
            Err(_elapsed) => {
                tracing::warn!(process = self.name(), "did not stop in time, killed");
                self.kill();
                self.wait_exit().await
            }
        }
    }

    /// The last lines this process wrote.
    #[must_use]
    pub fn log_tail(&self) -> String {
        tail(&self.inner.spec.log, self.inner.log_from).unwrap_or_default()
    }

    /// Waits without a runtime, for drops. True: it has ended.
    pub(crate) fn wait_exit_blocking(&self, within: Duration) -> bool {
        self.inner.life.wait(within)
    }
}

impl Life {
    fn signal(&self, signal: Signal) {
        let status = self.status.lock();
        if status.is_none()
            && let Err(error) = kill_process(self.pid, signal)
        {
            tracing::warn!(pid = self.pid.as_raw_nonzero(), %error, "cannot be signalled");
        }
    }

    fn signal_children(&self, signal: Signal) {
        for child in proc::descendants(self.pid) {
            child.signal(signal);
        }
    }

    fn kill_tree(&self) {
        // Its children lose their parent with it: note them before.
        let children = proc::descendants(self.pid);
        self.signal(Signal::KILL);
        for child in children {
            child.signal(Signal::KILL);
        }
    }

    fn wait(&self, within: Duration) -> bool {
        let mut status = self.status.lock();
        self.reaped
            .wait_while_for(&mut status, |status| status.is_none(), within);
        status.is_some()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.life.kill_tree();
        self.life.wait(DROP_WAIT_MAX);
        if let Some(path) = &self.spec.pid_file {
            pidfile::remove(path, self.life.pid);
        }
    }
}

fn open_log(path: &Path) -> std::io::Result<(File, u64)> {
    let long = fs::metadata(path).is_ok_and(|log| log.len() > LOG_BYTES_MAX);
    if long {
        fs::rename(path, path.with_extension("log.old"))?;
    }
    let log = File::options()
        .create(true)
        .append(true)
        .mode(0o640)
        .open(path)?;
    let from = log.metadata()?.len();
    Ok((log, from))
}

fn tail(path: &Path, from: u64) -> std::io::Result<String> {
    let mut log = File::open(path)?;
    let end = log.metadata()?.len();
    log.seek(SeekFrom::Start(
        from.max(end.saturating_sub(TAIL_BYTES_MAX)),
    ))?;
    let mut bytes = Vec::new();
    log.take(TAIL_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}
