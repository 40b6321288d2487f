//! `tollgate samples`: the sample upstreams as a process of their own, for `tollgate dev`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use tokio_util::sync::CancellationToken;

use crate::failure::Result;
use crate::signals::Signals;

/// Runs the sample upstreams.
#[derive(Args)]
pub(crate) struct Samples {
    /// Address of the PDF renderer
    #[arg(long, value_name = "ADDRESS")]
    pdf: SocketAddr,
    /// Address of the chat completions
    #[arg(long, value_name = "ADDRESS")]
    ai: SocketAddr,
    /// Address of the distance calculator
    #[arg(long, value_name = "ADDRESS")]
    mileage: SocketAddr,
    /// Note every answered call in this file
    #[arg(long, value_name = "FILE")]
    transcript: Option<PathBuf>,
}

pub(crate) async fn run(args: Samples) -> Result {
    tracing_subscriber::fmt()
        .json()
        .with_max_level(tracing::Level::INFO)
        .init();
    let mut signals = Signals::listen()?;
    let Samples {
        pdf,
        ai,
        mileage,
        transcript,
    } = args;
    let stop = CancellationToken::new();
    let running =
        samples::serve(samples::Bind { pdf, ai, mileage }, transcript, stop.clone()).await?;
    signals.next().await;
    stop.cancel();
    running.finished().await?;
    Ok(())
}
