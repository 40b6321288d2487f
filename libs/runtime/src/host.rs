//! One service's view of its process.

use std::{sync::Arc, time::Duration};

use prometheus_client::registry::Registry;
use proto::channel::Channel;
use rand::TryRng as _;
use secrecy::SecretString;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    body::Body,
    codegen::http::{Request, Response},
    server::NamedService,
};
use tower::Service;

use crate::{
    config::same_secret,
    consume::{self, Apply},
    follow::{self, Follow},
    grpc,
    letters::{Desk, Events, Keeper},
    node::Shared,
    postgres::{Pools, Tenants},
    secrets::{self, Generation, Succession},
    streams::Streams,
    time::{Clock, Ids},
    trace::Tracer,
};

/// Tells a task to end.
#[derive(Clone, Debug, Default)]
pub struct Stop(pub(crate) CancellationToken);

impl Stop {
    /// Resolves when the task should end.
    pub async fn requested(&self) {
        self.0.cancelled().await;
    }

    /// Tells everybody who holds it.
    pub fn request(&self) {
        self.0.cancel();
    }

    /// True when the task should end.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.0.is_cancelled()
    }
}

/// A reason for not being ready yet.
pub struct Starting {
    shared: Arc<Shared>,
    entry: (&'static str, &'static str),
}

impl Drop for Starting {
    fn drop(&mut self) {
        let mut starting = self.shared.starting.lock();
        if let Some(at) = starting.iter().position(|entry| *entry == self.entry) {
            starting.swap_remove(at);
        }
    }
}

/// What a service may use. Cheap to clone.
#[derive(Clone)]
pub struct Host {
    pub(crate) name: &'static str,
    pub(crate) pools: Pools,
    pub(crate) shared: Arc<Shared>,
    pub(crate) tracer: Tracer,
    pub(crate) stop: Stop,
    pub(crate) tasks: TaskTracker,
}

impl Host {
    /// Name of the service.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The service's own work: a pool in its role, which sees every row and owns none of the
    /// tables. Connects when first used.
    #[must_use]
    pub fn postgres(&self) -> sqlx::PgPool {
        self.pools.own.clone()
    }

    /// Requests on behalf of somebody: transactions in the role that sees the rows of one tenant
    /// only. Connects when first used.
    #[must_use]
    pub fn tenants(&self) -> Tenants {
        self.pools.tenants.clone()
    }

    /// The connection to NATS. Connects in the background, and again after a loss.
    #[must_use]
    pub fn nats(&self) -> async_nats::Client {
        self.shared.nats.clone()
    }

    /// The streams of JetStream on that connection.
    #[must_use]
    pub fn streams(&self) -> Streams {
        self.shared.streams.clone()
    }

    /// The connection to Redis, when one is configured.
    #[must_use]
    pub fn redis(&self) -> Option<redis::aio::ConnectionManager> {
        self.shared.redis.clone()
    }

