//! Private PostgreSQL, Redis or Valkey, and NATS on loopback.
//!
//! Tests and `tollgate dev` start them through the same code. All three are found before the first
//! is started, so what a machine lacks is said at once.

mod find;
mod home;
mod nats;
mod postgres;
mod redis;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

pub use find::{Binary, Locations, Version};
pub use nats::Links;

use self::find::Wanted;
use self::home::Home;
use crate::ports;
use crate::processes::{
    Kept, OnEvent, Process, ProcessSpec, Signal, User, clean_leftover, keep_alive,
};

/// A private PostgreSQL.
pub type Postgres = Server<postgres::Postgres>;
/// A private Redis or Valkey.
pub type Redis = Server<redis::Redis>;
/// A private NATS with JetStream.
pub type Nats = Server<nats::Nats>;

/// From start to the first real answer.
const READY_WITHIN: Duration = Duration::from_secs(60);
const READY_INTERVAL: Duration = Duration::from_millis(10);
/// One probe may hang, as a paused server does.
const PROBE_WITHIN: Duration = Duration::from_secs(2);
const TRANSIENT_INTERVAL: Duration = Duration::from_millis(200);

/// Ports to listen on; a free one each where there is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ports {
    pub postgres: Option<u16>,
    pub redis: Option<u16>,
    pub nats: Option<u16>,
}

/// How servers are started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Keeps their data, one folder each. Without one they live in a temporary folder that goes
    /// with them.
    pub data_dir: Option<PathBuf>,
    pub locations: Locations,
    pub ports: Ports,
    /// Does PostgreSQL wait for the disk? Only a machine that fails can tell the difference: data
    /// survive a killed server either way.
    pub fsync: bool,
    /// JetStream's `sync_interval`: `always`, or a time like `1m`. Left out for servers that do not
    /// know it.
    pub nats_sync_interval: Option<String>,
    /// Largest message NATS takes.
    pub nats_payload_bytes_max: u32,
    /// Ports on which the members of a cluster of NATS meet, the server's own first; none: it is
    /// alone.
    pub nats_cluster: Vec<u16>,
}

impl Options {
    /// Free ports, a temporary folder, no waiting for the disk.
    #[must_use]
    pub fn ephemeral() -> Self {
        Self {
            data_dir: None,
            locations: Locations::from_env(),
            ports: Ports::default(),
            fsync: false,
            nats_sync_interval: None,
            nats_payload_bytes_max: 1 << 20,
            nats_cluster: Vec::new(),
        }
    }

    /// Free ports, data kept in `data_dir`, written through to the disk.
    pub fn persistent(data_dir: impl Into<PathBuf>) -> Self {
        let nats_sync_interval = Some("always".to_owned());
        let data_dir = Some(data_dir.into());
        Self {
            data_dir,
            fsync: true,
            nats_sync_interval,
            ..Self::ephemeral()
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::ephemeral()
    }
}

/// All three.
#[derive(Debug)]
pub struct Servers {
    pub postgres: Postgres,
    pub redis: Redis,
    pub nats: Nats,
}

impl Servers {
    /// Starts all three at the same time; if one fails, none is left.
    pub async fn start(options: &Options) -> Result<Self> {
        let missing = [
            Postgres::find(options).err(),
            Redis::find(options).err(),
            Nats::find(options).err(),
        ];
        let missing: Vec<String> = missing
            .into_iter()
            .flatten()
            .map(|e| e.to_string())
            .collect();
        ensure!(missing.is_empty(), "{}", missing.join("; "));
        let (postgres, redis, nats) = tokio::try_join!(
            Postgres::start(options),
            Redis::start(options),
            Nats::start(options),
        )?;
        Ok(Self {
            postgres,
            redis,
            nats,
        })
    }

    /// Starts again whichever dies, until [`Servers::stop`].
    pub async fn keep_alive(&self, on_event: &OnEvent) {
        tokio::join!(
            self.postgres.keep_alive(on_event),
            self.redis.keep_alive(on_event),
            self.nats.keep_alive(on_event),
        );
    }

