//! A process: what its services share, how it starts, serves and stops.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::PgConnectOptions;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::{Routes, RoutesBuilder};

use crate::{
    config::Variables,
    grpc::{Guard, Tokens},
    host::{Host, Stop},
    letters::Letters,
    logs, ops,
    postgres::{self, Pools},
    streams::{self, Streams},
    time::Clock,
    trace::{self, Tracer},
};

/// Every token has at least so many characters.
const TOKEN_CHARS_MIN: usize = 24;

/// What every process needs, whatever runs in it.
pub struct Settings {
    postgres_url: SecretString,
    nats_url: SecretString,
    redis_url: Option<SecretString>,
    grpc_listen: SocketAddr,
    ops_listen: SocketAddr,
    remotes: BTreeMap<&'static str, String>,
    tokens: Tokens,
    stop_limit: Duration,
    stream_replicas: usize,
    log_directives: String,
    log_pretty: bool,
    #[cfg(debug_assertions)]
    crash_at: Option<String>,
    #[cfg(debug_assertions)]
    clock_at: Option<String>,
    #[cfg(debug_assertions)]
    mutant: Option<String>,
    trace: trace::Settings,
}

/// The variable that names where a service is reached, and the service.
const REMOTES: [(&str, &str, &str); 5] = [
    (
        "keys",
        "TOLLGATE_KEYS_GRPC_URL",
        "where keys is reached when it does not run here",
    ),
    (
        "wallet",
        "TOLLGATE_WALLET_GRPC_URL",
        "where wallet is reached when it does not run here",
    ),
    (
        "usage-ingest",
        "TOLLGATE_USAGE_INGEST_GRPC_URL",
        "where usage-ingest is reached when it does not run here",
    ),
    (
        "stats-aggregator",
        "TOLLGATE_STATS_AGGREGATOR_GRPC_URL",
        "where stats-aggregator is reached when it does not run here",
    ),
    (
        "anomaly-detector",
        "TOLLGATE_ANOMALY_DETECTOR_GRPC_URL",
        "where anomaly-detector is reached when it does not run here",
    ),
];

fn token(variables: &mut Variables, name: &'static str, meaning: &'static str) -> SecretString {
    let token = variables.secret(name, meaning);
    let length = token.expose_secret().len();
    if (1..TOKEN_CHARS_MIN).contains(&length) {
        variables.problem(format!(
            "{name} has {length} characters, needs {TOKEN_CHARS_MIN}"
        ));
    }
    token
}

/// Where the services are reached that do not run here.
fn read_remotes(
    variables: &mut Variables,
    services: &[&'static str],
    calls: &[&str],
) -> BTreeMap<&'static str, String> {
    let mut remotes = BTreeMap::new();
    for (service, name, meaning) in REMOTES {
        let url = variables.optional(name, meaning);
        if services.contains(&service) {
            continue;
        }
        match url {
            Some(url) => {
                remotes.insert(service, url);
            }
            None if calls.contains(&service) => variables.problem(format!(
                "{name} environment variable is not set, and {service} does not run here"
            )),
            None => {}
        }
    }
    remotes
}

