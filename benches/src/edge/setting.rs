//! Everything in its place: servers, keys, cores.

use std::{
    fs,
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use proto::keys::v1::SetServiceRequest;
use rustix::process::{Resource, getrlimit, setrlimit};
use testkit::{
    eventually, ports,
    processes::{Process, ProcessSpec},
};

use super::{
    Arguments,
    account::{self, Groups, Thread},
    contenders::{Contender, Surroundings},
    lanes::{CONTROL, LOAD, Lane, PROXY, UPSTREAM},
    load::{Load, Outcome, Pace, Requests},
    requests::{self, Ask},
    section::Section,
};
use crate::{
    population::{Population, Terms},
    report::to_f64,
    system::System,
};

/// Every check has something to do: no measurement uses the quota up.
pub(crate) const TERMS: Terms = Terms {
    scope: "edge:call",
    daily_quota: Some(1_000_000_000),
    within: None,
};
/// The gateways know a new service after so long.
const KNOWN_WITHIN: Duration = Duration::from_secs(30);
/// Keys that the gateway is made acquainted with at a time.
const VISITED_AT_ONCE: usize = 2_000;
/// Connections that make the gateway acquainted with all keys.
const VISITORS: usize = 256;
/// Keys that have called before their memory is measured: what is made once is there then.
const FIRST_KEYS: usize = 100;
/// Tollgate is quiet when it takes no more of a core in each of so many seconds: longer than idle
/// credits and permits stay where they are not needed.
const QUIET_SHARE: f64 = 0.15;
const QUIET_SECONDS: usize = 12;
/// After so long what is measured is measured in unrest, and says so.
const QUIET_WITHIN: Duration = Duration::from_secs(180);
/// After so many rounds every key is known, and its credits and quota are there.
const VISITS_MAX: usize = 5;
/// Who need not be quick gives way to the load: what works off the records.
const LATER: [&str; 5] = [
    "usage-ingest",
    "stats-aggregator",
    "anomaly-detector",
    "portal",
    "postgres",
];
/// How far they give way.
const NICE: i32 = 10;

/// What is measured, and where.
pub(crate) struct Setting {
    pub(crate) contenders: Vec<Contender>,
    keys: Vec<String>,
    pub(crate) acquainted: Acquainted,
    missing: Vec<String>,
    helpers: Vec<Process>,
    /// Who works off the records.
    later: Vec<i32>,
    _folder: Folder,
}

/// What it took to make the gateway acquainted with all keys.
#[derive(Clone, Copy, Default)]
pub(crate) struct Acquainted {
    made_in: Duration,
    called_in: Duration,
    /// Until Tollgate was quiet again; nothing if it never was.
    quiet_after: Option<Duration>,
    /// Of the gateway's memory, without its journal.
    pub(crate) bytes_each: f64,
}

/// For configurations and logs; removed at the end.
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// Of this program.
    pub(crate) fn make(name: &str) -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("tollgate-{name}-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What stays behind is temporary anyway.
        drop(fs::remove_dir_all(&self.0));
    }
}

impl Setting {
    pub(crate) async fn make(system: &System, arguments: &Arguments) -> anyhow::Result<Self> {
        raise_limit()?;
        let folder = Folder::make("edge")?;
        let surroundings = Surroundings {
            folder: folder.path().to_owned(),
            upstream: ports::free(),
            authoriser: ports::free(),
        };
        let helpers = vec![
            role(folder.path(), "serve-upstream", surroundings.upstream)?,
            role(folder.path(), "serve-authoriser", surroundings.authoriser)?,
        ];
        offer(system, surroundings.upstream).await?;
        let tollgate = tollgate(system).await?;
        let mut contenders = vec![tollgate, surroundings.bare().await?];
        let mut missing = Vec::new();
        if !arguments.alone {
            let others = surroundings.others().await;
            contenders.extend(others.0);
            missing = others.1;
        }
        let count = arguments.keys.max(1);
        let within = Duration::from_secs(arguments.making_seconds);
        let terms = Terms {
            within: Some(within),
            ..TERMS
        };
        let begin = Instant::now();
        let made = Population::on_terms(system, arguments.organisations, count, terms);
        let keys: Vec<String> = made.await?.keys.into_iter().map(|key| key.text).collect();
        let mut setting = Self {
            contenders,
            keys,
            acquainted: Acquainted {
                made_in: begin.elapsed(),
                ..Acquainted::default()
            },
            missing,
            helpers,
            later: LATER
                .iter()
                .flat_map(|name| system.pids(name).unwrap_or_default())
                .collect(),
            _folder: folder,
        };
        setting.place(system, arguments)?;
        tokio::task::block_in_place(|| setting.acquaint(within))?;
        setting.acquainted.quiet_after = quiet(system).await?;
        setting.teach_lua(&surroundings)?;
        Ok(setting)
    }

