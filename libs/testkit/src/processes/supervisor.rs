//! The roster: whoever dies is started again, until told to stop.

use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{Process, ProcessSpec, clean_leftover};

const BACK_OFF_MIN: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(1);
/// Who lived this long starts again without delay.
const SETTLED_AFTER: Duration = Duration::from_secs(10);

/// What happened to something that is kept alive.
#[derive(Debug, Clone)]
pub enum Event {
    /// It runs, for the first time or again.
    Started { name: String, pid: u32 },
    /// It ended without being asked to; the log's last lines may say why.
    Died {
        name: String,
        status: ExitStatus,
        log_tail: String,
    },
    /// It will be started again after this pause.
    Restarting { name: String, after: Duration },
    /// Starting it again failed; the next attempt follows.
    Failed { name: String, error: String },
}

/// Where events go; called from a task, so it must not block.
pub type OnEvent = Arc<dyn Fn(Event) + Send + Sync>;

/// Something that can be kept alive.
pub(crate) trait Kept: Send + Sync {
    fn name(&self) -> &str;
    fn process(&self) -> Process;
    fn stopping(&self) -> &CancellationToken;
    /// Starts it again, or returns the life somebody else has started meanwhile.
    fn start_again(&self) -> impl Future<Output = Result<Process>> + Send;
}

/// Starts `kept` again whenever it dies, with growing pauses, until it is told to stop.
pub(crate) async fn keep_alive(kept: &impl Kept, on_event: &OnEvent) {
    let stopping = kept.stopping();
    let mut pause = BACK_OFF_MIN;
    loop {
        let process = kept.process();
        let since = Instant::now();
        let status = tokio::select! {
            biased;
            () = stopping.cancelled() => return,
            status = process.wait_exit() => status,
        };
        if stopping.is_cancelled() {
            return;
        }
        let name = kept.name().to_owned();
        on_event(Event::Died {
            name,
            status,
            log_tail: process.log_tail(),
        });
        drop(process);
        if since.elapsed() > SETTLED_AFTER {
            pause = BACK_OFF_MIN;
        }
        while !revive(kept, pause, on_event).await {
            if stopping.is_cancelled() {
                return;
            }
            pause = (pause * 2).min(BACK_OFF_MAX);
        }
        pause = (pause * 2).min(BACK_OFF_MAX);
    }
}

/// One attempt. True: it runs.
async fn revive(kept: &impl Kept, pause: Duration, on_event: &OnEvent) -> bool {
    let name = kept.name().to_owned();
    on_event(Event::Restarting {
        name: name.clone(),
        after: pause,
    });
    tokio::select! {
        () = kept.stopping().cancelled() => return false,
        () = sleep(pause) => {}
    }
    match kept.start_again().await {
        Ok(process) => {
            on_event(Event::Started {
                name,
                pid: process.pid(),
            });
            true
        }
        Err(error) => {
            if !kept.stopping().is_cancelled() {
                on_event(Event::Failed {
                    name,
                    error: format!("{error:#}"),
                });
            }
            false
        }
    }
}

/// Keeps processes alive and stops them in the reverse order of their start.
#[derive(Debug, Default)]
pub struct Supervisor {
    roster: Mutex<Vec<Arc<Member>>>,
    keepers: Mutex<JoinSet<()>>,
}

#[derive(Debug)]
struct Member {
    spec: ProcessSpec,
    process: Mutex<Process>,
    /// Held while starting and stopping, so that the two never overlap.
    changing: tokio::sync::Mutex<()>,
    stopping: CancellationToken,
}

impl Supervisor {
    /// An empty roster.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a process and keeps it alive. It fails if the first start does.
    pub async fn spawn(&self, spec: ProcessSpec, on_event: OnEvent) -> Result<Process> {
        if let Some(path) = &spec.pid_file {
            clean_leftover(path).await?;
        }
        let process = Process::start(&spec)?;
        on_event(Event::Started {
            name: spec.name.clone(),
            pid: process.pid(),
        });
        let member = Arc::new(Member {
            spec,
            process: Mutex::new(process.clone()),
            changing: tokio::sync::Mutex::default(),
            stopping: CancellationToken::new(),
        });
        self.roster.lock().push(Arc::clone(&member));
        self.keepers
            .lock()
            .spawn(async move { keep_alive(&*member, &on_event).await });
        Ok(process)
    }

    /// The present life of a member.
    #[must_use]
    pub fn process(&self, name: &str) -> Option<Process> {
        let roster = self.roster.lock();
        roster
            .iter()
            .find(|member| member.spec.name == name)
            .map(|member| member.process())
    }

    /// Names and present pids, in the order of their start.
    #[must_use]
    pub fn pids(&self) -> Vec<(String, u32)> {
        let roster = self.roster.lock();
        roster
            .iter()
            .map(|member| (member.spec.name.clone(), member.process().pid()))
            .collect()
    }

    /// Stops all, last started first, each within its own bound.
    pub async fn stop(&self) {
        let members = std::mem::take(&mut *self.roster.lock());
        // Nobody is to be started again while the others go.
        members.iter().for_each(|member| member.stopping.cancel());
        for member in members.iter().rev() {
            let _changing = member.changing.lock().await;
            member.process().stop().await;
        }
        let mut keepers = std::mem::take(&mut *self.keepers.lock());
        while keepers.join_next().await.is_some() {}
    }
}

impl Kept for Member {
    fn name(&self) -> &str {
        &self.spec.name
    }

    fn process(&self) -> Process {
        self.process.lock().clone()
    }

    fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    async fn start_again(&self) -> Result<Process> {
        let _changing = self.changing.lock().await;
        let present = self.process();
        if present.exit_status().is_none() {
            return Ok(present);
        }
        anyhow::ensure!(!self.stopping.is_cancelled(), "stopping");
        let process = Process::start(&self.spec)?;
        *self.process.lock() = process.clone();
        Ok(process)
    }
}
