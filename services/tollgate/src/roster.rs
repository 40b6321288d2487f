//! The roster: every service, in the order of their start.

use std::collections::BTreeSet;

use runtime::{Host, Settings, Variables};

/// A service as the binary knows it.
pub(crate) struct Entry {
    /// Its one name.
    pub(crate) name: &'static str,
    /// Services it calls over gRPC.
    pub(crate) calls: &'static [&'static str],
    /// Its schema, if it has one.
    pub(crate) schema: Option<&'static str>,
    read: fn(&mut Variables) -> Config,
}

impl Entry {
    /// Whether others call it over gRPC.
    pub(crate) fn has_grpc(&self) -> bool {
        !matches!(self.name, "portal" | "gateway")
    }
}

/// Fixed: who is called starts before its callers, and stops after them.
pub(crate) const ROSTER: [Entry; 7] = [
    Entry {
        name: "keys",
        calls: &[],
        schema: Some("keys"),
        read: |variables| Config::Keys(Box::new(keys::Config::read(variables))),
    },
    Entry {
        name: "wallet",
        calls: &[],
        schema: Some("wallet"),
        read: |variables| Config::Wallet(wallet::Config::read(variables)),
    },
    Entry {
        name: "usage-ingest",
        calls: &[],
        schema: Some("usage_ingest"),
        read: |variables| Config::UsageIngest(usage_ingest::Config::read(variables)),
    },
    Entry {
        name: "stats-aggregator",
        calls: &[],
        schema: Some("stats_aggregator"),
        read: |variables| Config::StatsAggregator(stats_aggregator::Config::read(variables)),
    },
    Entry {
        name: "anomaly-detector",
        calls: &[],
        schema: Some("anomaly_detector"),
        read: |variables| Config::AnomalyDetector(anomaly_detector::Config::read(variables)),
    },
    Entry {
        name: "portal",
        calls: &[
            "keys",
            "wallet",
            "usage-ingest",
            "stats-aggregator",
            "anomaly-detector",
        ],
        schema: Some("portal"),
        read: |variables| Config::Portal(portal::Config::read(variables)),
    },
    Entry {
        name: "gateway",
        calls: &["keys", "wallet", "usage-ingest"],
        schema: None,
        read: |variables| Config::Gateway(Box::new(gateway::Config::read(variables))),
    },
];

/// What a service was told by the environment.
pub(crate) enum Config {
    Keys(Box<keys::Config>),
    Wallet(wallet::Config),
    UsageIngest(usage_ingest::Config),
    StatsAggregator(stats_aggregator::Config),
    AnomalyDetector(anomaly_detector::Config),
    Portal(portal::Config),
    Gateway(Box<gateway::Config>),
}

impl Config {
    /// Starts the service.
    pub(crate) async fn start(self, host: &Host) -> anyhow::Result<()> {
        match self {
            Self::Keys(config) => keys::start(host, *config).await,
            Self::Wallet(config) => wallet::start(host, config).await,
            Self::UsageIngest(config) => usage_ingest::start(host, config).await,
            Self::StatsAggregator(config) => stats_aggregator::start(host, config).await,
            Self::AnomalyDetector(config) => anomaly_detector::start(host, config).await,
            Self::Portal(config) => portal::start(host, config).await,
            Self::Gateway(config) => gateway::start(host, *config).await,
        }
    }
}

/// Variables that only the CLI reads; `dev` hands them on to its children.
const CLI_VARIABLES: [&str; 4] = [
    "TOLLGATE_DATA",
    "TOLLGATE_DEV_POSTGRES_BIN",
    "TOLLGATE_DEV_REDIS_BIN",
    "TOLLGATE_DEV_NATS_BIN",
];

/// Some services of the roster, in its order.
#[derive(Clone)]
pub(crate) struct Target(Vec<&'static Entry>);

impl Target {
    /// All of them.
    pub(crate) fn all() -> Self {
        Self(ROSTER.iter().collect())
    }

    /// Reads `all`, or names with commas between them.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self::all());
        }
        let wanted: BTreeSet<&str> = text.split(',').map(str::trim).collect();
        if let Some(unknown) = wanted
            .iter()
            .find(|name| ROSTER.iter().all(|it| it.name != **name))
        {
            let names: Vec<&str> = ROSTER.iter().map(|entry| entry.name).collect();
            return Err(format!("`{unknown}` is none of all, {}", names.join(", ")));
        }
        Ok(Self(
            ROSTER
                .iter()
                .filter(|entry| wanted.contains(entry.name))
                .collect(),
        ))
    }

    /// Names in the order of the start.
    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.0.iter().map(|entry| entry.name).collect()
    }

    /// Schemas of those that have one.
    pub(crate) fn schemas(&self) -> Vec<&'static str> {
        self.0.iter().filter_map(|entry| entry.schema).collect()
    }

    /// Reads everything that a process with these services needs; problems stay in `variables`.
    pub(crate) fn read(&self, variables: &mut Variables) -> (Settings, Vec<Config>) {
        let calls: Vec<&str> = self
            .0
            .iter()
            .flat_map(|entry| entry.calls)
            .copied()
            .collect();
        let settings = Settings::read(variables, &self.names(), &calls);
        let configs = self.0.iter().map(|entry| (entry.read)(variables)).collect();
        (settings, configs)
    }
}

/// Every variable there is.
pub(crate) fn known_variables() -> BTreeSet<String> {
    let mut variables = Variables::from_pairs([]);
    Target::all().read(&mut variables);
    let read = variables.settings().iter().map(|setting| setting.name);
    read.chain(CLI_VARIABLES).map(str::to_owned).collect()
}