    /// Puts everybody on his core.
    fn place(&self, system: &System, arguments: &Arguments) -> anyhow::Result<()> {
        for pid in system.pids("tollgate")? {
            for thread in account::threads(pid)? {
                thread.pin(arguments.other_core)?;
            }
        }
        self.step_back()?;
        for contender in &self.contenders {
            contender.check()?;
            let (calls, others) = split(contender)?;
            for thread in calls {
                thread.pin(arguments.core)?;
            }
            for thread in others {
                thread.pin(arguments.other_core)?;
            }
        }
        for helper in &self.helpers {
            for thread in account::threads(i32::try_from(helper.pid())?)? {
                thread.pin(arguments.other_core)?;
            }
        }
        account::pin_self(arguments.other_core)
    }

    /// Makes those who work off the records give way, those too that have been started meanwhile.
    pub(crate) fn step_back(&self) -> anyhow::Result<()> {
        for pid in &self.later {
            for thread in account::threads(*pid)? {
                thread.step_back(NICE)?;
            }
        }
        Ok(())
    }

    /// Calls Tollgate with every key until all are known; those for which there is no time are
    /// left out.
    fn acquaint(&mut self, within: Duration) -> anyhow::Result<()> {
        let process = self.tollgate().process;
        let mut known = FIRST_KEYS.min(self.keys.len());
        self.visit(&self.keys[..known])?;
        let before = account::heap(process)?;
        let begin = Instant::now();
        for keys in self.keys[known..].chunks(VISITED_AT_ONCE) {
            if begin.elapsed() > within {
                break;
            }
            self.visit(keys)?;
            known += keys.len();
        }
        self.acquainted.called_in = begin.elapsed();
        let more = to_f64(known.saturating_sub(FIRST_KEYS).max(1));
        self.acquainted.bytes_each = (account::heap(process)? - before) / more;
        self.keys.truncate(known);
        Ok(())
    }

    fn visit(&self, keys: &[String]) -> anyhow::Result<()> {
        let requests = requests::with_keys(Ask::Small, keys);
        let mut last = Outcome::default();
        for _ in 0..VISITS_MAX {
            let mut load = Load::open(self.tollgate().port, VISITORS, Rc::clone(&requests), 0)?;
            last = load.once_each()?;
            if last.bad() == 0 {
                return Ok(());
            }
        }
        anyhow::bail!("not every key is accepted: {:?}", last.by_status)
    }

    /// Tells nginx's Lua the keys.
    fn teach_lua(&self, surroundings: &Surroundings) -> anyhow::Result<()> {
        let Some(lua) = self.contenders.iter().find(|it| it.name == "nginx Lua") else {
            return Ok(());
        };
        fs::write(surroundings.lua_keys(), self.keys.join("\n"))?;
        let load = b"GET /load HTTP/1.1\r\nhost: lua\r\n\r\n".to_vec();
        let outcome = Load::open(lua.port, 1, vec![load].into(), 0)?.once_each()?;
        anyhow::ensure!(outcome.good() == 1, "nginx Lua: {:?}", outcome.by_status);
        Ok(())
    }

    /// The first so many keys, or all.
    pub(crate) fn some_keys(&self, count: usize) -> &[String] {
        &self.keys[..count.min(self.keys.len())]
    }

    pub(crate) fn tollgate(&self) -> &Contender {
        &self.contenders[0]
    }

    /// Threads by what they do while a contender is measured.
    fn groups(&self, contender: &Contender) -> anyhow::Result<Groups> {
        let (calls, others) = split(contender)?;
        let mut helpers = Vec::new();
        for helper in &self.helpers {
            helpers.extend(account::threads(i32::try_from(helper.pid())?)?);
        }
        Ok(Groups::from([
            (PROXY, calls),
            (CONTROL, others),
            (UPSTREAM, helpers),
            (LOAD, account::own_threads()?),
        ]))
    }

    /// Load on a contender.
    pub(crate) fn lane(
        &self,
        contender: &Contender,
        connections: usize,
        requests: &Requests,
        pace: Pace,
    ) -> anyhow::Result<Lane> {
        let load = Load::open(contender.port, connections, Rc::clone(requests), 1)?;
        Ok(Lane {
            name: contender.name.to_owned(),
            load,
            pace,
            groups: self.groups(contender)?,
            figures: Vec::new(),
        })
    }