    /// Stops all three in order, each within its bound.
    pub async fn stop(&self) {
        tokio::join!(self.postgres.stop(), self.redis.stop(), self.nats.stop());
    }
}

/// What differs from one kind of server to the next.
pub trait Kind: private::Sealed + Sized + Send + Sync + 'static {
    #[doc(hidden)]
    const NAME: &'static str;
    /// Parts of a message before exit that mean: try again soon.
    #[doc(hidden)]
    const TRANSIENT: &'static [&'static str] = &[];
}

mod private {
    use super::{
        Binary, Future, Home, Options, PathBuf, ProcessSpec, Result, Signal, User, Wanted,
    };

    /// The part of [`super::Kind`] that nobody outside needs to see.
    pub trait Sealed: Sized {
        /// What to look for.
        fn wanted() -> &'static Wanted;
        /// What the caller named.
        fn named(options: &Options) -> Option<&PathBuf>;
        /// The port the caller named.
        fn port(options: &Options) -> Option<u16>;
        /// Who has to run it, if we may not.
        fn user() -> Result<Option<User>> {
            Ok(None)
        }
        /// Makes of an empty folder one that the server starts in.
        fn prepare(
            home: &Home,
            binary: &Binary,
            options: &Options,
        ) -> impl Future<Output = Result<Self>> + Send;
        /// Removes what would keep it from starting again.
        fn clear(&self, _home: &Home) -> Result<()> {
            Ok(())
        }
        /// The command.
        fn spec(&self, home: &Home, port: u16) -> ProcessSpec;
        /// Asks it something real.
        fn probe(&self, port: u16, pid: u32) -> impl Future<Output = Result<(), String>> + Send;
        /// Ends it at once, but leaving nothing behind, before it is killed.
        fn quit_signal() -> Option<Signal> {
            None
        }
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server<K: Kind> {
    kind: K,
    binary: Binary,
    port: u16,
    process: Mutex<Process>,
    /// Held while starting and stopping, so that the two never overlap.
    changing: tokio::sync::Mutex<()>,
    stopping: CancellationToken,
    /// Last, so that the folder goes after the process.
    home: Home,
}

impl<K: Kind> Server<K> {
    fn find(options: &Options) -> Result<Binary> {
        let named = K::named(options).map(PathBuf::as_path);
        K::wanted()
            .find(named, &options.locations)
            .map_err(|line| anyhow!(line))
    }

    /// Starts one; it has answered a request when this returns.
    pub async fn start(options: &Options) -> Result<Self> {
        let binary = Self::find(options)?;
        let home = Home::open(K::NAME, K::user()?, options)?;
        clean_leftover(&home.path("pid")).await?;
        let kind = K::prepare(&home, &binary, options).await?;
        let port = match K::port(options) {
            Some(port) => {
                ensure!(
                    ports::is_free(port),
                    "{}: port {port} is taken by another",
                    K::NAME
                );
                port
            }
            None => ports::free(),
        };
        let process = launch(&kind, &home, port).await?;
        tracing::info!(server = K::NAME, port, pid = process.pid(), "uses {binary}");
        if let Some(warning) = &binary.warning {
            tracing::warn!(server = K::NAME, "{warning}");
        }
        Ok(Self {
            kind,
            binary,
            port,
            process: Mutex::new(process),
            changing: tokio::sync::Mutex::default(),
            stopping: CancellationToken::new(),
            home,
        })
    }

    /// The program that was taken, and where it was found.
    #[must_use]
    pub fn binary(&self) -> &Binary {
        &self.binary
    }

    /// The program's version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.binary.version
    }

    /// The port on 127.0.0.1; it stays the same over restarts.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The present process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.lock().pid()
    }

