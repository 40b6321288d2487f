//! Builds the edge, runs it, and stops it in order: no new calls, calls in flight, final counts,
//! everything shipped.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use proto::keys::v1::KeyUse;
use runtime::{Host, Stop};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use types::{Gcra, JournalId, Rate};

use crate::{
    Config,
    catalogue::Catalogue,
    cors::Origins,
    country::Countries,
    edge::Edge,
    hashing::Hashing,
    idempotency::desk::Desk,
    journal::{Journal, Options, Recovered},
    keyring::{Keyring, SealedCopy},
    lease::Account,
    lender::Lender,
    listen::{self, Door},
    metrics::Metrics,
    pool::{Connector, Limits, Pool, checks::Checks},
    principal::Signer,
    recovery,
    retry::Insistence,
    ship::{Shipper, course::Course},
    strangers::{self, Strangers},
    sync,
};

/// Between two rounds of upkeep of the journal: bounds what a power failure can cost.
const UPKEEP_PERIOD: Duration = Duration::from_millis(4);
/// Rates of leases are of so long.
const RATE_PERIOD: Duration = Duration::from_secs(1);
/// Between two heartbeats.
const HEARTBEAT_PERIOD: Duration = Duration::from_secs(1);
/// Between two rounds of asking again what was not answered.
const ASK_PERIOD: Duration = Duration::from_secs(1);
/// Between two looks at whether the gateway may carry calls.
const READY_POLL: Duration = Duration::from_millis(10);

/// Starts the gateway.
///
/// # Errors
/// The address is taken, the journal directory is in use, or a file cannot be read.
pub async fn start(host: &Host, config: Config) -> anyhow::Result<()> {
    let sockets = listen::bind(config.listen, config.threads())?;
    let countries = open_countries(&config)?;
    let (journal, recovered) = open_journal(host, &config).await?;
    let (wallet, name) = (host.channel("wallet")?, config.name.clone());
    let (lender, renewals) = Lender::new(host, wallet, journal.clone(), name);
    let (touches, used) = mpsc::channel(sync::TOUCHES_MAX);
    let (strangers, passed) = Strangers::new(&config);
    let (edge, left) = edge(
        host,
        &config,
        journal.clone(),
        Arc::clone(&lender),
        Arc::clone(&strangers),
        countries,
        touches,
    )?;
    let own = (host.clone(), JournalId::new(journal.id()));
    host.spawn("report-strangers", move |stop| {
        strangers::report(own, strangers, passed, stop)
    });
    let stops = Stops::default();
    let own = sync::Own {
        name: config.name.clone(),
        ended: recovered
            .iter()
            .map(|found| JournalId::new(found.journal.id()))
            .collect(),
    };
    keep_keys(host, &edge, own, used, &stops)?;
    let (keyring, stop) = (Arc::clone(&edge.keyring), stops.background.clone());
    host.spawn("leave-copies", move |_| async move {
        keyring.leave_copies(left, stop).await;
    });
    let keyring = Arc::clone(&edge.keyring);
    host.watch(
        "reload-peppers",
        config.peppers.clone(),
        move |generation| {
            keyring.replace(Hashing::new(generation)?);
            Ok(())
        },
    );
    keep_leases(host, &lender, renewals, &stops);
    upkeep(host, Arc::clone(&edge), stops.background.clone())?;
    let wallet = host.channel("wallet")?;
    for found in recovered {
        let (own, wallet) = (host.clone(), wallet.clone());
        host.spawn("recover-journal", move |stop| {
            recovery::end(own, wallet, found, stop)
        });
    }
    let shipper = Shipper::new(host, journal.clone(), edge.shipped.clone());
    let (own, ending) = (host.clone(), stops.clone());
    host.spawn_vital("ship-journal", move |_| {
        ship_until(shipper, journal, own, ending)
    });
    let own = Arc::clone(&edge);
    Metrics::offer_in_flight(host, move || own.in_flight.load(Ordering::Relaxed));
    let (own, tls, door) = (host.clone(), tls()?, Arc::new(Door::new(host, &config)?));
    host.spawn("edge", move |asked| {
        run(own, (edge, door), config, sockets, tls, asked, stops)
    });
    Ok(())
}

