//! A whole Tollgate, as a stranger starts it: the binary's own `dev`, on free ports.

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use async_nats::jetstream::{self, stream::Stream};
use serde_json::Value;
use sqlx::{PgPool, postgres::PgPoolOptions};
use testkit::{
    eventually,
    load::{Answer, Connection, Outcome, Shot},
};

/// A call that costs one credit.
pub(crate) const DISTANCE: &str = "/api/v1/mileage/distance?from=48.85,2.35&to=43.29,5.37";
/// What a key is created with that may make it.
pub(crate) const LIVE: [&str; 4] = [
    "--environment",
    "production",
    "--scope",
    "mileage:calculate",
];
/// The stack is up after so long, cold caches included.
const START_LIMIT: Duration = Duration::from_secs(120);
/// Effects of a call are durable after so long, unless something was just killed.
pub(crate) const SETTLE_LIMIT: Duration = Duration::from_secs(60);

/// The durable consumers of the usage stream.
pub(crate) const CONSUMERS: [&str; 4] = [
    "wallet",
    "usage-ingest",
    "stats-aggregator",
    "anomaly-detector",
];

/// Addresses that the fixture database places: 203.0.N.0/24 is in the N-th of these countries.
pub(crate) const COUNTRIES: [&str; 14] = [
    "FR", "DE", "IT", "ES", "PT", "PL", "SE", "NO", "FI", "DK", "NL", "BE", "AT", "CH",
];

/// A running Tollgate with its own servers and data.
pub(crate) struct Stack {
    child: Child,
    dir: tempfile::TempDir,
    pool: PgPool,
}

/// An organisation made for a test.
pub(crate) struct Customer {
    pub(crate) org: String,
    pub(crate) user: String,
}

/// The binary that was built with this test; one that was set aside for a long run, as nextest
/// names it there.
fn binary() -> Command {
    match std::env::var_os("NEXTEST_BIN_EXE_tollgate") {
        Some(path) => Command::new(path),
        None => Command::new(env!("CARGO_BIN_EXE_tollgate")),
    }
}

impl Stack {
    /// Starts `tollgate dev` with these further arguments.
    pub(crate) async fn start(arguments: &[&str]) -> Self {
        Self::start_with(arguments, &[]).await
    }

    /// As `start`, with these variables for all processes.
    pub(crate) async fn start_with(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::start_in(arguments, variables, |_| {}).await
    }

    /// As `start_with`, in a folder that was prepared.
    pub(crate) async fn start_in(
        arguments: &[&str],
        variables: &[(&str, &str)],
        prepare: impl FnOnce(&Path),
    ) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        prepare(&dir.path().join("data"));
        let countries = dir.path().join("geoip");
        std::fs::write(&countries, countries_text()).expect("written");
        let log = std::fs::File::create(dir.path().join("dev.log")).expect("a log");
        let mut command = binary();
        if cfg!(debug_assertions) {
            std::fs::create_dir(dir.path().join("crash")).expect("a folder");
            command.env("TOLLGATE_CRASH_AT", dir.path().join("crash"));
        }
        let child = command
            .args(["dev", "--ports", "auto", "--data"])
            .arg(dir.path().join("data"))
            .args(arguments)
            .env("TOLLGATE_GATEWAY_COUNTRY_DB", &countries)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("tollgate dev starts");
        let ready = eventually(START_LIMIT, "tollgate dev is ready", async || {
            read_info(&dir.path().join("data"))
        });
        let info = match ready.await {
            Ok(info) => info,
            Err(error) => {
                let log = std::fs::read_to_string(dir.path().join("dev.log")).unwrap_or_default();
                panic!("{error:#}\n--- dev.log\n{log}");
            }
        };
        let url = info["postgres_url"].as_str().expect("a URL");
        let pool = PgPoolOptions::new()
            .max_connections(5)
            .connect(url)
            .await
            .expect("PostgreSQL");
        Self { child, dir, pool }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// `dev.json` as it is now.
    pub(crate) fn info(&self) -> Value {
        read_info(&self.data()).expect("dev.json is there while the stack runs")
    }

    pub(crate) fn pool(&self) -> &PgPool {
        &self.pool
    }

    pub(crate) fn gateways(&self) -> Vec<String> {
        let info = self.info();
        let bases = info["gateway"].as_array().expect("a list");
        bases
            .iter()
            .map(|base| base.as_str().expect("a URL").to_owned())
            .collect()
    }

