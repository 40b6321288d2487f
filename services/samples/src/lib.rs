//! Three small but real upstreams: the software of a company that sells its API by the call.
//!
//! - They know nothing of the gateway in front of them and import no crate of ours.
//! - The same request gets the same answer, ids and times apart.
//! - With a transcript, no answer leaves before its line is in the file; a call whose client went
//!   away first has a line without a status. The file is the upstream's own count.
//! - Every input has a limit, and a refused input says which field is wrong.
#![forbid(unsafe_code)]

mod ai;
mod echo;
mod mileage;
mod pdf;
mod problem;
#[cfg(test)]
mod tests;
mod transcript;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::{any, get};
use axum::{Json, Router};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::transcript::{Recorder, Transcript};

/// Largest request body that is parsed; above it the answer is 413. `/echo` only counts bytes.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// How long open calls may go on after the stop before they are cut.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// Where each upstream listens; port 0 takes a free one.
#[derive(Clone, Copy, Debug)]
pub struct Bind {
    /// The PDF renderer.
    pub pdf: SocketAddr,
    /// The chat completions.
    pub ai: SocketAddr,
    /// The distance calculator.
    pub mileage: SocketAddr,
}

impl Default for Bind {
    /// Free ports on loopback.
    fn default() -> Bind {
        let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Bind {
            pdf: free,
            ai: free,
            mileage: free,
        }
    }
}

/// The upstreams while they run. Dropping it closes the listeners.
#[derive(Debug)]
pub struct Running {
    /// Bound address of the PDF renderer.
    pub pdf: SocketAddr,
    /// Bound address of the chat completions.
    pub ai: SocketAddr,
    /// Bound address of the distance calculator.
    pub mileage: SocketAddr,
    servers: JoinSet<std::io::Result<()>>,
    stop: CancellationToken,
}

/// Starts the three upstreams; they answer when this returns and run until `stop`.
pub async fn serve(
    bind: Bind,
    transcript: Option<PathBuf>,
    stop: CancellationToken,
) -> anyhow::Result<Running> {
    let transcript = transcript
        .map(|path| Transcript::open(&path).map(Arc::new))
        .transpose()?;
    let mut servers = JoinSet::new();
    let pdf = app("pdf", pdf::routes(), transcript.clone());
    let pdf = start(&mut servers, "pdf", bind.pdf, pdf, &stop).await?;
    let ai = app("ai", ai::routes(), transcript.clone());
    let ai = start(&mut servers, "ai", bind.ai, ai, &stop).await?;
    let mileage = app("mileage", mileage::routes(), transcript);
    let mileage = start(&mut servers, "mileage", bind.mileage, mileage, &stop).await?;
    Ok(Running {
        pdf,
        ai,
        mileage,
        servers,
        stop,
    })
}

async fn start(
    servers: &mut JoinSet<std::io::Result<()>>,
    service: &'static str,
    at: SocketAddr,
    app: Router,
    stop: &CancellationToken,
) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(at)
        .await
        .with_context(|| format!("{service} listens on {at}"))?;
    let address = listener.local_addr()?;
    let server = axum::serve(listener, app).with_graceful_shutdown(stop.clone().cancelled_owned());
    servers.spawn(server.into_future());
    info!(service, %address, "sample upstream started");
    Ok(address)
}

impl Running {
    /// Waits for the stop, then for the open calls, at most 5 s.
    pub async fn finished(mut self) -> anyhow::Result<()> {
        self.stop.cancelled().await;
        let drain = async {
            while let Some(ended) = self.servers.join_next().await {
                ended.context("a sample upstream panicked")??;
            }
            anyhow::Ok(())
        };
        match tokio::time::timeout(DRAIN_MAX, drain).await {
            Ok(ended) => ended,
            Err(_elapsed) => {
                warn!("sample upstreams still had open calls at the end of the drain");
                self.servers.shutdown().await;
                Ok(())
            }
        }
    }
}

/// The routes of one upstream with what all three have in common.
fn app(service: &'static str, routes: Router, transcript: Option<Arc<Transcript>>) -> Router {
    let health = json!({ "service": service, "status": "ok" });
    let app = routes
        .route("/health", get(move || async move { Json(health) }))
        .route("/echo", any(echo::echo))
        .route("/echo/{*path}", any(echo::echo))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX));
    match transcript {
        Some(transcript) => {
            let recorder = Recorder::new(service, transcript);
            app.layer(from_fn_with_state(recorder, transcript::record))
        }
        None => app,
    }
}
