//! What a fault test tried and found: one line, the same for all.

use std::{io::Write, time::Duration};

use serde_json::Value;
use testkit::load::Outcome;

use crate::stack::Stack;

/// Lines are added to this file, too: `make faults` shows them at its end.
const LINES_FILE: &str = "FAULT_LINES";
/// Long forms that last as long as they are told read it.
const SECONDS: &str = "FAULT_SECONDS";
/// Whoever draws lots begins here.
const SEED: &str = "FAULT_SEED";

/// How long a long form that can last any time is to last.
pub(crate) fn seconds(default: u64) -> Duration {
    Duration::from_secs(number(SECONDS).unwrap_or(default))
}

/// A seed: the one that was given, or another each time.
pub(crate) fn seed() -> u64 {
    let now = || u64::try_from(jiff::Timestamp::now().as_microsecond()).expect("after 1970");
    number(SEED).unwrap_or_else(now)
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable)
        .ok()
        .filter(|text| !text.is_empty())?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

/// How many there were in a second.
#[expect(clippy::cast_precision_loss, reason = "a figure to read")]
pub(crate) fn a_second(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64().max(0.001)
}

/// The figures of one test.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// `F01`
    pub(crate) id: &'static str,
    /// Calls begun.
    pub(crate) calls: u64,
    /// Answers read to the last byte.
    pub(crate) complete: usize,
    /// Processes that died by SIGKILL.
    pub(crate) kills: usize,
    /// Faults of any kind, kills among them.
    pub(crate) faults: usize,
    /// Answers 402 though there was credit: any, unless a test lets its customers run out and
    /// counts for itself.
    pub(crate) false_402: usize,
    /// From the end of the last fault to quiet.
    pub(crate) quiet: Duration,
    /// Where the lots began, if any were drawn.
    pub(crate) seed: Option<u64>,
    /// What this test alone counts.
    pub(crate) more: String,
}

impl Figures {
    pub(crate) fn of(id: &'static str, outcomes: &[&Outcome]) -> Self {
        let all = outcomes.iter().flat_map(|outcome| &outcome.done);
        Self {
            id,
            calls: outcomes.iter().map(|outcome| outcome.sent).sum(),
            complete: outcomes.iter().map(|outcome| outcome.done.len()).sum(),
            false_402: all.filter(|done| done.status == 402).count(),
            ..Self::default()
        }
    }

    /// The line of a test that has no more to count: how many kills and faults, and its own words.
    /// Time to quiet is what the auditor waited.
    pub(crate) async fn say(
        id: &'static str,
        [kills, faults]: [usize; 2],
        outcomes: &[&Outcome],
        more: String,
        stack: &Stack,
        report: &Value,
    ) {
        let figures = Self {
            kills,
            faults,
            quiet: Duration::from_millis(report["waited_ms"].as_u64().unwrap_or(0)),
            more,
            ..Self::of(id, outcomes)
        };
        figures.print(stack, report).await;
    }

    /// Prints the line, with what the auditor counted and the versions of the servers. Fails when
    /// anybody was refused though funded.
    pub(crate) async fn print(&self, stack: &Stack, report: &Value) {
        let versions = versions(stack).await;
        let found = |name: &str| report[name].as_u64().unwrap_or(0);
        let seed = match self.seed {
            Some(seed) => seed.to_string(),
            None => "-".to_owned(),
        };
        let line = format!(
            "{} calls={} complete={} kills={} faults={} lost={} double={} overspent={} gaps={} \
             false402={} dead_letters={} quiet={:.1}s seed={seed} {versions} {}\n",
            self.id,
            self.calls,
            self.complete,
            self.kills,
            self.faults,
            found("lost"),
            found("double"),
            found("overspent"),
            found("gaps"),
            self.false_402,
            found("dead_letters"),
            self.quiet.as_secs_f64(),
            self.more,
        );
        print!("{line}");
        if let Some(path) = std::env::var_os(LINES_FILE) {
            let mut file = std::fs::File::options()
                .create(true)
                .append(true)
                .open(path)
                .expect("opened");
            file.write_all(line.as_bytes()).expect("written");
        }
        assert_eq!(self.false_402, 0, "refused though funded: {line}");
    }
}

/// The versions of the three servers, as they say themselves.
async fn versions(stack: &Stack) -> String {
    let postgres: String =
        sqlx::query_scalar("select split_part(current_setting('server_version'), ' ', 1)")
            .fetch_one(stack.pool())
            .await
            .expect("a version");
    let info = stack.info();
    let members = info["nats_url"].as_str().expect("a URL").split(',');
    let nats = async_nats::connect(members.collect::<Vec<_>>())
        .await
        .expect("NATS")
        .server_info()
        .version;
    let client = redis::Client::open(info["redis_url"].as_str().expect("a URL")).expect("a URL");
    let mut redis = client
        .get_multiplexed_async_connection()
        .await
        .expect("Redis");
    let text: String = redis::cmd("INFO")
        .arg("server")
        .query_async(&mut redis)
        .await
        .expect("an answer");
    let redis = text
        .lines()
        .find_map(|line| line.strip_prefix("redis_version:"))
        .unwrap_or("?");
    format!("postgres={postgres} redis={redis} nats={nats}")
}