    pub(crate) fn demo(&self, name: &str) -> String {
        self.info()["demo"][name]
            .as_str()
            .expect("in dev.json")
            .to_owned()
    }

    /// Runs a verb of the CLI with `--json`; exit code and what it printed.
    pub(crate) fn try_cli(&self, arguments: &[&str]) -> (Option<i32>, Value, String) {
        let output = binary()
            .args(arguments)
            .arg("--json")
            .arg("--data")
            .arg(self.data())
            .output()
            .expect("the CLI runs");
        let json = serde_json::from_slice(&output.stdout).unwrap_or_default();
        (
            output.status.code(),
            json,
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }

    /// As `try_cli`, for a verb that must succeed.
    pub(crate) fn cli(&self, arguments: &[&str]) -> Value {
        let (code, json, errors) = self.try_cli(arguments);
        assert_eq!(code, Some(0), "tollgate {arguments:?}: {json} {errors}");
        json
    }

    pub(crate) fn customer(&self, name: &str, credits: u32) -> Customer {
        let owner = format!("{}@example.com", name.to_lowercase());
        let made = self.cli(&["org", "create", "--name", name, "--owner", &owner]);
        let text = |field: &str| made[field].as_str().expect("an id").to_owned();
        let customer = Customer {
            org: text("org_id"),
            user: text("user_id"),
        };
        if credits > 0 {
            let credits = credits.to_string();
            let grant = [
                "wallet",
                "grant",
                "--org",
                &customer.org,
                "--credits",
                &credits,
            ];
            self.cli(&[&grant[..], &["--reason", "test"]].concat());
        }
        customer
    }

    /// A key of a customer: id and text.
    pub(crate) fn key(&self, customer: &Customer, more: &[&str]) -> (String, String) {
        let base = [
            "key",
            "create",
            "--org",
            &customer.org,
            "--user",
            &customer.user,
            "--name",
            "test",
        ];
        let made = self.cli(&[&base[..], more].concat());
        let text = |field: &str| made[field].as_str().expect("a text").to_owned();
        (text("key_id"), text("key"))
    }

    /// One call through the first gateway.
    pub(crate) async fn call(&self, key: &str, shot: &Shot) -> Answer {
        self.call_at(0, key, shot).await
    }

    pub(crate) async fn call_at(&self, gateway: usize, key: &str, shot: &Shot) -> Answer {
        let base = self.gateways()[gateway].clone();
        Connection::to(&base)
            .call(key, shot)
            .await
            .expect("an answer")
    }

    /// Waits until the auditor finds no difference, and returns its report.
    pub(crate) fn audit(&self) -> Value {
        let (code, report, errors) = self.try_cli(&["audit", "--wait", "60"]);
        assert_eq!(code, Some(0), "the auditor objects: {report:#} {errors}");
        report
    }

    /// As `audit`, with what clients saw: each answer with a request id that cost something has
    /// its one row.
    pub(crate) fn audit_with(&self, outcomes: &[&Outcome]) -> Value {
        let path = self.write_transcript(outcomes);
        let (code, report, errors) =
            self.try_cli(&["audit", "--wait", "60", "--transcript", &path]);
        assert_eq!(code, Some(0), "the auditor objects: {report:#} {errors}");
        report
    }

    /// Writes down what clients saw, for the auditor. Returns where.
    pub(crate) fn write_transcript(&self, outcomes: &[&Outcome]) -> String {
        let path = self.transcript();
        let mut lines = String::new();
        for done in outcomes.iter().flat_map(|outcome| &outcome.done) {
            let line = serde_json::json!({
                "request_id": done.request_id, "status": done.status,
                "complete": true, "cost": done.cost,
            });
            lines.push_str(&format!("{line}\n"));
        }
        std::fs::write(&path, lines).expect("written");
        path.to_string_lossy().into_owned()
    }

    /// What clients saw, as it was written last.
    pub(crate) fn transcript(&self) -> PathBuf {
        self.dir.path().join("transcript.jsonl")
    }

    /// The next lives of a service die at these points (`point:n`, one a life, in order).
    pub(crate) fn arm(&self, service: &str, points: &[String]) {
        if !cfg!(debug_assertions) {
            panic!("releases have no crash points: run this test without FAULT_PROFILE=release");
        }
        let mut file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("crash").join(service))
            .expect("opened");
        // A process that starts takes a line under the same lock.
        file.lock().expect("locked");
        let lines: String = points.iter().map(|point| format!("{point}\n")).collect();
        file.write_all(lines.as_bytes()).expect("written");
    }

