//! The upstream's own record of what it answered, one JSON line a call.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::Serialize;
use tracing::error;

use crate::problem::Problem;

/// An append-only file that all upstreams share.
#[derive(Debug)]
pub(crate) struct Transcript {
    file: File,
}

impl Transcript {
    /// Opens the file for appending; what earlier runs wrote stays.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Transcript> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| format!("transcript {}", path.display()))?;
        Ok(Transcript { file })
    }

    /// Appends one line. It is in the kernel when this returns, so a killed process keeps it.
    fn append(&self, entry: &Entry) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        // One write to an O_APPEND file: lines of concurrent calls cannot interleave.
        (&self.file).write_all(&line)
    }
}

/// One call. Neither query nor credentials are in it.
#[derive(Debug, Serialize)]
struct Entry {
    time: Timestamp,
    service: &'static str,
    method: String,
    path: String,
    request_id: Option<String>,
    /// `None`: the client went away before there was an answer.
    status: Option<u16>,
}

/// Writes the calls of one upstream into the shared file.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    service: &'static str,
    transcript: Arc<Transcript>,
}

impl Recorder {
    pub(crate) fn new(service: &'static str, transcript: Arc<Transcript>) -> Recorder {
        Recorder {
            service,
            transcript,
        }
    }

    fn begin(&self, request: &Request) -> Call {
        let request_id = request.headers().get("x-request-id");
        let entry = Entry {
            time: now(),
            service: self.service,
            method: request.method().to_string(),
            path: request.uri().path().to_owned(),
            request_id: request_id.map(|id| String::from_utf8_lossy(id.as_bytes()).into_owned()),
            status: None,
        };
        Call {
            entry,
            transcript: self.transcript.clone(),
            written: false,
        }
    }
}

/// A call being answered. Dropped without an answer, it still leaves its line.
struct Call {
    entry: Entry,
    transcript: Arc<Transcript>,
    written: bool,
}

impl Call {
    fn answered(mut self, status: StatusCode) -> std::io::Result<()> {
        self.entry.status = Some(status.as_u16());
        self.written = true;
        self.transcript.append(&self.entry)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.written {
            return;
        }
        if let Err(error) = self.transcript.append(&self.entry) {
            error!(%error, "transcript line of an abandoned call is lost");
        }
    }
}

/// Writes the line, then lets the answer go. Without the line there is no answer: a call that the
/// upstream served and did not count would be blamed on the gateway.
pub(crate) async fn record(
    State(recorder): State<Recorder>,
    request: Request,
    next: Next,
) -> Response {
    let call = recorder.begin(&request);
    let response = next.run(request).await;
    match call.answered(response.status()) {
        Ok(()) => response,
        Err(error) => {
            error!(%error, "transcript cannot be written");
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            Problem::new(status, "the transcript cannot be written").into_response()
        }
    }
}

/// The time of day. These upstreams play a stranger's software, so there is no clock of ours.
pub(crate) fn now() -> Timestamp {
    let since_epoch = SystemTime::UNIX_EPOCH.elapsed().unwrap_or(Duration::ZERO);
    Timestamp::try_from(SystemTime::UNIX_EPOCH + since_epoch).unwrap_or(Timestamp::UNIX_EPOCH)
}
