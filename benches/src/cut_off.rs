//! One more gateway, of the same program and settings, that can be cut off from the others.

use std::{
    ffi::OsString,
    net::{Ipv4Addr, SocketAddr},
    os::unix::ffi::OsStringExt as _,
    path::PathBuf,
    time::Duration,
};

use anyhow::Context as _;
use testkit::{
    eventually, ports,
    processes::{Process, ProcessSpec},
    proxy::Proxy,
};
use url::Url;

use crate::{
    metrics::Samples,
    system::{Gateway, System, is_ready},
};

/// From the start of the process to its first answer.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// It drains, and waits until its journal is applied.
const STOP_WITHIN: Duration = Duration::from_secs(60);
/// A gateway that is told of changes was told this long ago at most.
const INFORMED_SECONDS: f64 = 0.5;
const NAME: &str = "gateway-cut-off";

/// A running gateway whose ways to NATS and to the keys service can be cut.
pub(crate) struct CutOff {
    pub(crate) gateway: Gateway,
    nats: Proxy,
    keys: Proxy,
    process: Process,
}

impl CutOff {
    /// Starts it beside those of the system, with the first one's environment.
    pub(crate) async fn start(system: &System) -> anyhow::Result<Self> {
        let pids = system.pids("gateway")?;
        let model = pids.first().context("no gateway runs")?;
        let environment = environment_of(*model)?;
        let value = |name: &str| {
            let found = environment.iter().find(|(known, _)| known == name);
            let found = found.and_then(|(_, value)| value.to_str());
            found.with_context(|| format!("the gateway has no {name}"))
        };
        let (nats, nats_url) = proxy(value("NATS_URL")?).await?;
        let (keys, keys_url) = proxy(value("TOLLGATE_KEYS_GRPC_URL")?).await?;
        let journal = PathBuf::from(value("TOLLGATE_GATEWAY_JOURNAL_DIR")?).with_file_name(NAME);
        let listen = || SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free())).to_string();
        let (edge, ops) = (listen(), listen());
        let log = system.data().join("log").join(format!("{NAME}.log"));
        let mut spec = ProcessSpec::new(NAME, system.program()?, log);
        spec = spec.args(["serve", "--target=gateway"]);
        spec.stop_within = STOP_WITHIN;
        spec.env = environment;
        let spec = spec
            .env("NATS_URL", nats_url)
            .env("TOLLGATE_KEYS_GRPC_URL", keys_url)
            .env("TOLLGATE_GATEWAY_JOURNAL_DIR", journal)
            .env("TOLLGATE_GATEWAY_NAME", NAME)
            .env("TOLLGATE_GATEWAY_LISTEN", &edge)
            .env("TOLLGATE_OPS_LISTEN", &ops)
            .env("TOLLGATE_GRPC_LISTEN", listen());
        let process = Process::start(&spec)?;
        let gateway = Gateway {
            url: format!("http://{edge}"),
            ops: format!("http://{ops}"),
        };
        let ready = eventually(READY_WITHIN, "the gateway is ready", || {
            is_ready(&gateway.ops)
        });
        ready.await.with_context(|| process.log_tail())?;
        Ok(Self {
            gateway,
            nats,
            keys,
            process,
        })
    }

    /// No hint of a change reaches it any more.
    pub(crate) fn cut_bus(&self) {
        self.nats.disconnect();
    }

    /// Nor can it ask.
    pub(crate) fn cut_keys(&self) {
        self.keys.disconnect();
    }

    /// Ends all cuts and waits until it is told of changes again.
    pub(crate) async fn heal(&self) -> anyhow::Result<()> {
        self.nats.resume();
        self.keys.resume();
        eventually(READY_WITHIN, "the gateway is told of changes", async || {
            let samples = Samples::read(&self.gateway.ops).await?;
            let stale = samples.largest("tollgate_key_staleness_seconds");
            let stale = stale.context("no staleness")?;
            anyhow::ensure!(stale <= INFORMED_SECONDS, "its news are {stale} s old");
            Ok(())
        })
        .await
    }

    /// Heals it and lets it end in good order, so that what it has billed is settled.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        self.heal().await?;
        let status = self.process.stop().await;
        anyhow::ensure!(status.success(), "the gateway ended with {status}");
        Ok(())
    }
}

/// Its variables, as it was started with them.
fn environment_of(pid: i32) -> anyhow::Result<Vec<(OsString, OsString)>> {
    let bytes = std::fs::read(format!("/proc/{pid}/environ"))?;
    let mut found = Vec::new();
    for variable in bytes.split(|byte| *byte == 0) {
        if let Some(at) = variable.iter().position(|byte| *byte == b'=') {
            let (name, value) = variable.split_at(at);
            let value = value.get(1..).unwrap_or_default();
            let own = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
            found.push((own(name), own(value)));
        }
    }
    Ok(found)
}

/// A proxy in front of an address, and the address with the proxy in its place.
async fn proxy(address: &str) -> anyhow::Result<(Proxy, String)> {
    let mut url: Url = address.parse()?;
    let target = url.socket_addrs(|| None)?;
    let target = target.first().context("nowhere")?;
    let proxy = Proxy::start(*target).await?;
    if url.set_port(Some(proxy.port())).is_err() {
        anyhow::bail!("{address} has no port");
    }
    Ok((proxy, url.to_string()))
}
