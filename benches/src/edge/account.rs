//! What processes take of a core, told by the kernel: to the nanosecond, by thread.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustix::{
    io::Errno,
    process::{Pid, setpriority_process},
    thread::{CpuSet, sched_setaffinity},
};

use super::load::Watch;

/// Time and switches of some threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// On a core.
    pub(crate) nanos: u64,
    /// Given up and taken away.
    pub(crate) switches: u64,
}

impl Usage {
    fn since(self, before: Self) -> Self {
        Self {
            nanos: self.nanos.saturating_sub(before.nanos),
            switches: self.switches.saturating_sub(before.switches),
        }
    }
}

/// A thread: of which process, and what it calls itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Thread {
    process: i32,
    id: i32,
    name: String,
}

/// All threads of a process and of its descendants.
pub(crate) fn threads(process: i32) -> anyhow::Result<Vec<Thread>> {
    let mut found = Vec::new();
    let mut processes = vec![process];
    while let Some(process) = processes.pop() {
        let folder = format!("/proc/{process}/task");
        let tasks = fs::read_dir(&folder).with_context(|| format!("no process {process}"))?;
        for task in tasks.flatten() {
            let Some(id) = task.file_name().to_str().and_then(|it| it.parse().ok()) else {
                continue;
            };
            // A thread may end while it is looked at.
            let text = |file| fs::read_to_string(task.path().join(file)).unwrap_or_default();
            let children = text("children");
            processes.extend(
                children
                    .split_whitespace()
                    .filter_map(|it| it.parse::<i32>().ok()),
            );
            found.push(Thread {
                process,
                id,
                name: text("comm").trim().to_owned(),
            });
        }
    }
    Ok(found)
}

/// The threads of this program.
pub(crate) fn own_threads() -> anyhow::Result<Vec<Thread>> {
    let own = i32::try_from(std::process::id())?;
    let mut found = threads(own)?;
    found.retain(|thread| thread.process == own);
    Ok(found)
}

impl Thread {
    /// Of which it is.
    pub(crate) fn process(&self) -> i32 {
        self.process
    }

    /// Whether it carries calls, by its name.
    pub(crate) fn is_edge(&self) -> bool {
        self.name.starts_with("edge-")
    }

    /// Lets it run on one core only.
    pub(crate) fn pin(&self, core: usize) -> anyhow::Result<()> {
        pin(Pid::from_raw(self.id), core).with_context(|| format!("cannot pin {}", self.name))
    }

    /// Lets others go first.
    pub(crate) fn step_back(&self, nice: i32) -> anyhow::Result<()> {
        let set = setpriority_process(Pid::from_raw(self.id), nice);
        if set == Err(Errno::SRCH) {
            return Ok(()); // it has ended
        }
        set.with_context(|| format!("cannot make {} wait", self.name))
    }

    fn usage(&self) -> Usage {
        let text = |file| {
            let path = format!("/proc/{}/task/{}/{file}", self.process, self.id);
            fs::read_to_string(path).unwrap_or_default()
        };
        let first = |text: &str| {
            text.split_whitespace()
                .next()
                .and_then(|it| it.parse().ok())
        };
        let status = text("status");
        let switches = status
            .lines()
            .filter_map(|line| line.split_once("_ctxt_switches:"))
            .filter_map(|(_, count)| first(count));
        Usage {
            nanos: first(&text("schedstat")).unwrap_or(0),
            switches: switches.sum(),
        }
    }
}

/// Lets the calling thread, and all it starts from then on, run on one core only.
pub(crate) fn pin_self(core: usize) -> anyhow::Result<()> {
    pin(None, core)
}

fn pin(thread: Option<Pid>, core: usize) -> anyhow::Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core);
    Ok(sched_setaffinity(thread, &cores)?)
}

/// Threads by what they do.
pub(crate) type Groups = BTreeMap<&'static str, Vec<Thread>>;

/// What groups of threads took while something was measured, and how busy a core was.
pub(crate) struct Account<'a> {
    groups: &'a Groups,
    core: usize,
    before: BTreeMap<&'static str, Usage>,
    busy_before: f64,
    began: Instant,
    /// By group.
    pub(crate) used: BTreeMap<&'static str, Usage>,
    /// Share of the core that was not idle.
    pub(crate) busy: f64,
}

