//! Secrets of one folder: made once, kept as long as the data they belong to.

use std::fs;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::layout::write_private;
use crate::pepper::random_hex;
use crate::seed::{DemoKeys, Upstreams};

#[derive(Serialize, Deserialize)]
pub(super) struct Secrets {
    pub(super) pepper: String,
    pub(super) service_token: String,
    pub(super) operator_token: String,
    pub(super) principal_secret: String,
    /// Their text cannot be had again.
    pub(super) demo: DemoKeys,
    /// Where the services were pointed to last: what an operator changed since stays.
    pub(super) samples: Upstreams,
}

impl Secrets {
    /// Reads the file, or makes it.
    pub(super) fn load_or_create(path: &Path) -> anyhow::Result<Self> {
        match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text)
                .with_context(|| format!("{} is damaged", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let secrets = Self {
                    pepper: random_hex(),
                    service_token: random_hex(),
                    operator_token: random_hex(),
                    principal_secret: random_hex(),
                    demo: DemoKeys::default(),
                    samples: Upstreams::new(),
                };
                secrets.save(path)?;
                Ok(secrets)
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    pub(super) fn save(&self, path: &Path) -> anyhow::Result<()> {
        write_private(path, self)
    }
}
