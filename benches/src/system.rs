//! The running `tollgate dev` that is measured.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use proto::{
    channel::Channel, keys::v1::keys_service_client::KeysServiceClient,
    wallet::v1::wallet_service_client::WalletServiceClient,
};
use secrecy::SecretString;
use serde_json::Value;
use testkit::load::{Connection, Shot};

/// Management of keys and organisations.
pub(crate) type Keys = KeysServiceClient<Channel>;
/// Management of credits.
pub(crate) type Wallet = WalletServiceClient<Channel>;

/// A call that costs one credit and needs `SCOPE`.
pub(crate) const PATH: &str = "/api/v1/mileage/distance?from=48.85,2.35&to=43.29,5.37";
/// What `PATH` needs.
pub(crate) const SCOPE: &str = "mileage:calculate";
/// A scope that does not allow it.
pub(crate) const OTHER_SCOPE: &str = "pdf:read";

/// A system, found by the folder it runs in.
pub(crate) struct System {
    data: PathBuf,
}

/// One of its gateways.
#[derive(Clone, Debug)]
pub(crate) struct Gateway {
    /// Where calls go.
    pub(crate) url: String,
    /// Where its metrics are.
    pub(crate) ops: String,
}

impl System {
    /// The one that runs in a folder.
    pub(crate) fn find(data: &Path) -> anyhow::Result<Self> {
        let system = Self {
            data: data.to_owned(),
        };
        system.info()?;
        Ok(system)
    }

    /// Its `dev.json` as it is now.
    pub(crate) fn info(&self) -> anyhow::Result<Value> {
        let file = self.data.join("dev.json");
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("{}: is `tollgate dev` running there?", file.display()))?;
        Ok(serde_json::from_str(&text)?)
    }

    /// A text of `dev.json`, by JSON pointer.
    pub(crate) fn text(&self, pointer: &str) -> anyhow::Result<String> {
        let info = self.info()?;
        let found = info.pointer(pointer).and_then(Value::as_str);
        let found = found.with_context(|| format!("dev.json has no {pointer}"))?;
        Ok(found.to_owned())
    }

    /// Where the metrics of a service are.
    pub(crate) fn ops(&self, service: &str) -> anyhow::Result<String> {
        self.text(&format!("/ops/{service}"))
    }

    /// All gateways.
    pub(crate) fn gateways(&self) -> anyhow::Result<Vec<Gateway>> {
        let info = self.info()?;
        let urls = info["gateway"].as_array().context("no gateways")?;
        let mut found = Vec::with_capacity(urls.len());
        for (url, number) in urls.iter().zip(1..) {
            // The first one is known by the name of the service.
            let ops = match number {
                1 => self.ops("gateway")?,
                _ => self.ops(&format!("gateway-{number}"))?,
            };
            let url = url.as_str().context("no address of a gateway")?.to_owned();
            found.push(Gateway { url, ops });
        }
        Ok(found)
    }

    /// The keys service, as an operator.
    pub(crate) fn keys(&self) -> anyhow::Result<Keys> {
        Ok(Keys::new(self.channel("keys")?))
    }

    /// The wallet, as an operator.
    pub(crate) fn wallet(&self) -> anyhow::Result<Wallet> {
        Ok(Wallet::new(self.channel("wallet")?))
    }

    fn channel(&self, service: &str) -> anyhow::Result<Channel> {
        let token = SecretString::from(self.text("/demo/operator_token")?);
        runtime::grpc::client(&self.text(&format!("/grpc/{service}"))?, &token)
    }

    /// Present processes of a service, in the order of their names.
    pub(crate) fn pids(&self, service: &str) -> anyhow::Result<Vec<i32>> {
        let info = self.info()?;
        // A server has one process, a service may have several.
        let pids = match &info["pids"][service] {
            Value::Array(pids) => pids.clone(),
            Value::Null => anyhow::bail!("{service} has no process"),
            pid => vec![pid.clone()],
        };
        let mut found = Vec::with_capacity(pids.len());
        for pid in &pids {
            found.push(i32::try_from(pid.as_i64().context("a pid is a number")?)?);
        }
        Ok(found)
    }

    /// The program that runs, even if its file was replaced since.
    pub(crate) fn program(&self) -> anyhow::Result<PathBuf> {
        let pids = self.pids("tollgate")?;
        let pid = pids.first().context("no process of its own")?;
        Ok(PathBuf::from(format!("/proc/{pid}/exe")))
    }

    /// Its folder.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }
}

/// Waits for nothing: is the process with this address for operators ready?
pub(crate) async fn is_ready(ops: &str) -> anyhow::Result<()> {
    let answer = Connection::to(ops).call("", &Shot::get("/readyz")).await?;
    anyhow::ensure!(answer.status == 200, "/readyz answers {}", answer.status);
    Ok(())
}
