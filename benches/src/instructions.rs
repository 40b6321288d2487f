//! Instructions of an admitted call, counted by callgrind: repeatable, unlike seconds.
//!
//! A further gateway of the running system is started under valgrind, everything on, and called
//! over one connection. Between two dumps there are so many calls and nothing else on the thread
//! that carries them. The kernel's part is not counted.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    rc::Rc,
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use serde_json::{Map, Value, json};
use testkit::{
    eventually, ports,
    processes::{Process, ProcessSpec},
};

use crate::{
    callgrind::{Cost, Profile},
    edge::{
        load::{Load, Requests},
        requests::{self, Ask},
        setting,
    },
    population::Population,
    report::{Report, to_f64},
    system::System,
};

/// A gateway under valgrind is slow to begin.
const UP_WITHIN: Duration = Duration::from_secs(180);
/// And to end.
const STOP_WITHIN: Duration = Duration::from_secs(60);
/// A dump is written within so long.
const DUMPED_WITHIN: Duration = Duration::from_secs(30);
/// Calls before anything is counted: buffers have grown, the key and its credits are there.
const WARM_UP_CALLS: usize = 1_000;
/// Figures may grow by this share before it is called a regression.
const WORSE_MAX: f64 = 0.03;
/// Functions shown of a profile.
const SHOWN: usize = 60;
/// Callers shown of each of the most expensive functions, and of how many.
const CALLERS: usize = 8;
/// Where an admitted call is carried, by which its thread is known.
const ANSWER: &str = "gateway::listen::express::exchange::Call::forward::{{closure}}";
/// Parts of a call, by what is in the names of their functions. One that the compiler has put into
/// its caller is not there. Valgrind knows no instructions for SHA-256, so hashes are slow here.
const PARTS: [(&str, &str); 7] = [
    ("admitted call", ANSWER),
    ("hash of the key", "types::key::PresentedKey::hash"),
    (
        "request to the upstream",
        "gateway::listen::express::write::request",
    ),
    ("principal", "gateway::principal::Signer::write"),
    ("record", "gateway::meter::Ticket>::record"),
    (
        "journal append",
        "gateway::journal::log::Reservation::append",
    ),
    ("SHA-256", "sha2::sha256::compress256"),
];
/// What the new gateway is told otherwise than the running one.
const OWN: [&str; 6] = [
    "TOLLGATE_GATEWAY_LISTEN",
    "TOLLGATE_GATEWAY_NAME",
    "TOLLGATE_GATEWAY_JOURNAL_DIR",
    "TOLLGATE_GATEWAY_THREADS",
    "TOLLGATE_GRPC_LISTEN",
    "TOLLGATE_OPS_LISTEN",
];

/// How much is counted, and with what it is compared.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Calls that are counted
    #[arg(long, default_value_t = 2_000)]
    calls: usize,
    /// Figures of before
    #[arg(long, default_value = "benches/instructions.json")]
    kept: PathBuf,
    /// Keep the new ones
    #[arg(long)]
    update: bool,
    /// Write the whole profile there
    #[arg(long)]
    profile: Option<PathBuf>,
}