/// What the threads share; and the copies of keys that are to be left.
pub(crate) fn edge(
    host: &Host,
    config: &Config,
    journal: Journal,
    lender: Arc<Lender>,
    strangers: Arc<Strangers>,
    countries: Countries,
    touches: mpsc::Sender<KeyUse>,
) -> anyhow::Result<(Arc<Edge>, mpsc::Receiver<SealedCopy>)> {
    let metrics = Metrics::register(host);
    let (keyring, left) = Keyring::new(
        host,
        config,
        Arc::clone(&lender),
        Arc::clone(&strangers),
        metrics.clone(),
    )?;
    let keyring = Arc::new(keyring);
    let own = Arc::clone(&keyring);
    Metrics::offer_staleness(host, move || own.staleness_seconds());
    let edge = Edge {
        clock: host.clock(),
        ids: host.ids(),
        tracer: host.tracer(),
        journal,
        catalogue: ArcSwap::from_pointee(Catalogue::default()),
        origins: ArcSwap::from_pointee(Origins::default()),
        keyring,
        lender,
        strangers,
        countries,
        desk: Desk::new(host.channel("usage-ingest")?),
        metrics,
        signer: Signer::new(&config.principal_secret)?,
        trusted_hops: config.trusted_hops,
        control: tokio::runtime::Handle::current(),
        draining: AtomicBool::new(false),
        is_cut: AtomicBool::new(false),
        in_flight: AtomicU64::new(0),
        calls_max: config.calls_max,
        tunnels: AtomicU64::new(0),
        disk_cost_min: config.disk_cost_min,
        tunnel_idle: config.tunnel_idle,
        synced: watch::Sender::new(0),
        shipped: watch::Sender::new(0),
        touches,
        complaints: Gcra::default(),
        trace_budget: Gcra::default(),
        trace_rate: Rate {
            per_second: config.traces_per_second,
            burst: config.traces_per_second,
        },
    };
    Ok((Arc::new(edge), left))
}

/// Keeps keys and services young.
fn keep_keys(
    host: &Host,
    edge: &Arc<Edge>,
    own: sync::Own,
    used: mpsc::Receiver<KeyUse>,
    stops: &Stops,
) -> anyhow::Result<()> {
    let hint = Arc::new(Notify::new());
    let (keys, edge, stop) = (
        host.channel("keys")?,
        Arc::clone(edge),
        stops.background.clone(),
    );
    let hinted = Arc::clone(&hint);
    host.spawn("sync-keys", move |_| {
        sync::run(edge, keys, own, hinted, stop)
    });
    let keys = host.channel("keys")?;
    host.spawn("report-uses", |stop| sync::touch(keys, used, stop));
    let own = host.clone();
    host.spawn("hear-changes", move |stop| sync::listen(own, hint, stop));
    Ok(())
}

/// Keeps leases filled, known to the wallet, and recallable.
fn keep_leases(
    host: &Host,
    lender: &Arc<Lender>,
    renewals: mpsc::Receiver<Arc<Account>>,
    stops: &Stops,
) {
    let (own, stop) = (Arc::clone(lender), stops.background.clone());
    host.spawn_vital("answer-recalls", move |_| own.answer_recalls(stop));
    let own = Arc::clone(lender);
    host.spawn("renew-leases", move |stop| own.renew(renewals, stop));
    let own = Arc::clone(lender);
    host.every("ask-again", ASK_PERIOD, move || {
        let own = Arc::clone(&own);
        async move { own.ask_again().await }
    });
    let own = Arc::clone(lender);
    host.every("measure-rates", RATE_PERIOD, move || {
        own.tick();
        std::future::ready(())
    });
    let (own, stop) = (Arc::clone(lender), stops.background.clone());
    host.spawn_vital("heartbeat", move |_| heartbeat(own, stop));
}