    /// The clock.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.shared.clock.clone()
    }

    /// New ids.
    #[must_use]
    pub fn ids(&self) -> Ids {
        Ids::default()
    }

    /// Bytes of the operating system's generator.
    ///
    /// # Panics
    /// When the operating system has no randomness to give, in which case no key may be made.
    #[must_use]
    pub fn random<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        rand::rngs::SysRng
            .try_fill_bytes(&mut bytes)
            .expect("the system has randomness");
        bytes
    }

    /// Spans of this service.
    #[must_use]
    pub fn tracer(&self) -> Tracer {
        self.tracer.clone()
    }

    /// Registers metrics under the prefix `tollgate`.
    pub fn metrics(&self, register: impl FnOnce(&mut Registry)) {
        register(
            self.shared
                .registry
                .lock()
                .sub_registry_with_prefix("tollgate"),
        );
    }

    /// Offers a gRPC service. `service_methods` may be called with the services' token; every
    /// other method needs the operator's.
    pub fn grpc<S>(&self, server: S, service_methods: &'static [&'static str])
    where
        S: Service<Request<Body>, Error = std::convert::Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Response: tonic::codegen::Body<Data = bytes::Bytes> + Send + 'static,
        Response<Body>: From<S::Response>,
        S::Future: Send + 'static,
        S: Service<Request<Body>, Response = Response<Body>>,
    {
        let mut offers = self.shared.offers.lock();
        offers.names.push(S::NAME);
        for method in service_methods {
            offers
                .service_methods
                .insert(format!("/{}/{method}", S::NAME));
        }
        offers.routes.add_service(server);
    }

    /// A channel to a service, in this process or elsewhere.
    ///
    /// # Errors
    /// The service runs elsewhere and its URL is malformed.
    pub fn channel(&self, service: &'static str) -> anyhow::Result<Channel> {
        self.channel_with(service, &self.shared.tokens.service)
    }

    /// As [`Host::channel`], with the operator token: for the service that people's requests come
    /// in by, which says in each call on whose behalf it is made.
    ///
    /// # Errors
    /// The service may not have such a channel, or as of [`Host::channel`].
    pub fn operator_channel(&self, service: &'static str) -> anyhow::Result<Channel> {
        anyhow::ensure!(
            grpc::ACTS_FOR_OTHERS.contains(&self.name),
            "{} may not act for others",
            self.name
        );
        self.channel_with(service, &self.shared.tokens.operator)
    }

    fn channel_with(&self, service: &str, token: &SecretString) -> anyhow::Result<Channel> {
        match self.shared.remotes.get(service) {
            Some(url) => grpc::remote(url, token, self.tracer()),
            None => grpc::local(self.shared.guard.clone(), token, self.tracer()),
        }
    }

    /// Whether this is the operator token; tells nothing by the time it takes.
    #[must_use]
    pub fn is_operator(&self, token: &str) -> bool {
        same_secret(token, &self.shared.tokens.operator)
    }

    /// Runs a task until it ends or the host stops; stopping waits for it.
    pub fn spawn<F, Fut>(&self, name: &'static str, task: F)
    where
        F: FnOnce(Stop) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.track(name, task(self.stop.clone()), |_| {});
    }

    /// As [`Host::spawn`], for a task without which the process only seems to be alive: when it
    /// dies, the process ends with an error, and whoever supervises it begins another life.
    pub fn spawn_vital<F, Fut>(&self, name: &'static str, task: F)
    where
        F: FnOnce(Stop) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.track(name, task(self.stop.clone()), |host| {
            host.fail("a task has died that nothing goes on without");
        });
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that spawns: named, tracked"
    )]
    fn track(
        &self,
        name: &'static str,
        work: impl Future<Output = ()> + Send + 'static,
        died: impl FnOnce(&Self) + Send + 'static,
    ) {
        let host = self.clone();
        self.tasks.spawn(async move {
            let handle = tokio::spawn(work);
            if let Err(error) = handle.await {
                tracing::error!(service = host.name, task = name, %error, "a task has died");
                died(&host);
            }
        });
    }

    /// Runs a step at once and then each `period`, until the host stops.
    pub fn every<F, Fut>(&self, name: &'static str, period: Duration, mut step: F)
    where
        F: FnMut() -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.spawn(name, move |stop| async move {
            let mut ticks = tokio::time::interval(period);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = ticks.tick() => step().await,
                    () = stop.requested() => return,
                }
            }
        });
    }

    /// Hands over a succession of secrets at once, and again whenever it has changed. What `accept`
    /// refuses is tried again; nothing at all happens when it cannot change.
    pub fn watch(
        &self,
        name: &'static str,
        succession: Succession,
        accept: impl FnMut(&Generation) -> anyhow::Result<()> + Send + 'static,
    ) {
        if succession.can_change() {
            let host = self.clone();
            self.spawn(name, move |stop| {
                secrets::watch(host, name, succession, accept, stop)
            });
        }
    }

    /// Applies the stream of usage with this service's consumer. The journals of all gateways wait
    /// for it.
    pub fn consume<A: Apply>(&self, consumer: A) {
        let host = self.clone();
        let desk = Arc::new(Desk::new(self.clone(), consumer));
        let keeper: Arc<dyn Keeper> = desk.clone();
        self.shared
            .offers
            .lock()
            .letters
            .0
            .insert(self.name, keeper);
        self.spawn_vital("consume-usage", move |stop| consume::run(host, desk, stop));
    }

    /// Follows events of another service: durable, at least once, started again when lost.
    pub fn follow<F: Follow>(&self, follower: F) {
        let host = self.clone();
        // Who consumes usage too keeps the letters of both.
        let mut offers = self.shared.offers.lock();
        let letters = offers.letters.0.entry(self.name);
        letters.or_insert_with(|| Arc::new(Events::new(self.clone(), F::SCHEMA)));
        drop(offers);
        self.spawn(F::NAME, move |stop| follow::run(host, follower, stop));
    }

    /// Runs blocking work on a thread of its own, bounded by the runtime's pool.
    ///
    /// # Errors
    /// The work panicked.
    #[expect(clippy::disallowed_methods, reason = "the one place for blocking work")]
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> anyhow::Result<T> {
        Ok(tokio::task::spawn_blocking(work).await?)
    }

    /// Ends the process in order, with an error: something is wrong that only a new life can mend.
    pub fn fail(&self, why: &str) {
        tracing::error!(service = self.name, why, "the process ends");
        self.shared.failed.cancel();
    }

    /// Keeps the process from being ready until the returned value is dropped.
    #[must_use]
    pub fn starting(&self, why: &'static str) -> Starting {
        self.shared.starting.lock().push((self.name, why));
        Starting {
            shared: Arc::clone(&self.shared),
            entry: (self.name, why),
        }
    }

    /// The stop signal of this service.
    #[must_use]
    pub fn stop(&self) -> Stop {
        self.stop.clone()
    }
}