pub(crate) async fn run(system: &System, arguments: Arguments) -> anyhow::Result<Report> {
    let mut report = Report::new("instructions");
    if Command::new("valgrind").arg("--version").output().is_err() {
        report.row("skipped", "valgrind is not installed");
        return Ok(report);
    }
    let profile = measure(system, arguments.calls).await?;
    if let Some(path) = &arguments.profile {
        fs::write(path, describe(&profile, arguments.calls))?;
    }
    let figures = figures(&profile, arguments.calls);
    let kept = Kept::read(&arguments.kept)?;
    let mut worse = Vec::new();
    for (name, now) in &figures {
        let before = kept.figures.get(name).copied();
        let change = before.map(|before| now / before - 1.0);
        let text = match (before, change) {
            (Some(before), Some(change)) => {
                format!("{now:.0}, kept {before:.0}, {:+.1} %", change * 100.0)
            }
            _ => format!("{now:.0}, new"),
        };
        if change.is_some_and(|change| change > WORSE_MAX) {
            worse.push(format!("{name}: {text}"));
        }
        report.row(name, text);
        report.figure(name, *now);
    }
    let compiler = compiler()?;
    if kept.compiler.as_ref().is_some_and(|kept| *kept != compiler) {
        report.row(
            "compiler",
            format!("{compiler}; the kept figures are of another"),
        );
    }
    if arguments.update || kept.figures.is_empty() {
        let figures: Map<String, Value> = figures
            .into_iter()
            .map(|(name, count)| (name, Value::from(count.round())))
            .collect();
        let text = json!({ "compiler": compiler, "instructions_a_call": figures });
        fs::write(&arguments.kept, format!("{text:#}\n"))?;
        return Ok(report);
    }
    if !worse.is_empty() {
        report.print();
        anyhow::bail!(
            "more than {:.0} % more instructions a call (UPDATE=1 accepts them): {}",
            WORSE_MAX * 100.0,
            worse.join("; ")
        );
    }
    Ok(report)
}

/// What an earlier run has kept.
#[derive(Default)]
struct Kept {
    compiler: Option<String>,
    figures: BTreeMap<String, f64>,
}

impl Kept {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            text => text?,
        };
        let value: Value = serde_json::from_str(&text)?;
        let figures = value["instructions_a_call"]
            .as_object()
            .into_iter()
            .flatten();
        Ok(Self {
            compiler: value["compiler"].as_str().map(str::to_owned),
            figures: figures
                .filter_map(|(name, count)| Some((name.clone(), count.as_f64()?)))
                .collect(),
        })
    }
}

fn compiler() -> anyhow::Result<String> {
    let asked = Command::new("rustc").arg("--version").output()?;
    Ok(String::from_utf8_lossy(&asked.stdout).trim().to_owned())
}

fn figures(profile: &Profile, calls: usize) -> BTreeMap<String, f64> {
    let each = |count: u64| to_f64(usize::try_from(count).unwrap_or(usize::MAX)) / to_f64(calls);
    let parts = PARTS
        .iter()
        .filter_map(|(name, part)| Some(((*name).to_owned(), each(profile.inclusive(part)?))));
    let whole = ("a call".to_owned(), each(profile.total));
    parts.chain([whole]).collect()
}

/// Where the instructions of a call go.
fn describe(profile: &Profile, calls: usize) -> String {
    let calls = u64::try_from(calls).unwrap_or(u64::MAX).max(1);
    let mut text = format!("{} instructions a call\n", profile.total / calls);
    let inclusive: fn(&Cost) -> u64 = |cost| cost.inclusive;
    for (title, by) in [
        ("with all they called", inclusive),
        ("their own", |cost| cost.own),
    ] {
        text += &format!("\n{title}:\n");
        for (name, cost) in profile.top(by).into_iter().take(SHOWN) {
            text += &format!("{:>8}  {name}\n", cost / calls);
        }
    }
    text += "\ntheir callers:\n";
    for (name, cost) in profile.top(|cost| cost.own).into_iter().take(CALLERS) {
        text += &format!("{:>8}  {name}\n", cost / calls);
        for (caller, cost) in profile.callers(name).into_iter().take(CALLERS) {
            text += &format!("{:>8}    by {caller}\n", cost / calls);
        }
    }
    text
}

