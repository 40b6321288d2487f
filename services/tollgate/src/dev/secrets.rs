//! Secrets of one folder: made once, kept as long as the data they belong to.

use std::fs;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::layout::write_private;
use crate::pepper::{PepperFiles, random_hex};
use crate::private;
use crate::seed::{DemoKeys, Upstreams};

#[derive(Serialize, Deserialize)]
pub(super) struct Secrets {
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

    /// Makes the pepper of the folder, unless it has one. It lies in a file of its own, so that it
    /// can be replaced while the services run.
    pub(super) fn make_pepper(files: &PepperFiles) -> anyhow::Result<()> {
        match files.current.exists() {
            true => Ok(()),
            false => private::replace(&files.current, random_hex().as_bytes()),
        }
    }

    pub(super) fn save(&self, path: &Path) -> anyhow::Result<()> {
        write_private(path, self)
    }
}
