//! Finding the system: a running `tollgate dev`, or what the environment names.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use prost_types::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use tonic::Status;

use proto::anomaly_detector::v1::anomaly_detector_service_client::AnomalyDetectorServiceClient;
use proto::channel::Channel;
use proto::keys::v1::keys_service_client::KeysServiceClient;
use proto::keys::v1::people_service_client::PeopleServiceClient;
use proto::letters::v1::letters_service_client::LettersServiceClient;
use proto::stats_aggregator::v1::stats_aggregator_service_client::StatsAggregatorServiceClient;
use proto::usage_ingest::v1::usage_ingest_service_client::UsageIngestServiceClient;
use proto::wallet::v1::wallet_service_client::WalletServiceClient;
use runtime::Variables;

use crate::dev::{Ready, layout};
use crate::failure::{Failure, Result};

pub(crate) type Keys = KeysServiceClient<Channel>;
pub(crate) type People = PeopleServiceClient<Channel>;
pub(crate) type Wallet = WalletServiceClient<Channel>;
pub(crate) type UsageIngest = UsageIngestServiceClient<Channel>;
pub(crate) type StatsAggregator = StatsAggregatorServiceClient<Channel>;
pub(crate) type Letters = LettersServiceClient<Channel>;
pub(crate) type AnomalyDetector = AnomalyDetectorServiceClient<Channel>;

/// Where each service is reached, as the services themselves are told.
const URLS: [(&str, &str); 5] = [
    ("keys", "TOLLGATE_KEYS_GRPC_URL"),
    ("wallet", "TOLLGATE_WALLET_GRPC_URL"),
    ("usage-ingest", "TOLLGATE_USAGE_INGEST_GRPC_URL"),
    ("stats-aggregator", "TOLLGATE_STATS_AGGREGATOR_GRPC_URL"),
    ("anomaly-detector", "TOLLGATE_ANOMALY_DETECTOR_GRPC_URL"),
];

/// Rows of one answer at most.
const PAGE_MAX: u32 = 1000;

/// A system that commands act upon.
pub(crate) struct System {
    /// The running `tollgate dev`, if it is one.
    pub(crate) dev: Option<Ready>,
    urls: BTreeMap<&'static str, String>,
    token: Option<SecretString>,
    postgres_url: Option<SecretString>,
    nats_url: Option<SecretString>,
}

impl System {
    /// The running `tollgate dev` of the folder `data`, else of `./.tollgate`, else what the
    /// environment names.
    pub(crate) fn find(data: Option<&Path>) -> Result<Self> {
        let (folder, is_named) = match data {
            Some(folder) => (folder.to_owned(), true),
            None => (PathBuf::from(layout::FOLDER), false),
        };
        if let Some(ready) = running(&folder)? {
            return Ok(Self::of_dev(ready));
        }
        if is_named {
            let folder = folder.display();
            let text = format!(
                "no `tollgate dev` runs in {folder}: start one with `tollgate dev --data {folder}`"
            );
            return Err(Failure::usage(text));
        }
        Ok(Self::of_environment())
    }

    /// A system that `tollgate dev` runs.
    pub(crate) fn of_dev(ready: Ready) -> Self {
        let url = |name: &'static str| Some((name, ready.grpc.get(name)?.clone()));
        Self {
            urls: URLS.iter().filter_map(|(name, _)| url(name)).collect(),
            token: Some(SecretString::from(ready.demo.operator_token.clone())),
            postgres_url: Some(SecretString::from(ready.postgres_url.clone())),
            nats_url: Some(SecretString::from(ready.nats_url.clone())),
            dev: Some(ready),
        }
    }

    /// The system that the variables of the services name.
    pub(crate) fn of_environment() -> Self {
        let mut variables = Variables::from_process();
        let urls = URLS.iter().filter_map(|(service, variable)| {
            Some((
                *service,
                variables.optional(variable, "where it is reached")?,
            ))
        });
        Self {
            dev: None,
            urls: urls.collect(),
            token: variables.secret_optional("TOLLGATE_OPERATOR_TOKEN", "may call every method"),
            postgres_url: variables.secret_optional("DATABASE_URL", "PostgreSQL"),
            nats_url: variables.secret_optional("NATS_URL", "NATS with JetStream"),
        }
    }

