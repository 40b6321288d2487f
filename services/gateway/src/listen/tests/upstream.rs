//! An upstream that reads strictly and remembers what it got.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::atomic::Ordering,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

use super::Front;

/// A request as it came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Got {
    /// Method and target.
    pub(super) line: String,
    /// In lower case.
    pub(super) fields: String,
    pub(super) body: Vec<u8>,
}

/// What came on a connection and is no whole request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Left {
    pub(super) bytes: String,
    /// The rest may come.
    pub(super) is_open: bool,
}

impl Left {
    /// Whether it is the beginning of one request, whose body begins with some of `body`.
    pub(super) fn begins(&self, line: &str, body: &str) -> bool {
        let line = format!("{line} HTTP/1.1\r\n");
        let Some((head, came)) = self.bytes.split_once("\r\n\r\n") else {
            return false;
        };
        if !head.starts_with(&line) {
            return false;
        }
        if !head
            .to_lowercase()
            .contains("\r\ntransfer-encoding: chunked")
        {
            return body.starts_with(came);
        }
        let (mut came, mut pieces) = (came, String::new());
        while !came.is_empty() {
            // Small chunks are written whole; the last one would say that the request is.
            let Some((piece, behind)) = chunk(came).filter(|(piece, _)| !piece.is_empty()) else {
                return false;
            };
            pieces += piece;
            came = behind;
        }
        body.starts_with(&pieces)
    }
}

/// The first chunk, and what is behind it.
fn chunk(text: &str) -> Option<(&str, &str)> {
    let (size, behind) = text.split_once("\r\n")?;
    let size = usize::from_str_radix(size, 16).ok()?;
    let (piece, behind) = behind.split_at_checked(size)?;
    Some((piece, behind.strip_prefix("\r\n")?))
}

impl Front {
    /// All that the upstream got since it was last asked, now that nothing is on its way any more.
    pub(super) async fn arrived(&self) -> (Vec<Got>, Vec<Left>) {
        let in_flight = &self.rig.worker.edge.in_flight;
        self.until(|_| in_flight.load(Ordering::Acquire) == 0).await;
        // What was written before this call was is read before it is answered.
        self.assert_serves().await;
        let ended = self
            .upstream
            .until(|upstream| upstream.left().iter().all(|left| !left.is_open));
        // Who waits in vain is told so by what is open still.
        drop(tokio::time::timeout(Duration::from_secs(2), ended).await);
        let mut got = self.upstream.take();
        let good = got.iter().rposition(|got| got.line == "GET /good");
        got.remove(good.expect("it came"));
        (got, self.upstream.take_left())
    }
}

#[derive(Default)]
struct Shared {
    got: RefCell<Vec<Got>>,
    /// By the number of the connection.
    left: RefCell<BTreeMap<usize, Left>>,
    connections: Cell<usize>,
    opened: Cell<usize>,
    changed: Notify,
    /// Lets streams end.
    finish: Notify,
    /// What is answered to `/raw`.
    raw: RefCell<Raw>,
}

/// An answer byte by byte.
#[derive(Clone, Default)]
pub(super) struct Raw {
    pub(super) pieces: Vec<Vec<u8>>,
    /// The connection ends with it.
    pub(super) ends: bool,
}

/// A running upstream.
#[derive(Clone)]
pub(super) struct Upstream(Rc<Shared>);

