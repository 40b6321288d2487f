//! `tollgate dev`: the whole system on one machine, kept alive until told to stop.
//!
//! - Everything it starts dies with it, even when it is killed; the next start recovers.
//! - What it prints works when it is printed: every process answers, and the gateways know the
//!   demo services.

mod events;
pub(crate) mod layout;
mod plan;
mod probe;
mod quickstart;
mod ready;
mod secrets;
mod stack;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use runtime::Variables;
use testkit::servers::{Options, Servers};
use tokio_util::sync::CancellationToken;

pub(crate) use self::ready::Ready;

use self::events::Events;
use self::layout::Layout;
use self::plan::{Plan, Ports};
use self::secrets::Secrets;
use self::stack::Stack;
use crate::failure::Result;
use crate::output::Output;
use crate::roster::known_variables;
use crate::signals::Signals;

/// Runs everything on this machine.
#[derive(Args)]
#[command(after_help = "Examples:
  tollgate dev                              in ./.tollgate, on the default ports
  tollgate dev --ports auto --data /tmp/a   a second one beside it
  tollgate dev --processes --gateways 2     every service a process of its own, to kill and watch")]
pub(crate) struct Dev {
    /// How ports are chosen
    #[arg(long, value_enum, default_value_t = Ports::Default)]
    ports: Ports,
    /// Keep no data
    #[arg(long)]
    ephemeral: bool,
    /// Run each service as a process of its own
    #[arg(long)]
    processes: bool,
    /// How many gateways
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = gateways())]
    gateways: u16,
    /// The sample upstreams note every answered call in this file
    #[arg(long, value_name = "FILE", hide = true)]
    transcript: Option<PathBuf>,
    /// PostgreSQL listens here
    #[arg(long, value_name = "PORT", hide = true)]
    postgres_port: Option<u16>,
    /// The services reach PostgreSQL through this port, where a proxy listens
    #[arg(long, value_name = "PORT", hide = true)]
    postgres_proxy: Option<u16>,
}

fn gateways() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(1..=64)
}

/// Variables that `dev` sets unless whoever started it has set them.
const OPTIONAL: [&str; 9] = [
    "NATS_URL",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_TRACES_SAMPLER",
    "TOLLGATE_GATEWAY_COUNTRY_DB",
    "TOLLGATE_GATEWAY_TRUSTED_HOPS",
    "TOLLGATE_GATEWAY_UPSTREAM_NETWORKS",
    "TOLLGATE_KEYS_SMTP_URL",
    "TOLLGATE_KEYS_UPSTREAM_NETWORKS",
];

/// What the environment has an opinion on already. The children inherit it.
#[derive(Default)]
struct Surroundings {
    given: BTreeMap<&'static str, String>,
}

impl Surroundings {
    fn read() -> Result<Self> {
        let mut variables = Variables::from_process();
        let mut value = |name| Some((name, variables.optional(name, "see `config`")?));
        let given = OPTIONAL.into_iter().filter_map(&mut value).collect();
        variables.finish(&known_variables())?;
        Ok(Self { given })
    }

    fn has(&self, name: &str) -> bool {
        self.given.contains_key(name)
    }

    /// A NATS that is not ours, which is ours to use.
    fn nats_url(&self) -> Option<String> {
        self.given.get("NATS_URL").cloned()
    }

    fn has_exporter(&self) -> bool {
        self.has("OTEL_EXPORTER_OTLP_ENDPOINT") || self.has("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    }
}

/// What the children find around them: the environment, and what runs in this process.
struct Outside<'a> {
    surroundings: &'a Surroundings,
    traces: Option<&'a testkit::traces::Receiver>,
    mail: Option<&'a testkit::mail::Sink>,
}

pub(crate) async fn run(args: Dev, data: Option<&Path>, output: &Output) -> Result {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(false)
        .init();
    let surroundings = Surroundings::read()?;
    let folder = data.unwrap_or(Path::new(layout::FOLDER));
    let layout = Layout::open(folder, args.ephemeral).await?;
    let secrets = Secrets::load_or_create(&layout.secrets())?;
    Secrets::make_pepper(&layout.peppers())?;
    let plan = Plan::make(args.processes, args.gateways, args.ports)?;
    let mut signals = Signals::listen()?;

    let progress = output.progress("starting PostgreSQL, Redis and NATS");
    let mut options = match layout.servers() {
        Some(folder) => Options::persistent(folder),
        None => Options::ephemeral(),
    };
    options.ports.postgres = args.postgres_port;
    let servers = tokio::select! {
        servers = Servers::start(&options) => servers?,
        () = signals.next() => return Ok(()),
    };
    let stop = CancellationToken::new();
    let traces = match surroundings.has_exporter() {
        true => None,
        false => Some(testkit::traces::serve(0, plan.traces, stop.clone()).await?),
    };
    let mail = match surroundings.has("TOLLGATE_KEYS_SMTP_URL") {
        true => None,
        false => Some(testkit::mail::serve(0, 0).await?),
    };
    let outside = Outside {
        surroundings: &surroundings,
        traces: traces.as_ref(),
        mail: mail.as_ref(),
    };
    let events = Events::new(*output);
    let mut stack = Stack::new(&args, &layout, &plan, secrets, &servers, &events);
    let sink = events.sink();
    let done = tokio::select! {
        done = stack.run(&outside, folder, progress) => done,
        () = servers.keep_alive(&sink) => Ok(()),
        () = signals.next() => Ok(()),
    };

    layout.remove_ready()?;
    output.note("stopping; once more stops at once");
    let orderly = async {
        stack.stop().await;
        servers.stop().await;
        stop.cancel();
        match traces {
            Some(traces) => traces.finished().await,
            None => Ok(()),
        }
    };
    tokio::select! {
        stopped = orderly => stopped?,
        () = signals.next() => output.note("stopped at once"),
    }
    layout.remove_ephemeral()?;
    done
}
