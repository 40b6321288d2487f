//! `dev.json`: where everything is, for scripts and for the other commands.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::pepper::PepperFiles;
use crate::seed::Upstreams;

/// Written when everything answers, kept current, removed on stop.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Ready {
    /// Every gateway.
    pub(crate) gateway: Vec<String>,
    /// The management API.
    pub(crate) api: Option<String>,
    /// The ops listener of each service; of the first gateway as `gateway`, then `gateway-2`, ….
    pub(crate) ops: BTreeMap<String, String>,
    /// gRPC of each service.
    pub(crate) grpc: BTreeMap<String, String>,
    pub(crate) postgres_url: String,
    pub(crate) redis_url: String,
    pub(crate) nats_url: String,
    /// The page of traces, unless they go elsewhere.
    pub(crate) traces: Option<String>,
    /// Mails that were sent, at `/api/messages` below it, unless they go elsewhere.
    pub(crate) mail: Option<String>,
    /// Root directories of journals.
    pub(crate) journals: Vec<PathBuf>,
    /// The files of the peppers, for `tollgate pepper rotate`.
    pub(crate) peppers: PepperFiles,
    /// The sample upstreams.
    pub(crate) samples: Upstreams,
    pub(crate) pids: BTreeMap<String, Pids>,
    pub(crate) demo: DemoAccess,
}

/// A server has one process, a service may have several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Pids {
    One(u32),
    Many(Vec<u32>),
}

/// The demo organisation with its secrets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DemoAccess {
    pub(crate) org_id: String,
    pub(crate) user_id: String,
    pub(crate) live_key: String,
    pub(crate) test_key: String,
    pub(crate) operator_token: String,
    /// Balance of its wallet when this was written first.
    pub(crate) live_balance: i64,
}

impl Ready {
    /// Reads the file; `None` while it is not there.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Option<Self>> {
        let text = match fs::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let ready = serde_json::from_slice(&text)
            .with_context(|| format!("{} is not what `tollgate dev` writes", path.display()))?;
        Ok(Some(ready))
    }
}