    /// Who was measured, and where.
    pub(crate) fn describe(&self, section: &mut Section, arguments: &Arguments) {
        let line = |it: &Contender| {
            format!(
                "{} {} (port {}, pid {})",
                it.name, it.version, it.port, it.process
            )
        };
        let all: Vec<String> = self.contenders.iter().map(line).collect();
        section.say(&format!(
            "Core {} has the proxy's threads that carry calls, core {} everything else: load, \
             upstream, the gateway's other threads, and the rest of Tollgate (what works off the \
             records at nice {NICE}). {} rounds of slices of {} ms; medians, ratios round by round \
             with the middle half in brackets. {} keys of {} organisations, each with a daily \
             quota; 100 of them are in use where nothing else is said.",
            arguments.core,
            arguments.other_core,
            arguments.rounds,
            arguments.slice_millis,
            self.keys.len(),
            arguments.organisations,
        ));
        section.say(&format!("Measured: {}.", all.join("; ")));
        let Acquainted {
            made_in,
            called_in,
            quiet_after,
            ..
        } = self.acquainted;
        section.say(&format!(
            "The keys were made in {:.0} s and called for the first time in {:.0} s; {}",
            made_in.as_secs_f64(),
            called_in.as_secs_f64(),
            match quiet_after {
                Some(after) => format!("Tollgate was quiet {:.0} s later.", after.as_secs_f64()),
                None => "Tollgate was not quiet before it was measured.".to_owned(),
            },
        ));
        for missing in &self.missing {
            section.say(&format!("Left out: {missing}."));
        }
    }
}

/// Waits until all of Tollgate has worked off what there was; how long that took.
async fn quiet(system: &System) -> anyhow::Result<Option<Duration>> {
    let pids = system.pids("tollgate")?;
    let process = *pids.first().context("no process of its own")?;
    let begin = Instant::now();
    let mut seconds = 0;
    while seconds < QUIET_SECONDS {
        let (before, since) = (account::taken(process)?, Instant::now());
        tokio::time::sleep(Duration::from_secs(1)).await;
        let share = (account::taken(process)? - before) / since.elapsed().as_secs_f64();
        seconds = match share <= QUIET_SHARE {
            true => seconds + 1,
            false => 0,
        };
        if begin.elapsed() > QUIET_WITHIN {
            return Ok(None);
        }
    }
    Ok(Some(begin.elapsed()))
}

/// Threads that carry calls, and others.
fn split(contender: &Contender) -> anyhow::Result<(Vec<Thread>, Vec<Thread>)> {
    let threads = account::threads(contender.process)?;
    match threads.iter().any(Thread::is_edge) {
        true => Ok(threads.into_iter().partition(Thread::is_edge)),
        false => Ok((threads, Vec::new())),
    }
}

/// Starts this program in another role, at a port.
pub(crate) fn role(folder: &Path, role: &str, port: u16) -> anyhow::Result<Process> {
    let log = folder.join(format!("{role}.log"));
    let spec = ProcessSpec::new(role, std::env::current_exe()?, log);
    Process::start(&spec.args([role.to_owned(), "--port".to_owned(), port.to_string()]))
}

/// Makes the service whose upstream is ours.
pub(crate) async fn offer(system: &System, upstream: u16) -> anyhow::Result<()> {
    let request = SetServiceRequest {
        name: "edge".to_owned(),
        upstream_url: Some(format!("http://127.0.0.1:{upstream}")),
        base_cost_per_call: Some(1),
        active: Some(true),
        default_scope: Some(TERMS.scope.to_owned()),
        ..Default::default()
    };
    system.keys()?.set_service(request).await?;
    Ok(())
}

/// The gateway of the running system, once it knows the service.
async fn tollgate(system: &System) -> anyhow::Result<Contender> {
    let gateways = system.gateways()?;
    let gateway = gateways.first().context("no gateway")?;
    let port = url::Url::parse(&gateway.url)?.port().context("no port")?;
    let program = system.program()?;
    let asked = std::process::Command::new(program)
        .arg("--version")
        .output()?;
    let text = String::from_utf8_lossy(&asked.stdout).into_owned();
    let version = text
        .split_whitespace()
        .nth(1)
        .context("no version")?
        .to_owned();
    let pids = system.pids("gateway")?;
    let contender = Contender::tollgate(version, port, *pids.first().context("no process")?);
    let edges = account::threads(contender.process)?;
    let edges = edges.iter().filter(|thread| thread.is_edge()).count();
    anyhow::ensure!(
        edges == 1,
        "{edges} threads carry calls: set TOLLGATE_GATEWAY_THREADS=1"
    );
    let key = system.text("/demo/live_key")?;
    let requests: Requests = vec![
        format!("GET /api/v1/edge/small HTTP/1.1\r\nhost: x\r\nx-api-key: {key}\r\n\r\n")
            .into_bytes(),
    ]
    .into();
    eventually(KNOWN_WITHIN, "the gateway knows the service", async || {
        let mut load = Load::open(port, 1, Rc::clone(&requests), 0)?;
        let outcome = load.once_each()?;
        // The key has no scope for it: it is refused, but not for want of a service.
        anyhow::ensure!(
            outcome.by_status.contains_key(&403),
            "{:?}",
            outcome.by_status
        );
        Ok(())
    })
    .await?;
    Ok(contender)
}

/// Thousands of connections need descriptors.
fn raise_limit() -> anyhow::Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    Ok(setrlimit(Resource::Nofile, limit)?)
}
