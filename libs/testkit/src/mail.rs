//! A mail server that delivers nothing: `tollgate dev` shows what it got, tests read it.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Context;
use axum::extract::State;
use axum::response::Json;
use axum::routing::get;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Messages kept; the oldest goes when the next one needs its place.
const MESSAGES_MAX: usize = 500;
/// A longer line, or message, ends the connection.
const LINE_BYTES_MAX: u64 = 4096;
const MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// A message as it came in.
#[derive(Debug, Clone, Serialize)]
pub struct Message {
    /// Counts from 1.
    pub number: u64,
    pub to: Vec<String>,
    pub subject: String,
    /// The text, decoded.
    pub text: String,
    /// The same as HTML; empty when there is none.
    pub html: String,
}

#[derive(Debug, Default)]
struct Messages {
    received: u64,
    kept: VecDeque<Message>,
}

type Shared = Arc<Mutex<Messages>>;

/// The sink while it runs. Dropping it closes both ports.
#[derive(Debug)]
pub struct Sink {
    smtp: SocketAddr,
    page: SocketAddr,
    _tasks: JoinSet<()>,
}

/// Listens on loopback for SMTP and, with `GET /api/messages`, for readers; port 0 takes a free
/// one.
///
/// # Errors
/// A port is taken.
pub async fn serve(smtp_port: u16, page_port: u16) -> anyhow::Result<Sink> {
    let messages = Shared::default();
    let smtp = TcpListener::bind((Ipv4Addr::LOCALHOST, smtp_port))
        .await
        .with_context(|| format!("mail sink listens on port {smtp_port}"))?;
    let page = TcpListener::bind((Ipv4Addr::LOCALHOST, page_port))
        .await
        .with_context(|| format!("mail page listens on port {page_port}"))?;
    let (smtp_at, page_at) = (smtp.local_addr()?, page.local_addr()?);
    let routes = axum::Router::new()
        .route("/api/messages", get(list))
        .with_state(messages.clone());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        if let Err(error) = axum::serve(page, routes).await {
            tracing::warn!(%error, "the mail page has ended");
        }
    });
    tasks.spawn(async move {
        let mut clients = JoinSet::new();
        while let Ok((stream, _)) = smtp.accept().await {
            while clients.try_join_next().is_some() {}
            let messages = messages.clone();
            clients.spawn(async move {
                if let Err(error) = converse(stream, &messages).await {
                    tracing::debug!(%error, "a mail client has left");
                }
            });
        }
    });
    Ok(Sink {
        smtp: smtp_at,
        page: page_at,
        _tasks: tasks,
    })
}

impl Sink {
    /// What `TOLLGATE_KEYS_SMTP_URL` is set to.
    pub fn smtp_url(&self) -> String {
        format!("smtp://{}", self.smtp)
    }

    /// Where messages are read: `/api/messages` below it.
    pub fn page_url(&self) -> String {
        format!("http://{}", self.page)
    }
}

async fn list(State(messages): State<Shared>) -> Json<Vec<Message>> {
    Json(messages.lock().kept.iter().cloned().collect())
}

/// Speaks as much of RFC 5321 as a sender needs.
async fn converse(mut stream: TcpStream, messages: &Shared) -> anyhow::Result<()> {
    let (read, mut write) = stream.split();
    let mut read = BufReader::new(read);
    let mut to = Vec::new();
    write.write_all(b"220 tollgate mail sink\r\n").await?;
    loop {
        let mut line = String::new();
        if (&mut read)
            .take(LINE_BYTES_MAX)
            .read_line(&mut line)
            .await?
            == 0
        {
            return Ok(());
        }
        let verb = line.trim_end().to_ascii_uppercase();
        let answer: &[u8] = if verb.starts_with("RCPT TO:") {
            let address = line.split(['<', '>']).nth(1).unwrap_or_default();
            to.push(address.to_owned());
            b"250 ok\r\n"
        } else if verb == "DATA" {
            write.write_all(b"354 end with a dot\r\n").await?;
            let raw = receive(&mut read).await?;
            keep(messages, std::mem::take(&mut to), &raw);
            b"250 kept\r\n"
        } else if verb == "QUIT" {
            write.write_all(b"221 bye\r\n").await?;
            return Ok(());
        } else {
            b"250 ok\r\n"
        };
        write.write_all(answer).await?;
    }
}