/// What is stopped after the last call.
#[derive(Clone, Default)]
struct Stops {
    background: Stop,
    drained: Stop,
    /// Nothing is lent to the journal any more: it may go once everything is applied.
    retired: Arc<AtomicBool>,
}

fn open_countries(config: &Config) -> anyhow::Result<Countries> {
    match &config.country_db {
        Some(path) => Countries::open(path).context("TOLLGATE_GATEWAY_COUNTRY_DB"),
        None => {
            tracing::warn!("no country database: calls carry ZZ and the country rule is off");
            Ok(Countries::none())
        }
    }
}

async fn open_journal(host: &Host, config: &Config) -> anyhow::Result<(Journal, Vec<Recovered>)> {
    let options = Options {
        segment_bytes: config.journal_segment_bytes,
        bytes_max: config.journal_bytes_max,
        ..Options::new(&config.journal_dir)
    };
    let id: JournalId = host.ids().new_id();
    let now_ms = u64::try_from(host.clock().now().as_millisecond()).unwrap_or(0);
    let opened = host
        .blocking(move || Journal::open(&options, id.uuid(), now_ms))
        .await?;
    let (journal, recovered) = opened.context("TOLLGATE_GATEWAY_JOURNAL_DIR")?;
    tracing::info!(journal.id = %id, recovered = recovered.len(), "the journal is open");
    Ok((journal, recovered))
}

fn tls() -> anyhow::Result<Arc<rustls::ClientConfig>> {
    use rustls_platform_verifier::BuilderVerifierExt;
    let config = rustls::ClientConfig::builder()
        .with_platform_verifier()?
        .with_no_client_auth();
    Ok(Arc::new(config))
}

async fn heartbeat(lender: Arc<Lender>, stop: Stop) {
    while !stop.is_requested() {
        lender.heartbeat().await;
        tokio::select! {
            () = tokio::time::sleep(HEARTBEAT_PERIOD) => {}
            () = stop.requested() => {}
        }
    }
}

/// Ships until everything is applied after the last call, and then removes the journal. Until that
/// call has ended, shipping goes on though the host is stopping.
async fn ship_until(mut shipper: Shipper, journal: Journal, host: Host, stops: Stops) {
    let Stops {
        drained, retired, ..
    } = stops;
    let done = |course: &Course| drained.is_requested() && course.watermark() >= journal.next_seq();
    let mut insistence = Insistence::new(&host, JournalId::new(journal.id()), true);
    let ended = async {
        while let Err(error) = shipper.run(done, &drained).await {
            if !insistence.may_pass(&error, &drained).await {
                return Err(error);
            }
        }
        if retired.load(Ordering::Acquire) {
            recovery::tell_end(&host, &journal, &drained).await?;
            let journal = journal.clone();
            host.blocking(move || journal.remove()).await??;
        }
        anyhow::Ok(())
    };
    if let Err(error) = ended.await {
        tracing::warn!(
            error = format!("{error:#}"),
            "the journal was not shipped to its end; the next start does"
        );
    }
}

/// Allocates ahead and syncs, on a thread of its own: it blocks, and it must not wait for others.
#[expect(
    clippy::disallowed_methods,
    reason = "a thread that lives as long as the gateway"
)]
fn upkeep(host: &Host, edge: Arc<Edge>, stop: Stop) -> anyhow::Result<()> {
    let thread = std::thread::Builder::new().name("journal-upkeep".to_owned());
    let (clock, host) = (host.clock(), host.clone());
    thread.spawn(move || {
        let _mourner = Mourner(host.clone());
        let mut failing = false;
        while !stop.is_requested() {
            let now_ms = u64::try_from(clock.now().as_millisecond()).unwrap_or(0);
            match edge.journal.maintain(now_ms) {
                Ok(stats) => {
                    failing = false;
                    publish_synced(&edge, stats.synced_seq);
                    let signed = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
                    edge.metrics.journal_bytes.set(signed(stats.bytes));
                    edge.metrics.unapplied.set(signed(stats.unapplied));
                }
                // The journal was removed: this is the end.
                Err(_) if stop.is_requested() => return,
                Err(error) => {
                    // A full disk keeps nobody from syncing.
                    publish_synced(&edge, edge.journal.synced_seq());
                    if !failing {
                        tracing::error!(%error, "the journal cannot grow; metered calls wait");
                    }
                    failing = true;
                }
            }
            // Never tried again: the page may be marked clean. The next life reads what is there.
            if edge.journal.is_failed() {
                host.fail("the journal could not be synced to disk");
                return;
            }
            std::thread::sleep(UPKEEP_PERIOD);
        }
    })?;
    Ok(())
}