    /// Where its data are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.home.folder
    }

    /// SIGKILL for it and its children.
    pub fn kill(&self) {
        self.process.lock().kill();
    }

    /// Stops it in the middle of whatever it does; connections stay open and get no answer.
    pub fn pause(&self) {
        self.process.lock().pause();
    }

    /// Goes on after [`Server::pause`].
    pub fn resume(&self) {
        self.process.lock().resume();
    }

    /// Waits until its present life ends.
    pub async fn wait_exit(&self) -> ExitStatus {
        let process = self.process.lock().clone();
        process.wait_exit().await
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        self.process.lock().log_tail()
    }

    /// Stops it in order; it is not kept alive any more.
    pub async fn stop(&self) -> ExitStatus {
        self.stopping.cancel();
        let _changing = self.changing.lock().await;
        let process = self.process.lock().clone();
        process.stop().await
    }

    /// Stops it in order if it runs, and starts it again on the same port and data.
    pub async fn restart(&self) -> Result<()> {
        let _changing = self.changing.lock().await;
        let process = self.process.lock().clone();
        process.stop().await;
        self.launch_again().await.map(drop)
    }

    /// Starts it again whenever it dies, until [`Server::stop`].
    pub async fn keep_alive(&self, on_event: &OnEvent) {
        keep_alive(self, on_event).await;
    }

    async fn launch_again(&self) -> Result<Process> {
        let process = launch(&self.kind, &self.home, self.port).await?;
        *self.process.lock() = process.clone();
        Ok(process)
    }
}

impl<K: Kind> Kept for Server<K> {
    fn name(&self) -> &str {
        K::NAME
    }

    fn process(&self) -> Process {
        self.process.lock().clone()
    }

    fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    async fn start_again(&self) -> Result<Process> {
        let _changing = self.changing.lock().await;
        let present = self.process.lock().clone();
        if present.exit_status().is_none() {
            return Ok(present);
        }
        ensure!(!self.stopping.is_cancelled(), "stopping");
        self.launch_again().await
    }
}

impl<K: Kind> Drop for Server<K> {
    fn drop(&mut self) {
        const QUIT_WITHIN: Duration = Duration::from_secs(1);
        let process = self.process.get_mut();
        if let Some(signal) = K::quit_signal() {
            process.signal(signal);
            process.resume();
            process.wait_exit_blocking(QUIT_WITHIN);
        }
        process.kill();
    }
}

/// Starts the process and waits for its first answer.
async fn launch<K: Kind>(kind: &K, home: &Home, port: u16) -> Result<Process> {
    let deadline = Instant::now() + READY_WITHIN;
    let mut spec = kind.spec(home, port);
    spec.pid_file = Some(home.path("pid"));
    spec.directory = Some(home.folder.clone());
    spec.user.clone_from(&home.user);
    loop {
        kind.clear(home)?;
        let process = Process::start(&spec)?;
        let Err(error) = ready(kind, &process, port, deadline).await else {
            return Ok(process);
        };
        let tail = process.log_tail();
        let transient = K::TRANSIENT.iter().any(|part| tail.contains(part));
        if !transient || Instant::now() > deadline {
            let log = spec.log.display();
            return Err(error).with_context(|| format!("{} did not start; {log}: {tail}", K::NAME));
        }
        sleep(TRANSIENT_INTERVAL).await;
    }
}

async fn ready<K: Kind>(kind: &K, process: &Process, port: u16, deadline: Instant) -> Result<()> {
    loop {
        let probe = timeout(PROBE_WITHIN, kind.probe(port, process.pid())).await;
        // First of all: who answered must be the one we started.
        if let Some(status) = process.exit_status() {
            bail!("it ended at once: {status}");
        }
        let seen = match probe {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(seen)) => seen,
            Err(_elapsed) => format!("no answer within {PROBE_WITHIN:?}"),
        };
        ensure!(
            Instant::now() < deadline,
            "not ready after {READY_WITHIN:?}: {seen}"
        );
        sleep(READY_INTERVAL).await;
    }
}