/// Starts the gateway, calls it, and reads what its thread did.
async fn measure(system: &System, calls: usize) -> anyhow::Result<Profile> {
    let folder = setting::Folder::make("instructions")?;
    let upstream = ports::free();
    let served = setting::role(folder.path(), "serve-upstream", upstream)?;
    setting::offer(system, upstream).await?;
    let port = ports::free();
    let gateway = start(system, folder.path(), port)?;
    let population = Population::on_terms(system, 1, 1, setting::TERMS).await?;
    let keys: Vec<String> = population.keys.into_iter().map(|key| key.text).collect();
    let one = requests::with_keys(Ask::Small, &keys);
    let answers = eventually(UP_WITHIN, "the gateway carries calls", async || {
        let outcome = Load::open(port, 1, Rc::clone(&one), 0)?.once_each()?;
        anyhow::ensure!(outcome.good() == 1, "{:?}", outcome.by_status);
        Ok(())
    });
    answers.await.with_context(|| gateway.log_tail())?;
    let repeated = |count: usize| -> Requests { (0..count).map(|_| one[0].clone()).collect() };
    call(port, repeated(WARM_UP_CALLS))?;
    dump(&gateway, folder.path(), 1).await?;
    call(port, repeated(calls))?;
    let files = dump(&gateway, folder.path(), 2).await?;
    gateway.stop().await;
    drop(served);
    let mut carrying = None;
    for file in files {
        let profile = Profile::read(&file)?;
        if profile.inclusive(ANSWER).is_some() {
            anyhow::ensure!(carrying.is_none(), "two threads carry calls");
            carrying = Some(profile);
        }
    }
    carrying.context("no thread carries calls")
}

fn call(port: u16, requests: Requests) -> anyhow::Result<()> {
    let outcome = tokio::task::block_in_place(|| Load::open(port, 1, requests, 0)?.once_each())?;
    anyhow::ensure!(outcome.bad() == 0, "{:?}", outcome.by_status);
    Ok(())
}

/// A gateway like the running one, under valgrind, with an address and a journal of its own.
fn start(system: &System, folder: &Path, port: u16) -> anyhow::Result<Process> {
    let pids = system.pids("gateway")?;
    let pid = pids.first().context("no gateway")?;
    let environment = fs::read(format!("/proc/{pid}/environ"))?;
    let program = fs::read_link(system.program()?)?;
    let valgrind = ["/usr/bin/valgrind", "/usr/local/bin/valgrind"].into_iter();
    let valgrind = valgrind.map(Path::new).find(|path| path.exists());
    let mut spec = ProcessSpec::new(
        "callgrind",
        valgrind.context("no valgrind in /usr/bin")?,
        folder.join("log"),
    );
    spec.stop_within = STOP_WITHIN;
    for pair in environment.split(|byte| *byte == 0) {
        let pair = String::from_utf8_lossy(pair).into_owned();
        if let Some((name, value)) = pair.split_once('=') {
            spec = spec.env(name, value);
        }
    }
    let loopback = |port: u16| format!("127.0.0.1:{port}");
    let own = [
        loopback(port),
        "counted".to_owned(),
        folder.join("journal").display().to_string(),
        "1".to_owned(),
        loopback(ports::free()),
        loopback(ports::free()),
    ];
    for (name, value) in OWN.iter().zip(own) {
        spec = spec.env(*name, value);
    }
    fs::create_dir_all(folder.join("journal"))?;
    let out = format!("--callgrind-out-file={}", folder.join("out").display());
    let spec = spec
        .args(["--tool=callgrind", "--separate-threads=yes", &out])
        .args([program.as_os_str()])
        .args(["serve", "--target=gateway"]);
    Process::start(&spec)
}

/// Has what was counted since the last dump written, a file for each thread.
async fn dump(gateway: &Process, folder: &Path, number: usize) -> anyhow::Result<Vec<PathBuf>> {
    let pid = format!("--pid={}", gateway.pid());
    let told = Command::new("vgdb").args([&pid, "dump"]).output()?;
    let text = String::from_utf8_lossy(&[told.stdout, told.stderr].concat()).into_owned();
    anyhow::ensure!(told.status.success(), "no dump: {text}");
    let files = || -> anyhow::Result<Vec<PathBuf>> {
        let begin = format!("out.{number}-");
        let mut found = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&begin) {
                found.push(entry.path());
            }
        }
        anyhow::ensure!(!found.is_empty(), "no file yet");
        Ok(found)
    };
    eventually(DUMPED_WITHIN, "the dump is there", async || files()).await
}
