//! Every variable of the service.

use runtime::Variables;
use secrecy::{ExposeSecret, SecretString};
use types::Pepper;

/// What the service needs to know.
#[derive(Debug)]
pub struct Config {
    /// Hashed with every key.
    pub pepper: SecretString,
    /// What was hashed with keys before the last rotation.
    pub pepper_previous: Option<SecretString>,
}

impl Config {
    /// Reads the variables; problems are collected in `variables`.
    pub fn read(variables: &mut Variables) -> Self {
        let pepper = variables.secret(
            "API_KEY_PEPPER",
            "hashed with every API key, at least 32 bytes; `tollgate pepper generate` makes one",
        );
        let pepper_previous = variables.secret_optional(
            "API_KEY_PEPPER_PREVIOUS",
            "the pepper before the last rotation, while keys still wait for their first use",
        );
        check(variables, "API_KEY_PEPPER", Some(&pepper));
        check(
            variables,
            "API_KEY_PEPPER_PREVIOUS",
            pepper_previous.as_ref(),
        );
        Self {
            pepper,
            pepper_previous,
        }
    }
}

/// An absent pepper was noted by whoever read it.
fn check(variables: &mut Variables, name: &str, pepper: Option<&SecretString>) {
    let text = pepper.map(ExposeSecret::expose_secret).unwrap_or_default();
    if text.is_empty() {
        return;
    }
    if let Err(error) = Pepper::new(text) {
        variables.problem(format!("{name} {error}"));
    }
}
