//! Every variable of the service.

use std::net::SocketAddr;

use runtime::Variables;

/// What the service needs to know.
#[derive(Debug)]
pub struct Config {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Proxies in front that say where requests come from.
    pub trusted_hops: u8,
}

impl Config {
    /// Reads the variables; problems are collected in `variables`.
    pub fn read(variables: &mut Variables) -> Self {
        Self {
            listen: variables.address(
                "TOLLGATE_PORTAL_LISTEN",
                "127.0.0.1:8081",
                "address of the management API",
            ),
            trusted_hops: variables.number(
                "TOLLGATE_PORTAL_TRUSTED_HOPS",
                0,
                0..=8,
                "proxies in front whose X-Forwarded-For entry is believed",
            ),
        }
    }
}
