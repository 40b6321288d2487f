//! Children in their order: started, waited for, seeded, described, stopped.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use sqlx::Connection;
use testkit::eventually;
use testkit::mail::Sink;
use testkit::processes::{ProcessSpec, Supervisor};
use testkit::servers::Servers;
use testkit::traces::Receiver;

use super::events::Events;
use super::layout::{Layout, write_private};
use super::plan::{Child, Plan, World, loopback, url};
use super::ready::{DemoAccess, Pids, Ready};
use super::secrets::Secrets;
use super::{Dev, Outside, probe, quickstart};
use crate::connect::System;
use crate::failure::{Failure, Result};
use crate::migrate;
use crate::output::{Output, Progress};
use crate::roster::{ROSTER, Target};
use crate::seed;

/// The database of all schemas.
const DATABASE: &str = "tollgate";
/// From the start of the children to the last answer.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// From a change of the catalogue until every gateway has it.
const KNOWN_WITHIN: Duration = Duration::from_secs(20);
/// A gateway needs so long at most for calls in flight; then it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(30);
const SAMPLES: &str = "samples";

/// Everything but the servers.
pub(super) struct Stack<'a> {
    args: &'a Dev,
    layout: &'a Layout,
    plan: &'a Plan,
    servers: &'a Servers,
    events: &'a Arc<Events>,
    supervisor: Supervisor,
    secrets: Secrets,
}

impl<'a> Stack<'a> {
    pub(super) fn new(
        args: &'a Dev,
        layout: &'a Layout,
        plan: &'a Plan,
        secrets: Secrets,
        servers: &'a Servers,
        events: &'a Arc<Events>,
    ) -> Self {
        let supervisor = Supervisor::new();
        Self {
            args,
            layout,
            plan,
            servers,
            events,
            supervisor,
            secrets,
        }
    }

    /// Starts everything, says so, and keeps `dev.json` current until dropped.
    pub(super) async fn run(
        &mut self,
        outside: &Outside<'_>,
        folder: &Path,
        progress: Progress,
    ) -> Result {
        progress.step("applying migrations");
        self.migrate().await?;
        progress.step("starting the services");
        self.start(outside).await?;
        let ready = self.ready();
        tokio::select! {
            ready = ready => ready?,
            reason = self.events.broken() => return Err(anyhow::anyhow!(reason).into()),
        }
        progress.step("seeding the demo");
        let mut ready = self.describe(outside)?;
        self.seed(&mut ready).await?;
        self.note_pids(&mut ready);
        write_private(&self.layout.ready(), &ready)?;
        drop(progress);
        let program = std::env::args()
            .next()
            .unwrap_or_else(|| "tollgate".to_owned());
        let text = quickstart::text(&ready, &program, &folder.display().to_string());
        Output::new(false).text(&text);
        loop {
            self.events.changed.notified().await;
            self.note_pids(&mut ready);
            write_private(&self.layout.ready(), &ready)?;
        }
    }

    /// Stops the children, last started first.
    pub(super) async fn stop(&self) {
        self.supervisor.stop().await;
    }

    async fn migrate(&self) -> Result {
        if !self.servers.postgres.has_database(DATABASE).await? {
            self.servers.postgres.create_database(DATABASE).await?;
        }
        let mut connection = migrate::connect(&self.servers.postgres.url(DATABASE)).await?;
        migrate::apply(&mut connection, &Target::all().schemas()).await?;
        connection.close().await?;
        Ok(())
    }

