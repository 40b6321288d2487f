//! `tollgate pepper`: secrets from the operating system's generator.

use std::fmt::Write;

use clap::Subcommand;
use rand::TryRng;
use serde_json::json;

use crate::output::Output;

/// Makes peppers.
#[derive(Subcommand)]
pub(crate) enum Pepper {
    /// Print a new pepper for API_KEY_PEPPER: 256 random bits as 64 hex digits
    Generate,
}

pub(crate) fn run(command: &Pepper, output: &Output) {
    let Pepper::Generate = command;
    let pepper = random_hex();
    if output.is_json() {
        output.json(&json!({ "pepper": pepper }));
    } else {
        output.text(&pepper);
    }
}

/// 256 bits, 64 digits.
pub(crate) fn random_hex() -> String {
    let mut bytes = [0_u8; 32];
    rand::rngs::SysRng
        .try_fill_bytes(&mut bytes)
        .expect("the operating system has randomness to give");
    let mut text = String::with_capacity(64);
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a text takes everything");
    }
    text
}