impl Upstream {
    pub(super) fn start(listener: TcpListener) -> Self {
        let upstream = Self(Rc::default());
        let own = upstream.clone();
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let own = own.clone();
                tokio::task::spawn_local(async move {
                    let shared = &own.0;
                    shared.connections.set(shared.connections.get() + 1);
                    shared.opened.set(shared.opened.get() + 1);
                    let number = shared.opened.get();
                    let left = own.serve(stream, number).await;
                    shared.connections.set(shared.connections.get() - 1);
                    own.note_left(number, &left, false);
                });
            }
        });
        upstream
    }

    /// The requests so far; they are forgotten.
    pub(super) fn take(&self) -> Vec<Got> {
        std::mem::take(&mut self.0.got.borrow_mut())
    }

    /// What is no whole request so far, of each connection.
    pub(super) fn left(&self) -> Vec<Left> {
        self.0.left.borrow().values().cloned().collect()
    }

    /// The same, and it is forgotten.
    pub(super) fn take_left(&self) -> Vec<Left> {
        std::mem::take(&mut *self.0.left.borrow_mut())
            .into_values()
            .collect()
    }

    fn note_left(&self, number: usize, bytes: &[u8], is_open: bool) {
        let mut left = self.0.left.borrow_mut();
        left.remove(&number);
        if !bytes.is_empty() {
            let bytes = String::from_utf8_lossy(bytes).into_owned();
            left.insert(number, Left { bytes, is_open });
        }
        self.0.changed.notify_waiters();
    }

    /// Connections, with those that have ended.
    pub(super) fn opened(&self) -> usize {
        self.0.opened.get()
    }

    pub(super) fn connections(&self) -> usize {
        self.0.connections.get()
    }

    /// Waits until a condition holds.
    pub(super) async fn until(&self, mut holds: impl FnMut(&Self) -> bool) {
        loop {
            let changed = self.0.changed.notified();
            if holds(self) {
                return;
            }
            changed.await;
        }
    }

    /// Answers so to `/raw` from now on.
    pub(super) fn say(&self, raw: Raw) {
        *self.0.raw.borrow_mut() = raw;
    }

    /// Lets the streams end that wait for it.
    pub(super) fn finish(&self) {
        self.0.finish.notify_waiters();
    }

    pub(super) fn count(&self) -> usize {
        self.0.got.borrow().len()
    }

    /// Serves a connection. Returns what was no whole request.
    async fn serve(&self, mut stream: TcpStream, number: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            while let Some((got, length)) = parse(&bytes) {
                bytes.drain(..length);
                let line = got.line.clone();
                self.0.got.borrow_mut().push(got);
                self.0.changed.notify_waiters();
                if self.answer(&mut stream, &line).await.is_err() {
                    return bytes;
                }
            }
            self.note_left(number, &bytes, true);
            match stream.read_buf(&mut bytes).await {
                Ok(0) | Err(_) => return bytes,
                Ok(_) => {}
            }
        }
    }

    async fn answer(&self, stream: &mut TcpStream, line: &str) -> std::io::Result<()> {
        if line.contains("/big") {
            let head = b"HTTP/1.1 200 OK\r\ncontent-length: 67108864\r\n\r\n";
            stream.write_all(head).await?;
            let piece = vec![b'x'; 65_536];
            for _ in 0..1024 {
                stream.write_all(&piece).await?;
            }
            return Ok(());
        }
        if line.contains("/raw") {
            let Raw { pieces, ends } = self.0.raw.borrow().clone();
            for piece in pieces {
                stream.write_all(&piece).await?;
                // Each piece is read by itself: others may run before the next one.
                stream.flush().await?;
                tokio::task::yield_now().await;
            }
            let ended = std::io::Error::from(std::io::ErrorKind::ConnectionAborted);
            return if ends { Err(ended) } else { Ok(()) };
        }
        if line.contains("/events") {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                        transfer-encoding: chunked\r\n\r\nd\r\ndata: first\n\n\r\n";
            let finish = self.0.finish.notified();
            stream.write_all(head.as_bytes()).await?;
            finish.await;
            let end = b"c\r\ndata: last\n\n\r\n0\r\n\r\n";
            return stream.write_all(end).await;
        }
        let body = if line.starts_with("HEAD ") { "" } else { "ok" };
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{body}");
        stream.write_all(answer.as_bytes()).await
    }
}

/// The first request and how long it is, once it is there. What could be read in two ways is none.
fn parse(bytes: &[u8]) -> Option<(Got, usize)> {
    let end = memchr::memmem::find(bytes, b"\r\n\r\n")? + 4;
    let head = str::from_utf8(&bytes[..end]).expect("text");
    let (line, fields) = head.split_once("\r\n").expect("a line");
    let fields = format!("\r\n{}", fields.to_lowercase());
    let line = line.strip_suffix(" HTTP/1.1").expect("a version");
    assert_eq!(line.split(' ').count(), 2, "{line:?}");
    let all = |name: &str| -> Vec<String> {
        let lines = fields.split("\r\n");
        lines
            .filter_map(|line| line.split_once(':'))
            .filter(|(found, _)| *found == name)
            .map(|(_, value)| value.trim().to_owned())
            .collect()
    };
    let (lengths, codings) = (all("content-length"), all("transfer-encoding"));
    assert!(lengths.len() + codings.len() <= 1, "{fields:?}");
    assert_eq!(all("host").len(), 1, "{fields:?}");
    let (body, whole) = match (lengths.first(), codings.first()) {
        (Some(length), _) => {
            let whole = end + length.parse::<usize>().expect("a length");
            (bytes.get(end..whole)?.to_vec(), whole)
        }
        (None, Some(coding)) => {
            assert_eq!(coding, "chunked", "{fields:?}");
            dechunk(bytes, end)?
        }
        (None, None) => (Vec::new(), end),
    };
    let got = Got {
        line: line.to_owned(),
        fields,
        body,
    };
    Some((got, whole))
}

fn dechunk(bytes: &[u8], mut at: usize) -> Option<(Vec<u8>, usize)> {
    let mut body = Vec::new();
    loop {
        let line = memchr::memmem::find(&bytes[at..], b"\r\n")? + at;
        let size = str::from_utf8(&bytes[at..line]).expect("text");
        let size = usize::from_str_radix(size, 16).expect("a size");
        at = line + 2;
        if size == 0 {
            let end = memchr::memmem::find(&bytes[at - 2..], b"\r\n\r\n")? + at + 2;
            return Some((body, end));
        }
        body.extend_from_slice(bytes.get(at..at + size)?);
        bytes.get(at + size..at + size + 2)?;
        at += size + 2;
    }
}