    async fn start(&self, outside: &Outside<'_>) -> Result {
        let program = std::env::current_exe().context("where is this program?")?;
        let mut samples = ProcessSpec::new(SAMPLES, &program, self.layout.log(SAMPLES));
        samples = samples.args([SAMPLES]);
        for (name, port) in self.plan.samples {
            samples = samples.args([format!("--{name}"), loopback(port)]);
        }
        if let Some(path) = &self.args.transcript {
            samples = samples.args(["--transcript".into(), path.clone().into_os_string()]);
        }
        self.spawn(samples).await?;

        let postgres = &self.servers.postgres;
        let postgres_port = self.args.postgres_proxy.unwrap_or(postgres.port());
        let world = World {
            secrets: &self.secrets,
            peppers: self.layout.peppers(),
            postgres_url: postgres.url_through(postgres_port, DATABASE),
            redis_url: self.servers.redis.url(),
            nats_url: self.nats_url(outside),
            otlp_endpoint: outside.traces.map(Receiver::otlp_endpoint),
            smtp_url: outside.mail.map(Sink::smtp_url),
            surroundings: outside.surroundings,
            country_db: self.layout.country_db(),
        };
        for child in &self.plan.children {
            let target = format!("--target={}", child.services.join(","));
            let mut spec = ProcessSpec::new(&child.name, &program, self.layout.log(&child.name))
                .args(["serve".to_owned(), target]);
            let gateway = child.gateway.as_ref().map_or("", |gateway| &gateway.name);
            let journal = self.layout.journal(gateway);
            for (name, value) in world.variables(self.plan, child, journal) {
                spec = spec.env(name, value);
            }
            self.spawn(spec).await?;
        }
        Ok(())
    }

    async fn spawn(&self, mut spec: ProcessSpec) -> Result {
        spec.pid_file = Some(self.layout.pid(&spec.name));
        spec.stop_within = STOP_WITHIN;
        self.supervisor.spawn(spec, self.events.sink()).await?;
        Ok(())
    }

    /// Waits until every process says that it is ready, and every gateway answers.
    async fn ready(&self) -> anyhow::Result<()> {
        eventually(READY_WITHIN, "all services are ready", || async {
            for child in &self.plan.children {
                answers(child).await?;
            }
            for (name, port) in self.plan.samples {
                let status = probe::status(port, "/health").await;
                status.with_context(|| format!("sample {name}, {}", self.log(SAMPLES)))?;
            }
            anyhow::Ok(())
        })
        .await
        .with_context(|| format!("logs are in {}", self.log("*")))
    }

    fn nats_url(&self, outside: &Outside<'_>) -> String {
        let given = outside.surroundings.nats_url();
        given.unwrap_or_else(|| self.servers.nats.url())
    }

    fn log(&self, name: &str) -> String {
        self.layout.log(name).display().to_string()
    }

    async fn seed(&mut self, ready: &mut Ready) -> Result {
        let system = System::of_dev(ready.clone());
        let (mut keys, mut wallet) = (system.keys()?, system.wallet()?);
        seed::services(&mut keys, &ready.samples, &self.secrets.samples).await?;
        let demo = seed::demo(&mut keys, &mut wallet, false).await?;
        let known = seed::renew(&mut keys, &demo, &mut self.secrets.demo).await;
        // Keys that were made are kept even if the next could not be.
        self.secrets.samples.clone_from(&ready.samples);
        self.secrets.save(&self.layout.secrets())?;
        known?;
        ready.demo = DemoAccess {
            org_id: demo.org_id,
            user_id: demo.user_id,
            live_key: self.secrets.demo.live.clone().unwrap_or_default(),
            test_key: self.secrets.demo.test.clone().unwrap_or_default(),
            operator_token: self.secrets.operator_token.clone(),
            live_balance: demo.live_balance,
        };
        Ok(self.known().await?)
    }