    /// What the logs say of points: `(process, point)` that was died at, and what the present life
    /// of each process was told and has not come to.
    pub(crate) fn deaths(&self) -> (Vec<(String, String)>, BTreeMap<String, String>) {
        let (mut died, mut armed) = (Vec::new(), BTreeMap::new());
        let logs = std::fs::read_dir(self.data().join("log")).expect("a folder");
        for entry in logs.flatten() {
            let path = entry.path();
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            for line in text.lines().filter(|line| line.contains("at this point")) {
                let entry: Value = serde_json::from_str(line).unwrap_or_default();
                let point = entry["point"].as_str().unwrap_or_default();
                match entry["message"].as_str() {
                    Some("dies at this point") => {
                        armed.insert(name.clone().into_owned(), point.to_owned());
                    }
                    Some("died at this point") => died.extend(armed.remove_entry(&*name)),
                    _ => {}
                }
            }
        }
        (died, armed)
    }

    /// The bus, with its streams.
    pub(crate) async fn jetstream(&self) -> jetstream::Context {
        let url = self.info()["nats_url"].as_str().expect("a URL").to_owned();
        jetstream::new(async_nats::connect(url).await.expect("NATS"))
    }

    /// The stream of usage.
    pub(crate) async fn usage(&self) -> Stream {
        let usage = self.jetstream().await.get_stream("USAGE").await;
        usage.expect("the stream")
    }

    /// Deletes the durable consumers, so that each service reads the stream from its first
    /// message, and waits until they have read it all. Returns how many messages there were.
    pub(crate) async fn replay_usage(&self) -> u64 {
        let stream = self.usage().await;
        let messages = stream.get_info().await.expect("its state").state.messages;
        assert!(messages > 0, "there is something to repeat");
        for name in CONSUMERS {
            stream.delete_consumer(name).await.expect("deleted");
        }
        for name in CONSUMERS {
            let replayed = eventually(SETTLE_LIMIT, "the whole stream is read again", async || {
                let consumer = stream
                    .consumer_info(name)
                    .await
                    .map_err(|error| error.to_string())?;
                let (floor, pending) = (consumer.ack_floor.stream_sequence, consumer.num_pending);
                if floor >= messages && pending == 0 && consumer.num_ack_pending == 0 {
                    return Ok(());
                }
                Err(format!("{name}: {floor} of {messages}, {pending} pending"))
            });
            replayed.await.expect("replayed");
        }
        messages
    }

    /// The processes of a service or server.
    pub(crate) fn pids(&self, name: &str) -> Vec<i32> {
        let info = self.info();
        let number = |value: &Value| i32::try_from(value.as_i64().expect("a pid")).expect("small");
        match &info["pids"][name] {
            Value::Array(pids) => pids.iter().map(number).collect(),
            pid => vec![number(pid)],
        }
    }

    /// Does something that `tollgate dev` must not repair meanwhile: it stands still.
    pub(crate) async fn while_nobody_restarts<F: Future<Output = ()>>(
        &self,
        work: impl FnOnce() -> F,
    ) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        signal(pid, rustix::process::Signal::STOP);
        work().await;
        signal(pid, rustix::process::Signal::CONT);
    }

    /// The metrics of a service's process.
    pub(crate) async fn metrics(&self, service: &str) -> Value {
        let info = self.info();
        let ops = info["ops"][service].as_str().expect("an address");
        let answer = Connection::to(ops)
            .call("", &Shot::get("/metrics.json"))
            .await
            .expect("metrics");
        serde_json::from_slice(&answer.body).expect("JSON")
    }

    /// Does this process run, as one that this stack has started?
    pub(crate) fn is_child(&self, pid: i32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name in brackets may hold anything: state and parent follow its end.
        let mut fields = match stat.rsplit_once(')') {
            Some((_, fields)) => fields.split_whitespace(),
            None => return false,
        };
        let (state, parent) = (fields.next(), fields.next());
        !matches!(state, Some("Z" | "X")) && parent == Some(&self.child.id().to_string())
    }

    /// A count by SQL.
    pub(crate) async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql)
            .fetch_one(&self.pool)
            .await
            .expect("a count")
    }

    /// The figures that must not change when events are repeated: wallets, rows, statistics and
    /// anomalies, each as one digest.
    pub(crate) async fn digests(&self) -> BTreeMap<&'static str, String> {
        let mut found = BTreeMap::new();
        for (name, sql) in DIGESTS {
            let digest: Option<String> = sqlx::query_scalar(sql)
                .fetch_one(&self.pool)
                .await
                .expect("a digest");
            found.insert(name, digest.unwrap_or_default());
        }
        found
    }
}