    /// What a process needs that does a gateway's work on this system.
    pub(crate) fn as_gateway(&self) -> Result<Variables> {
        let mut own = Variables::from_process();
        let service = own.secret_optional("TOLLGATE_SERVICE_TOKEN", "shared by all services");
        let token = self.token.clone().or(service);
        let token = token.ok_or_else(|| missing("TOLLGATE_OPERATOR_TOKEN"))?;
        let url = |service, variable| self.urls.get(service).ok_or_else(|| missing(variable));
        let wallet = url("wallet", "TOLLGATE_WALLET_GRPC_URL")?;
        let usage_ingest = url("usage-ingest", "TOLLGATE_USAGE_INGEST_GRPC_URL")?;
        let nats = self.nats_url.as_ref().ok_or_else(|| missing("NATS_URL"))?;
        let mut pairs = vec![
            ("NATS_URL", nats.expose_secret().to_owned()),
            ("TOLLGATE_WALLET_GRPC_URL", wallet.clone()),
            ("TOLLGATE_USAGE_INGEST_GRPC_URL", usage_ingest.clone()),
            ("TOLLGATE_SERVICE_TOKEN", token.expose_secret().to_owned()),
            ("TOLLGATE_OPERATOR_TOKEN", token.expose_secret().to_owned()),
            ("TOLLGATE_LOG_PRETTY", "true".to_owned()),
            ("RUST_LOG", own.text("RUST_LOG", "warn", "what is logged")),
        ];
        let crash_at = own.optional("TOLLGATE_CRASH_AT", "debug builds: die at this point");
        pairs.extend(crash_at.map(|point| ("TOLLGATE_CRASH_AT", point)));
        let owned = |(name, value): (&str, String)| (name.to_owned(), value);
        Ok(Variables::from_pairs(pairs.into_iter().map(owned)))
    }

    /// Does it say where PostgreSQL is?
    pub(crate) fn names_postgres(&self) -> bool {
        self.postgres_url.is_some()
    }

    /// The database of all schemas.
    pub(crate) fn postgres_url(&self) -> Result<&SecretString> {
        self.postgres_url
            .as_ref()
            .ok_or_else(|| missing("DATABASE_URL"))
    }

    fn channel(&self, service: &str) -> Result<Channel> {
        let variable = URLS.iter().find(|(name, _)| *name == service);
        let variable = variable.map_or(service, |(_, variable)| variable);
        let url = self.urls.get(service).ok_or_else(|| missing(variable))?;
        let token = self
            .token
            .as_ref()
            .ok_or_else(|| missing("TOLLGATE_OPERATOR_TOKEN"))?;
        Ok(runtime::grpc::client(url, token)?)
    }

    pub(crate) fn keys(&self) -> Result<Keys> {
        Ok(Keys::new(self.channel("keys")?))
    }

    /// People live in the service of keys.
    pub(crate) fn people(&self) -> Result<People> {
        Ok(People::new(self.channel("keys")?))
    }

    pub(crate) fn wallet(&self) -> Result<Wallet> {
        Ok(Wallet::new(self.channel("wallet")?))
    }

    pub(crate) fn usage_ingest(&self) -> Result<UsageIngest> {
        Ok(UsageIngest::new(self.channel("usage-ingest")?))
    }

    pub(crate) fn stats_aggregator(&self) -> Result<StatsAggregator> {
        Ok(StatsAggregator::new(self.channel("stats-aggregator")?))
    }

    /// The names of the services, all of which may have dead letters.
    pub(crate) fn services() -> impl Iterator<Item = &'static str> {
        URLS.iter().map(|(name, _)| *name)
    }

    /// The dead letters of a service.
    pub(crate) fn letters(&self, service: &str) -> Result<Letters> {
        if !Self::services().any(|name| name == service) {
            let names: Vec<&str> = Self::services().collect();
            let text = format!(
                "`{service}` has no letters; these may: {}",
                names.join(", ")
            );
            return Err(Failure::usage(text));
        }
        Ok(Letters::new(self.channel(service)?))
    }

    pub(crate) fn anomaly_detector(&self) -> Result<AnomalyDetector> {
        Ok(AnomalyDetector::new(self.channel("anomaly-detector")?))
    }
}

fn missing(variable: &str) -> Failure {
    Failure::usage(format!(
        "there is no running `tollgate dev` here (start one, or name its folder with --data), and \
         {variable} is not set"
    ))
}

/// What the `tollgate dev` of a folder says of itself, if one runs there.
fn running(folder: &Path) -> Result<Option<Ready>> {
    // One that was killed leaves its file, but not its lock.
    let is_running = File::open(folder.join(layout::LOCK)).is_ok_and(|lock| {
        matches!(
            lock.try_lock_shared(),
            Err(std::fs::TryLockError::WouldBlock)
        )
    });
    if !is_running {
        return Ok(None);
    }
    Ok(Ready::load(&folder.join(layout::READY))?)
}

/// Reads pages until there is nothing more or `limit` is reached.
pub(crate) async fn pages<T, F, Fut>(limit: u32, mut page: F) -> Result<Vec<T>>
where
    F: FnMut(u32, String) -> Fut,
    Fut: Future<Output = std::result::Result<(Vec<T>, String), Status>>,
{
    let limit = usize::try_from(limit)?;
    let mut all = Vec::new();
    let mut token = String::new();
    while all.len() < limit {
        let size = u32::try_from(limit - all.len())?.min(PAGE_MAX);
        let (rows, next) = page(size, token).await?;
        all.extend(rows);
        token = next;
        if token.is_empty() {
            break;
        }
    }
    all.truncate(limit);
    Ok(all)
}

/// A point in time as people and scripts read it.
pub(crate) fn time(at: Option<&Timestamp>) -> Value {
    match at.map(|at| proto::convert::from_timestamp("time", at)) {
        Some(Ok(at)) => Value::String(at.to_string()),
        _ => Value::Null,
    }
}

/// A text that holds JSON, as what it holds.
pub(crate) fn embedded(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}