    /// Waits until every gateway has applied everything that was changed so far.
    async fn known(&self) -> anyhow::Result<()> {
        let mut connection = migrate::connect(&self.servers.postgres.url(DATABASE)).await?;
        let changes: i64 = sqlx::query_scalar("select coalesce(max(id), 0) from keys.changes")
            .fetch_one(&mut connection)
            .await?;
        let gateways = i64::from(self.args.gateways);
        let connection = tokio::sync::Mutex::new(connection);
        eventually(KNOWN_WITHIN, "every gateway knows the services", || async {
            let sql = "select count(*) from keys.gateways \
                       where applied_change >= $1 and seen_at > now() - interval '5 seconds'";
            let mut connection = connection.lock().await;
            let informed: i64 = sqlx::query_scalar(sql)
                .bind(changes)
                .fetch_one(&mut *connection)
                .await?;
            anyhow::ensure!(informed >= gateways, "{informed} of {gateways} do");
            Ok(())
        })
        .await?;
        connection.into_inner().close().await?;
        Ok(())
    }

    fn describe(&self, outside: &Outside<'_>) -> Result<Ready> {
        let services = Target::all().names();
        let children = || {
            services
                .iter()
                .filter_map(|it| Some((*it, self.plan.child_of(it)?)))
        };
        let mut ops: BTreeMap<String, String> = children()
            .map(|(name, child)| (name.to_owned(), url(child.ops)))
            .collect();
        let others = self.plan.gateways().skip(1);
        ops.extend(others.map(|(child, gateway)| (gateway.name.clone(), url(child.ops))));
        let grpc = ROSTER
            .iter()
            .filter(|entry| entry.has_grpc())
            .filter_map(|entry| Some((entry.name, self.plan.child_of(entry.name)?)));
        Ok(Ready {
            gateway: self
                .plan
                .gateways()
                .map(|(_, gateway)| url(gateway.port))
                .collect(),
            api: Some(url(self.plan.api)),
            ops,
            grpc: grpc
                .map(|(name, child)| (name.to_owned(), url(child.grpc)))
                .collect(),
            postgres_url: self.servers.postgres.url(DATABASE),
            redis_url: self.servers.redis.url(),
            nats_url: self.nats_url(outside),
            traces: outside.traces.map(Receiver::page_url),
            mail: outside.mail.map(Sink::page_url),
            journals: self.layout.journals().map_err(Failure::from)?,
            peppers: self.layout.peppers(),
            samples: self.plan.upstreams(),
            pids: BTreeMap::new(),
            demo: DemoAccess {
                org_id: String::new(),
                user_id: String::new(),
                live_key: String::new(),
                test_key: String::new(),
                operator_token: self.secrets.operator_token.clone(),
                live_balance: 0,
            },
        })
    }

    /// Present pids: of ourselves as `tollgate`, of who runs each service, of servers and samples.
    fn note_pids(&self, ready: &mut Ready) {
        let pid = |name: &str| self.supervisor.process(name).map(|process| process.pid());
        let mut pids = BTreeMap::new();
        pids.insert("tollgate".to_owned(), Pids::Many(vec![std::process::id()]));
        for service in Target::all().names() {
            let runs = self
                .plan
                .children
                .iter()
                .filter(|it| it.services.contains(&service));
            let own = runs.filter_map(|child| pid(&child.name)).collect();
            pids.insert(service.to_owned(), Pids::Many(own));
        }
        let servers = [
            ("postgres", Some(self.servers.postgres.pid())),
            ("redis", Some(self.servers.redis.pid())),
            ("nats", Some(self.servers.nats.pid())),
            (SAMPLES, pid(SAMPLES)),
        ];
        for (name, pid) in servers {
            pids.extend(pid.map(|pid| (name.to_owned(), Pids::One(pid))));
        }
        ready.pids = pids;
    }
}

/// Is the process ready, and does its gateway answer?
async fn answers(child: &Child) -> anyhow::Result<()> {
    let status = probe::status(child.ops, "/readyz").await;
    let status = status.with_context(|| child.name.clone())?;
    anyhow::ensure!(status == 200, "{}: /readyz answers {status}", child.name);
    if let Some(gateway) = &child.gateway {
        probe::status(gateway.port, "/")
            .await
            .with_context(|| gateway.name.clone())?;
    }
    Ok(())
}