/// Where PostgreSQL, NATS and Redis are.
fn read_servers(
    variables: &mut Variables,
    services: &[&'static str],
) -> (SecretString, SecretString, Option<SecretString>) {
    let postgres_meaning = "PostgreSQL, e.g. postgres://user:password@host/database; the user \
                            is a member of the two roles of each service that runs here";
    let postgres_url = match services.iter().any(|service| has_tables(service)) {
        true => variables.secret("DATABASE_URL", postgres_meaning),
        false => {
            let url = variables.secret_optional("DATABASE_URL", postgres_meaning);
            url.unwrap_or_default()
        }
    };
    let nats_url = variables.secret(
        "NATS_URL",
        "NATS with JetStream, e.g. nats://host:4222; members of a cluster with commas between",
    );
    let redis_url = variables.secret_optional(
        "REDIS_URL",
        "Redis or Valkey; without it keys are cached in-process only",
    );
    (postgres_url, nats_url, redis_url)
}

impl Settings {
    /// Reads what a process with these services needs. `calls` are the services they call.
    pub fn read(variables: &mut Variables, services: &[&'static str], calls: &[&str]) -> Self {
        let (postgres_url, nats_url, redis_url) = read_servers(variables, services);
        let grpc_listen = variables.address(
            "TOLLGATE_GRPC_LISTEN",
            "127.0.0.1:9090",
            "address of the gRPC services",
        );
        let ops_listen = variables.address(
            "TOLLGATE_OPS_LISTEN",
            "127.0.0.1:9100",
            "address of health, metrics and version",
        );
        let remotes = read_remotes(variables, services, calls);
        let tokens = Tokens {
            service: token(
                variables,
                "TOLLGATE_SERVICE_TOKEN",
                "shared by all services for calls among them, 24 characters or more",
            ),
            operator: token(
                variables,
                "TOLLGATE_OPERATOR_TOKEN",
                "may call every method, 24 characters or more",
            ),
        };
        let stop_limit = variables.seconds(
            "TOLLGATE_STOP_SECONDS",
            30,
            1..=3600,
            "bound for the orderly stop of each service",
        );
        #[cfg(debug_assertions)]
        let crash_at = variables.optional(
            "TOLLGATE_CRASH_AT",
            "debug builds: die at this point, `name:n`, or a folder with a file of them",
        );
        #[cfg(debug_assertions)]
        let clock_at = variables.optional(
            "TOLLGATE_CLOCK_AT",
            "debug builds: a file, or a folder with a file of each process, with the milliseconds \
             by which its clock is off",
        );
        #[cfg(debug_assertions)]
        let mutant = variables.optional(
            "TOLLGATE_MUTANT",
            "debug builds: the protection that is taken away",
        );
        Self {
            postgres_url,
            nats_url,
            redis_url,
            grpc_listen,
            ops_listen,
            remotes,
            tokens,
            stop_limit,
            stream_replicas: streams::read_replicas(variables),
            log_directives: variables.text("RUST_LOG", "info", "what is logged"),
            log_pretty: variables.flag("TOLLGATE_LOG_PRETTY", false, "text instead of JSON"),
            #[cfg(debug_assertions)]
            crash_at,
            #[cfg(debug_assertions)]
            clock_at,
            #[cfg(debug_assertions)]
            mutant,
            trace: trace::Settings::read(variables),
        }
    }
}

/// What services offer over gRPC.
#[derive(Default)]
pub(crate) struct Offers {
    pub(crate) routes: RoutesBuilder,
    pub(crate) names: Vec<&'static str>,
    pub(crate) service_methods: BTreeSet<String>,
    pub(crate) letters: Letters,
}

/// What the hosts of a process share.
pub(crate) struct Shared {
    /// The services with tables that run here, and their pools.
    pub(crate) stores: Mutex<Vec<(&'static str, Pools)>>,
    pub(crate) nats: async_nats::Client,
    pub(crate) streams: Streams,
    pub(crate) redis: Option<redis::aio::ConnectionManager>,
    pub(crate) clock: Clock,
    pub(crate) registry: Mutex<Registry>,
    pub(crate) usage: ops::UsageMetrics,
    pub(crate) offers: Mutex<Offers>,
    pub(crate) tokens: Tokens,
    pub(crate) remotes: BTreeMap<&'static str, String>,
    pub(crate) guard: watch::Receiver<Option<Guard>>,
    pub(crate) ready: AtomicBool,
    /// A service has given up.
    pub(crate) failed: CancellationToken,
    /// What is not ready yet, and why.
    pub(crate) starting: Mutex<Vec<(&'static str, &'static str)>>,
}

/// A process with its services.
pub struct Node {
    shared: Arc<Shared>,
    guard: watch::Sender<Option<Guard>>,
    settings: Settings,
    /// Who logs in at PostgreSQL.
    login: PgConnectOptions,
    hosts: Vec<Host>,
}

impl Node {
    /// Opens listeners' addresses last and connections lazily: nothing here waits for a server.
    ///
    /// # Errors
    /// A URL is malformed, or logging is configured wrongly.
    pub async fn connect(settings: Settings, services: &[&'static str]) -> anyhow::Result<Self> {
        logs::start(&settings.log_directives, settings.log_pretty)?;
        #[cfg(debug_assertions)]
        if let Some(point) = &settings.crash_at {
            crate::crash::arm(point, services)?;
        }
        #[cfg(debug_assertions)]
        if let Some(name) = &settings.mutant {
            crate::crash::mutate(name);
        }
        let login = login(&settings, services.iter().any(|it| has_tables(it)))?;
        let (lost, losses) = watch::channel(0);
        let members: Vec<&str> = settings.nats_url.expose_secret().split(',').collect();
        let nats = async_nats::ConnectOptions::new()
            .name(format!("tollgate {}", services.join(",")))
            .event_callback(move |event| {
                tracing::debug!(%event, "the connection to NATS");
                if matches!(event, async_nats::Event::Disconnected) {
                    lost.send_modify(|losses: &mut u64| *losses += 1);
                }
                std::future::ready(())
            })
            .retry_on_initial_connect()
            .max_reconnects(None)
            .reconnect_delay_callback(|attempt| {
                let millis = u64::try_from(attempt)
                    .unwrap_or(u64::MAX)
                    .saturating_mul(50);
                Duration::from_millis(millis.min(1_000))
            })
            .connect(members)
            .await
            .context("NATS_URL")?;
        let mut jetstream = async_nats::jetstream::new(nats.clone());
        jetstream.set_timeout(Duration::from_secs(5));
        let (guard, guard_seen) = watch::channel(None);
        let mut registry = Registry::default();
        let usage = ops::UsageMetrics::register(registry.sub_registry_with_prefix("tollgate"));
        let shared = Shared {
            stores: Mutex::default(),
            nats,
            streams: Streams::new(jetstream, settings.stream_replicas, losses),
            redis: redis(&settings)?,
            clock: clock(&settings, services)?,
            registry: Mutex::new(registry),
            usage,
            offers: Mutex::default(),
            tokens: settings.tokens.clone(),
            remotes: settings.remotes.clone(),
            guard: guard_seen,
            ready: AtomicBool::new(false),
            failed: CancellationToken::new(),
            starting: Mutex::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
            guard,
            settings,
            login,
            hosts: Vec::new(),
        })
    }

    /// The host of one more service. Services stop in the reverse order of this call.
    ///
    /// # Errors
    /// The exporter of traces is configured wrongly.
    pub fn host(&mut self, name: &'static str) -> anyhow::Result<Host> {
        let pools = Pools::of(name, &self.login);
        if has_tables(name) {
            self.shared.stores.lock().push((name, pools.clone()));
        }
        let host = Host {
            name,
            pools,
            shared: self.shared.clone(),
            tracer: Tracer::start(&self.settings.trace, name)?,
            stop: Stop(CancellationToken::new()),
            tasks: TaskTracker::new(),
        };
        self.hosts.push(host.clone());
        Ok(host)
    }

    /// A connection to PostgreSQL as whoever logs in, in no role of a service: for migrations.
    ///
    /// # Errors
    /// PostgreSQL does not answer.
    pub async fn login(&self) -> sqlx::Result<sqlx::PgConnection> {
        postgres::login(&self.login).await
    }

    /// Opens the listeners, is ready, and serves until `stop` resolves; then stops in order.
    ///
    /// # Errors
    /// A port is taken, or a service gave up.
    pub async fn serve(self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let listening = CancellationToken::new();
        let tracker = TaskTracker::new();
        let grpc = bind("TOLLGATE_GRPC_LISTEN", self.settings.grpc_listen).await?;
        let ops = bind("TOLLGATE_OPS_LISTEN", self.settings.ops_listen).await?;
        let guard = self.guard_of_offers().await?;
        if self.guard.send(Some(guard.clone())).is_err() {
            anyhow::bail!("the services ended before they were served");
        }
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(grpc);
        let server = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(20)))
            .layer(tower::layer::layer_fn(move |_: Routes| guard.clone()))
            .add_routes(Routes::default())
            .serve_with_incoming_shutdown(incoming, listening.clone().cancelled_owned());
        tracker.spawn(async move {
            if let Err(error) = server.await {
                tracing::error!(%error, "the gRPC listener has died");
            }
        });
        tracker.spawn(ops::serve(ops, self.shared.clone(), listening.clone()));
        self.shared.ready.store(true, Ordering::Release);
        let services: Vec<&str> = self.hosts.iter().map(|host| host.name).collect();
        tracing::info!(services = services.join(","), "ready");
        let failed = self.shared.failed.clone();
        tokio::select! {
            () = stop => {}
            () = failed.cancelled() => {}
        }
        self.stop().await;
        listening.cancel();
        tracker.close();
        if tokio::time::timeout(Duration::from_secs(5), tracker.wait())
            .await
            .is_err()
        {
            tracing::warn!("connections were still open after 5 s and were cut");
        }
        anyhow::ensure!(
            !failed.is_cancelled(),
            "a service has given up; the log says why"
        );
        Ok(())
    }

    async fn guard_of_offers(&self) -> anyhow::Result<Guard> {
        let mut offers = std::mem::take(&mut *self.shared.offers.lock());
        std::mem::take(&mut offers.letters).offer(&mut offers);
        let (reporter, health) = tonic_health::server::health_reporter();
        for name in offers.names {
            reporter
                .set_service_status(name, tonic_health::ServingStatus::Serving)
                .await;
        }
        offers.routes.add_service(health);
        let set = proto::FILE_DESCRIPTOR_SET;
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(set)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        offers.routes.add_service(reflection().build_v1()?);
        offers.routes.add_service(reflection().build_v1alpha()?);
        let tracers = self
            .hosts
            .iter()
            .map(|host| (host.name.to_owned(), host.tracer()))
            .collect();
        Ok(Guard::new(
            offers.routes.routes().prepare(),
            self.settings.tokens.clone(),
            Arc::new(offers.service_methods),
            Arc::new(tracers),
        ))
    }

    /// Stops services in the reverse order of their start, each within its bound.
    async fn stop(&self) {
        self.shared.ready.store(false, Ordering::Release);
        for host in self.hosts.iter().rev() {
            host.stop.0.cancel();
            host.tasks.close();
            let limit = self.settings.stop_limit;
            if tokio::time::timeout(limit, host.tasks.wait())
                .await
                .is_err()
            {
                tracing::warn!(service = host.name, "did not stop in time and was cut off");
            }
            let tracer = host.tracer();
            if host.blocking(move || tracer.stop()).await.is_err() {
                tracing::warn!(service = host.name, "its last spans were not exported");
            }
        }
        let flushed = tokio::time::timeout(Duration::from_secs(2), self.shared.nats.flush()).await;
        if !matches!(flushed, Ok(Ok(()))) {
            tracing::warn!("the last messages to NATS were not flushed");
        }
        for host in &self.hosts {
            host.pools.close().await;
        }
    }
}

async fn bind(variable: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("{variable}: cannot listen on {address}; is it taken?"))
}