/// Ends the process when its thread dies: nobody would sync the journal any more.
struct Mourner(Host);

impl Drop for Mourner {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail("the thread has died that syncs the journal");
        }
    }
}

/// Tells those who wait for the disk how far it has come.
pub(crate) fn publish_synced(edge: &Edge, synced_seq: u64) {
    edge.synced.send_if_modified(|seen| {
        let more = synced_seq > *seen;
        *seen = synced_seq.max(*seen);
        more
    });
}

/// Carries calls until asked to stop, then drains.
async fn run(
    host: Host,
    (edge, door): (Arc<Edge>, Arc<Door>),
    config: Config,
    sockets: Vec<std::net::TcpListener>,
    tls: Arc<rustls::ClientConfig>,
    asked: Stop,
    stops: Stops,
) {
    let starting = host.starting("the gateway has no news of keys and services yet");
    // Calls are accepted once keys and services are known: a balancer's probe fails before.
    while !edge.is_ready() && !asked.is_requested() {
        tokio::time::sleep(READY_POLL).await;
    }
    let (stop, cut) = (CancellationToken::new(), CancellationToken::new());
    let limits = Limits {
        index: 0,
        threads: sockets.len(),
        waiting_max: config.upstreams.waiting_max,
        wait: config.upstreams.wait,
    };
    let (networks, checks) = (
        Arc::new(config.upstreams.networks),
        Arc::<Checks>::default(),
    );
    let mut threads = Vec::new();
    for (index, socket) in sockets.into_iter().enumerate() {
        let (own, tls, networks) = (Arc::clone(&edge), Arc::clone(&tls), Arc::clone(&networks));
        let (limits, checks) = (Limits { index, ..limits }, Arc::clone(&checks));
        let pool = move || {
            let (metrics, clock) = (own.metrics.upstreams.clone(), own.clock.clone());
            Pool::new(
                Connector::new(tls, networks, (metrics, checks), clock),
                limits,
            )
        };
        let shared = (Arc::clone(&edge), Arc::clone(&door));
        match listen::start(index, shared, socket, pool, stop.clone(), cut.clone()) {
            Ok(thread) => threads.push(thread),
            Err(error) => tracing::error!(%error, "a thread of the edge did not start"),
        }
    }
    drop(starting);
    tracing::info!(listen = %config.listen, threads = threads.len(), "the edge carries calls");
    asked.requested().await;
    edge.draining.store(true, Ordering::Release);
    tokio::time::sleep(listen::LINGER).await;
    stop.cancel();
    let joined = host.blocking(move || threads.into_iter().all(|thread| thread.join().is_ok()));
    let mut joined = std::pin::pin!(joined);
    if tokio::time::timeout(config.drain, joined.as_mut())
        .await
        .is_err()
    {
        let calls = edge.in_flight.load(Ordering::Acquire);
        tracing::warn!(calls, "calls were still in flight and are cut off");
        edge.is_cut.store(true, Ordering::Release);
        cut.cancel();
        if !matches!(joined.await, Ok(true)) {
            tracing::error!("a thread of the edge has panicked");
        }
    }
    edge.lender.close_all().await;
    edge.lender.heartbeat().await;
    match edge.lender.retire().await {
        Ok(()) => stops.retired.store(true, Ordering::Release),
        Err(error) => tracing::warn!(
            error = format!("{error:#}"),
            "the journal stays; the next start ends it"
        ),
    }
    stops.background.request();
    stops.drained.request();
}
