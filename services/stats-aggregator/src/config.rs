//! Every variable of the service: so far it needs none of its own.

use runtime::Variables;

/// What the service needs to know.
#[derive(Clone, Copy, Debug)]
pub struct Config {}

impl Config {
    /// Reads the variables; problems are collected in `variables`.
    pub fn read(_variables: &mut Variables) -> Self {
        Self {}
    }
}