#[cfg(debug_assertions)]
fn clock(settings: &Settings, services: &[&str]) -> anyhow::Result<Clock> {
    match &settings.clock_at {
        Some(path) => Clock::stepped(path, services).context("TOLLGATE_CLOCK_AT"),
        None => Ok(Clock::system()),
    }
}

#[cfg(not(debug_assertions))]
fn clock(_: &Settings, _: &[&str]) -> anyhow::Result<Clock> {
    Ok(Clock::system())
}

/// A gateway has a journal; everybody else has tables.
fn has_tables(service: &str) -> bool {
    service != "gateway"
}

fn login(settings: &Settings, needed: bool) -> anyhow::Result<PgConnectOptions> {
    let url = settings.postgres_url.expose_secret();
    if !needed && url.is_empty() {
        return Ok(PgConnectOptions::new());
    }
    // The error of a malformed URL could quote the password: it is not shown.
    let login: PgConnectOptions = url
        .parse()
        .map_err(|_quotes_it| anyhow::anyhow!("DATABASE_URL is not a PostgreSQL URL"))?;
    // No statement of ours runs for as long as it takes to compile one, and PostgreSQL compiles for
    // each execution what it expects much of: a table that it has not counted yet is enough.
    Ok(login.options([("jit", "off")]))
}

fn redis(settings: &Settings) -> anyhow::Result<Option<redis::aio::ConnectionManager>> {
    let Some(url) = &settings.redis_url else {
        return Ok(None);
    };
    let client = redis::Client::open(url.expose_secret())
        .map_err(|_quotes_it| anyhow::anyhow!("REDIS_URL is not a Redis URL"))?;
    let config = redis::aio::ConnectionManagerConfig::new()
        .set_number_of_retries(1)
        .set_connection_timeout(Some(Duration::from_millis(500)))
        .set_response_timeout(Some(Duration::from_millis(100)));
    Ok(Some(redis::aio::ConnectionManager::new_lazy_with_config(
        client, config,
    )?))
}
