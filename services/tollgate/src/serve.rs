//! `tollgate serve`: services in this process, until told to stop.

use anyhow::Context;
use clap::Args;
use runtime::{Node, Variables};

use crate::failure::{Failure, Result};
use crate::migrate;
use crate::roster::{Target, known_variables};
use crate::signals::Signals;

/// Runs services.
#[derive(Args)]
pub(crate) struct Serve {
    /// `all`, or names with commas between them
    #[arg(long, value_name = "NAMES", value_parser = Target::parse)]
    target: Target,
    /// Apply migrations first
    #[arg(long)]
    migrate: bool,
}

pub(crate) async fn run(args: Serve) -> Result {
    let mut variables = Variables::from_process();
    let (settings, configs) = args.target.read(&mut variables);
    variables.finish(&known_variables())?;
    let mut signals = Signals::listen()?;

    let names = args.target.names();
    let mut node = Node::connect(settings, &names).await?;
    let mut is_checked = false;
    for (name, config) in names.iter().zip(configs) {
        let host = node.host(name)?;
        if !is_checked && !args.target.schemas().is_empty() {
            prepare(&node, &args).await?;
            is_checked = true;
        }
        config
            .start(&host)
            .await
            .with_context(|| format!("{name} does not start"))?;
    }
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let served = node.serve(async move {
        // The sender being gone means the same.
        drop(stopped.await);
    });
    let told_twice = async move {
        signals.next().await;
        drop(stop);
        signals.next().await;
    };
    tokio::select! {
        served = served => served.map_err(Failure::from),
        () = told_twice => Err(anyhow::anyhow!("told to stop twice: stopped at once").into()),
    }
}

/// A service must not meet a schema that it does not know.
async fn prepare(node: &Node, args: &Serve) -> anyhow::Result<()> {
    let mut connection = node.login().await.context("PostgreSQL does not answer")?;
    let schemas = args.target.schemas();
    if args.migrate {
        migrate::apply(&mut connection, &schemas).await?;
        return Ok(());
    }
    migrate::check(&mut connection, &schemas).await
}
