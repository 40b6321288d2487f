//! The edge beside other proxies: all of them up together, each on the same core, measured in turns
//! of a fraction of a second. The other core has the load, the upstream, and the rest of Tollgate.

pub(crate) mod account;
pub(crate) mod authoriser;
pub(crate) mod bare;
mod contenders;
mod lanes;
pub(crate) mod load;
mod parts;
mod poll;
pub(crate) mod requests;
mod section;
pub(crate) mod setting;
pub(crate) mod upstream;

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

use self::{lanes::Lane, load::Slice, section::Section, setting::Setting};
use crate::{report::Report, system::System};

/// A part of each slice that is not counted.
const WARM_UP: f64 = 0.2;

/// What is compared, and how long.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Rounds; every figure is the middle of so many
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Milliseconds of a slice
    #[arg(long, default_value_t = 500)]
    slice_millis: u64,
    /// Keys that are made
    #[arg(long, default_value_t = 100_000)]
    keys: usize,
    /// Numbers of them that are compared with one; what there is not is left out
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1_000, 10_000, 100_000])]
    key_steps: Vec<usize>,
    /// Keys for which there is no time are left out: so long they are made, and so long each is
    /// called for the first time
    #[arg(long, default_value_t = 600)]
    making_seconds: u64,
    /// Organisations that have them
    #[arg(long, default_value_t = 1_000)]
    organisations: usize,
    /// Connections that are kept idle
    #[arg(long, default_value_t = 10_000)]
    idle: usize,
    /// Only these parts; only all of them are written into the results
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// Core of what is measured
    #[arg(long, default_value_t = 0)]
    core: usize,
    /// Core of everything else
    #[arg(long, default_value_t = 1)]
    other_core: usize,
    /// Nobody but Tollgate and its bare form
    #[arg(long)]
    alone: bool,
    /// Where the section is
    #[arg(long, default_value = "benches/RESULTS.md")]
    results: PathBuf,
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Part {
    /// Calls a second, every connection always busy
    Closed,
    /// The same with more and more keys
    Keys,
    /// Latency at a given load, and above what can be carried
    Open,
    /// Memory of connections that do nothing
    Idle,
    /// Valid calls beside ten times as many with invalid keys
    Flood,
}

impl Arguments {
    fn has(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    fn slice(&self) -> Slice {
        let whole = Duration::from_millis(self.slice_millis);
        let warm_up = whole.mul_f64(WARM_UP);
        Slice {
            warm_up,
            measured: whole.saturating_sub(warm_up),
        }
    }
}

/// What has been found so far.
struct Findings {
    section: Section,
    report: Report,
}

impl Findings {
    fn figure(&mut self, name: &str, lane: &Lane, value: impl Into<serde_json::Value>) {
        self.report.figure(format!("{name}/{}", lane.name), value);
    }
}

pub(crate) async fn run(system: &System, arguments: Arguments) -> anyhow::Result<Report> {
    let mut setting = Setting::make(system, &arguments).await?;
    let mut found = Findings {
        section: Section::default(),
        report: Report::new("edge"),
    };
    setting.describe(&mut found.section, &arguments);
    // From here on nothing is awaited: the load runs on this thread, and only there.
    tokio::task::block_in_place(|| parts::all(&mut setting, &arguments, &mut found))?;
    found.report.row("", format!("\n{}", found.section.text()));
    if arguments.only.is_empty() && !arguments.alone {
        found.section.write_into(&arguments.results)?;
    }
    Ok(found.report)
}
