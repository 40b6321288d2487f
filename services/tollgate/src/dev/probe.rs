//! Asking a listener for the status of one path, as a load balancer would.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// A status line is shorter.
const ANSWER_BYTES_MAX: u64 = 4096;

/// The status of `GET path`.
pub(super) async fn status(port: u16, path: &str) -> anyhow::Result<u16> {
    timeout(ANSWER_WITHIN, ask(port, path))
        .await
        .context("no answer")?
}

async fn ask(port: u16, path: &str) -> anyhow::Result<u16> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream
        .take(ANSWER_BYTES_MAX)
        .read_to_end(&mut answer)
        .await?;
    let answer = String::from_utf8_lossy(&answer);
    let mut words = answer.split(' ');
    let (version, status) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    if !version.starts_with("HTTP/1.") {
        bail!("the answer is not HTTP");
    }
    status.parse().context("the answer has no status")
}