async fn receive(read: &mut (impl tokio::io::AsyncBufRead + Unpin)) -> anyhow::Result<String> {
    let mut raw = String::new();
    loop {
        let mut line = String::new();
        let size = (&mut *read)
            .take(LINE_BYTES_MAX)
            .read_line(&mut line)
            .await?;
        anyhow::ensure!(size > 0, "the message has no end");
        anyhow::ensure!(
            raw.len() + size <= MESSAGE_BYTES_MAX,
            "the message is too long"
        );
        match line.strip_prefix('.') {
            Some("\r\n" | "\n") => return Ok(raw),
            Some(stuffed) => raw.push_str(stuffed),
            None => raw.push_str(&line),
        }
    }
}

fn keep(messages: &Shared, to: Vec<String>, raw: &str) {
    let whole = Part::new(raw);
    let subject = unencode(whole.header("Subject").unwrap_or_default());
    let (mut text, mut html) = (String::new(), String::new());
    for part in whole.parts() {
        let kind = part.header("Content-Type").unwrap_or_default();
        if kind.starts_with("text/html") {
            html = part.text();
        } else {
            text = part.text();
        }
    }
    let mut messages = messages.lock();
    messages.received += 1;
    let message = Message {
        number: messages.received,
        to,
        subject,
        text,
        html,
    };
    messages.kept.push_back(message);
    if messages.kept.len() > MESSAGES_MAX {
        messages.kept.pop_front();
    }
}

/// A message, or a part of one.
struct Part<'a> {
    head: String,
    body: &'a str,
}

impl<'a> Part<'a> {
    fn new(raw: &'a str) -> Self {
        let (head, body) = raw.split_once("\r\n\r\n").unwrap_or((raw, ""));
        Self {
            head: head.replace("\r\n ", " "),
            body,
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let (_, value) = lines.find(|(found, _)| found.eq_ignore_ascii_case(name))?;
        Some(value)
    }

    /// The parts of a multipart message (RFC 2046, 5.1), else itself.
    fn parts(self) -> Vec<Self> {
        let kind = self.header("Content-Type").unwrap_or_default();
        let boundary = kind.split("boundary=\"").nth(1);
        let Some(boundary) = boundary.and_then(|rest| rest.split('"').next()) else {
            return vec![self];
        };
        let delimiter = format!("--{boundary}");
        let parts = self.body.split(delimiter.as_str()).skip(1);
        let parts = parts.filter_map(|part| part.strip_prefix("\r\n"));
        parts.map(Part::new).collect()
    }

    fn text(&self) -> String {
        let quoted = self.header("Content-Transfer-Encoding") == Some("quoted-printable");
        let text = if quoted {
            unquote(self.body)
        } else {
            self.body.to_owned()
        };
        text.replace("\r\n", "\n")
    }
}

/// Decodes the words of a header that are UTF-8 in base64 (RFC 2047).
fn unencode(header: &str) -> String {
    let mut text = String::new();
    // White space between two encoded words is none.
    let joined = header.replace("?= =?", "?==?");
    let mut rest = joined.as_str();
    while let Some((before, behind)) = rest.split_once("=?utf-8?b?") {
        let (word, behind) = behind.split_once("?=").unwrap_or((behind, ""));
        let bytes = STANDARD.decode(word).unwrap_or_default();
        text.push_str(before);
        text.push_str(&String::from_utf8_lossy(&bytes));
        rest = behind;
    }
    text.push_str(rest);
    text
}

/// Decodes quoted-printable (RFC 2045, 6.7); what is malformed stays.
fn unquote(text: &str) -> String {
    let joined = text.replace("=\r\n", "");
    let mut bytes = Vec::with_capacity(joined.len());
    let mut rest = joined.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail
            .get(..2)
            .and_then(|pair| std::str::from_utf8(pair).ok());
        let code = digits.and_then(|pair| u8::from_str_radix(pair, 16).ok());
        rest = match (first, code) {
            (b'=', Some(code)) => {
                bytes.push(code);
                &tail[2..]
            }
            _ => {
                bytes.push(*first);
                tail
            }
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