impl<'a> Account<'a> {
    /// Of these threads, and of this core.
    pub(crate) fn new(groups: &'a Groups, core: usize) -> Self {
        Self {
            groups,
            core,
            before: BTreeMap::new(),
            busy_before: 0.0,
            began: Instant::now(),
            used: BTreeMap::new(),
            busy: 0.0,
        }
    }

    fn read(&self) -> BTreeMap<&'static str, Usage> {
        let sum = |threads: &[Thread]| {
            threads
                .iter()
                .map(Thread::usage)
                .fold(Usage::default(), |sum, it| Usage {
                    nanos: sum.nanos + it.nanos,
                    switches: sum.switches + it.switches,
                })
        };
        let groups = self.groups.iter();
        groups
            .map(|(name, threads)| (*name, sum(threads)))
            .collect()
    }
}

impl Watch for Account<'_> {
    fn begin(&mut self) {
        self.before = self.read();
        self.busy_before = busy_seconds(self.core);
        self.began = Instant::now();
    }

    fn end(&mut self) {
        let seconds = self.began.elapsed().as_secs_f64();
        self.busy = (busy_seconds(self.core) - self.busy_before) / seconds;
        for (name, usage) in self.read() {
            let before = self.before.get(name).copied().unwrap_or_default();
            self.used.insert(name, usage.since(before));
        }
    }
}

/// Seconds since the machine started in which a core had something to do. Its clock ticks a hundred
/// times a second: add several slices up.
fn busy_seconds(core: usize) -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let label = format!("cpu{core} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&label));
    let ticks: Vec<u32> = line
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|it| it.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq; what the hypervisor stole is nobody's work.
    let busy = [0, 1, 2, 5, 6].iter().filter_map(|at| ticks.get(*at));
    busy.map(|ticks| f64::from(*ticks)).sum::<f64>() / 100.0
}

/// Which process listens on a port of loopback.
pub(crate) fn listener(port: u16) -> anyhow::Result<Vec<i32>> {
    let table = fs::read_to_string("/proc/net/tcp")?;
    let local = format!(":{port:04X}");
    let sockets: Vec<String> = table
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // State 0A: listening.
            let is_it = fields.get(1)?.ends_with(&local) && *fields.get(3)? == "0A";
            is_it.then(|| Some(format!("socket:[{}]", fields.get(9)?)))?
        })
        .collect();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|it| it.parse().ok()) else {
            continue;
        };
        let files = fs::read_dir(entry.path().join("fd"))
            .into_iter()
            .flatten()
            .flatten();
        let mut targets = files.filter_map(|file| fs::read_link(file.path()).ok());
        let holds = |target: PathBuf| sockets.iter().any(|it| target.as_os_str() == it.as_str());
        if targets.any(holds) {
            found.push(process);
        }
    }
    Ok(found)
}

/// Bytes in memory that are nobody else's, of a process and its descendants.
pub(crate) fn memory(process: i32) -> anyhow::Result<f64> {
    in_memory(process, "Private_")
}

/// The same without what is a file's, such as a journal.
pub(crate) fn heap(process: i32) -> anyhow::Result<f64> {
    in_memory(process, "Anonymous:")
}

fn in_memory(process: i32, kind: &str) -> anyhow::Result<f64> {
    let mut processes: Vec<i32> = threads(process)?.iter().map(|it| it.process).collect();
    processes.sort_unstable();
    processes.dedup();
    let mut kibibytes = 0;
    for process in processes {
        let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
        for line in text.lines().filter(|line| line.starts_with(kind)) {
            let number = line
                .split_whitespace()
                .nth(1)
                .and_then(|it| it.parse::<u32>().ok());
            kibibytes += number.unwrap_or(0);
        }
    }
    Ok(f64::from(kibibytes) * 1024.0)
}

/// Seconds of a core that a process and its descendants have taken, those that live.
pub(crate) fn taken(process: i32) -> anyhow::Result<f64> {
    let threads = threads(process)?;
    let nanos = threads.iter().map(|thread| thread.usage().nanos).sum();
    Ok(Duration::from_nanos(nanos).as_secs_f64())
}