const DIGESTS: [(&str, &str); 9] = [
    (
        "ledger",
        "select md5(string_agg(to_jsonb(l)::text, ';' order by id)) from wallet.ledger_entries l",
    ),
    (
        "leases",
        "select md5(string_agg(concat_ws(',', id, settled_cum), ';' order by id))
           from wallet.leases",
    ),
    (
        "quotas",
        "select md5(string_agg(concat_ws(',', id, used), ';' order by id))
           from wallet.quota_buckets",
    ),
    (
        "wallets",
        "select md5(string_agg(concat_ws(',', org_id, balance, reserved, total_used), ';'
                               order by org_id)) from wallet.wallets",
    ),
    (
        "test wallets",
        "select md5(string_agg(concat_ws(',', user_id, balance, reserved, total_used), ';'
                               order by user_id)) from wallet.test_wallets",
    ),
    (
        "rows",
        "select md5(string_agg(concat_ws(',', journal_id, seq, request_id, credits_used), ';'
                               order by journal_id, seq)) from usage_ingest.api_usage_logs",
    ),
    (
        "days",
        "select md5(string_agg(concat_ws(',', org_id, date, environment, total_requests,
                                         total_credits, successful_requests,
                                         services_breakdown), ';'
                               order by org_id, date, environment))
           from stats_aggregator.daily_stats",
    ),
    (
        "hours",
        "select md5(string_agg(concat_ws(',', org_id, hour, environment, service,
                                         total_requests, total_credits), ';'
                               order by org_id, hour, environment, service))
           from stats_aggregator.hourly_stats",
    ),
    (
        "anomalies",
        "select md5(string_agg(concat_ws(',', id, key_id, at), ';' order by id))
           from anomaly_detector.anomalies",
    ),
];

impl Drop for Stack {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- logs of the stack");
            print_tails(&self.dir.path().join("dev.log"));
            for entry in std::fs::read_dir(self.data().join("log"))
                .into_iter()
                .flatten()
                .flatten()
            {
                print_tails(&entry.path());
            }
        }
        terminate(&self.child);
        if let Err(error) = self.child.wait() {
            eprintln!("tollgate dev could not be waited for: {error}");
        }
    }
}

fn terminate(child: &Child) {
    let pid = i32::try_from(child.id()).expect("a pid");
    signal(pid, rustix::process::Signal::TERM);
}

/// Sends a signal to one of our own processes; one that is gone already is fine.
pub(crate) fn signal(pid: i32, signal: rustix::process::Signal) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid)
        && let Err(error) = rustix::process::kill_process(pid, signal)
    {
        eprintln!("{pid:?} was gone: {error}");
    }
}

fn print_tails(path: &Path) {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    eprintln!("=== {}", path.display());
    for line in lines.iter().skip(lines.len().saturating_sub(15)) {
        eprintln!("{line}");
    }
}

fn read_info(data: &Path) -> Result<Value, String> {
    let text = std::fs::read_to_string(data.join("dev.json")).map_err(|e| e.to_string())?;
    serde_json::from_str(&text).map_err(|e| e.to_string())
}

/// A country database in the format of Debian's tor-geoipdb.
fn countries_text() -> String {
    let mut text = String::from("# fixture\n");
    for (index, country) in (0_u32..).zip(COUNTRIES) {
        let low = u32::from_be_bytes([203, 0, 0, 0]) + index * 256;
        text.push_str(&format!("{low},{},{country}\n", low + 255));
    }
    text
}

/// An address in the N-th country of the fixture.
pub(crate) fn address_in(country: usize) -> String {
    format!("203.0.{country}.7")
}
