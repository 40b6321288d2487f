//! `tollgate config`: what a process would be told, before it is started.

use clap::Args;
use runtime::Variables;
use runtime::config::Origin;
use serde_json::json;

use crate::failure::Result;
use crate::output::Output;
use crate::roster::{Target, known_variables};

/// Shows effective values.
#[derive(Args)]
pub(crate) struct Config {
    /// `all`, or names with commas between them
    #[arg(long, value_name = "NAMES", value_parser = Target::parse, default_value = "all")]
    target: Target,
}

/// Prints every variable, then what is wrong with them.
pub(crate) fn run(args: &Config, output: &Output) -> Result {
    let mut variables = Variables::from_process();
    args.target.read(&mut variables);
    let rows = variables.settings().iter().map(|setting| {
        let origin = match setting.origin {
            Origin::Default => "default",
            Origin::Environment => "environment",
            Origin::File => "file",
        };
        json!({
            "name": setting.name,
            "value": setting.value,
            "origin": origin,
            "default": setting.default,
            "meaning": setting.meaning,
        })
    });
    let columns = [
        ("name", "NAME"),
        ("value", "VALUE"),
        ("origin", "ORIGIN"),
        ("meaning", "MEANING"),
    ];
    output.list("settings", &columns, rows.collect());
    variables.finish(&known_variables())?;
    Ok(())
}
