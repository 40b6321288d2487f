//! Tunnels: connections that change their protocol (RFC 9110, 7.8), WebSockets above all.
//!
//! - A tunnel begins when the upstream has answered 101 for the protocol that was asked for. Until
//!   then nothing behind the request leaves for it, and any other answer is an ordinary one.
//! - The call is charged as soon as the 101 is there, however its tunnel ends. That is noted in the
//!   journal before the client hears of it, so a killed gateway's successor charges for it too.
//! - Bytes pass as they come, both ways, no faster than they are taken; each way ends by itself.
//! - A tunnel is a call in flight. It ends with both its ways, after silence, when its key is not
//!   valid any more, or when a gateway that stops has waited long enough.
//! - By HTTP/2 a stream becomes a tunnel (RFC 8441): WebSockets only (`socket.rs`).
//! - HTTP never passes through a tunnel: what it carried would be calls that nobody checks.

mod socket;

use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH, UPGRADE},
};
use http_body::Body as _;
use hyper::{
    body::Incoming,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::TokioIo;
use proto::events::v1::Disposition;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};
use types::{PresentedKey, Refusal};

#[cfg(test)]
pub(crate) use self::socket::accept;
use self::socket::{Socket, WEBSOCKET};
use crate::{
    body::EdgeBody,
    credential, domain,
    edge::{Edge, Worker},
    headers,
    listen::Opened,
    meter::Ticket,
    pool::Lent,
    proxy,
    refuse::Refused,
    strangers::Origin,
    upload::Upload,
};

/// What one way of a tunnel holds of what was read and is not taken yet.
const BUFFER_BYTES: usize = 8 * 1024;
/// Both connections must have changed so long after the 101.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks at a tunnel: whether its key is valid, whether something passed, and whether
/// it is to be noted again.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// A tunnel whose client has ended its way by HTTP/2 ends when nothing has come from the upstream
/// for so long: it may be a reset, which hyper reads as such an end.
const ENDED_IDLE: Duration = Duration::from_secs(10);

/// What a client wants to change to, and its side of the connection.
pub(crate) struct Switch {
    protocol: HeaderValue,
    client: OnUpgrade,
    /// Looked at again while the tunnel lasts.
    key: PresentedKey,
    /// Of a client of HTTP/2.
    socket: Option<Socket>,
    place: Place,
}

/// One of the tunnels that a gateway may have; free again when it is dropped.
struct Place(Arc<Edge>);

impl Place {
    fn take(edge: &Arc<Edge>) -> Result<Self, Refused> {
        let before = edge.tunnels.fetch_add(1, Ordering::AcqRel);
        let place = Self(Arc::clone(edge));
        if before >= edge.tunnels_max() {
            return Err(Refused {
                detail: "There are as many tunnels as there may be: try again when Retry-After \
                         has passed; nothing was charged.",
                ..Refusal::Overloaded.into()
            });
        }
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.tunnels.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Whether a request asks for a protocol that can be tunnelled. Who asks for another one is
/// answered in HTTP, as the standard has it.
///
/// # Errors
/// It does, and has a body: where that ends, and the tunnel begins, is not left to be guessed. Or
/// an idempotency key: a tunnel cannot be given again. Or there are too many tunnels.
pub(crate) fn asked(
    edge: &Arc<Edge>,
    request: &mut Request<Incoming>,
    is_keyed: bool,
) -> Result<Option<Switch>, Refused> {
    if let Some(opened) = request.extensions_mut().remove::<Opened>() {
        return stream(edge, request, opened).map(Some);
    }
    // Set by the server where a connection can change: not in HTTP/1.0, not in HTTP/2.
    if request.extensions().get::<OnUpgrade>().is_none() || request.version() != Version::HTTP_11 {
        return Ok(None);
    }
    let Some(protocol) = wanted(request.headers()) else {
        return Ok(None);
    };
    let Ok(key) = credential::find(request.headers(), request.uri().query()) else {
        return Ok(None);
    };
    if !request.body().is_end_stream() {
        return Err(refused(
            "Send a request without a body to change protocols.",
        ));
    }
    if is_keyed {
        return Err(refused("Send no Idempotency-Key to change protocols."));
    }
    Ok(Some(Switch {
        protocol,
        place: Place::take(edge)?,
        client: hyper::upgrade::on(request),
        key,
        socket: None,
    }))
}

/// What a stream of HTTP/2 is to become. Unlike a connection of HTTP/1.1 it can be nothing else.
fn stream(
    edge: &Arc<Edge>,
    request: &mut Request<Incoming>,
    opened: Opened,
) -> Result<Switch, Refused> {
    if !opened.protocol().eq_ignore_ascii_case(WEBSOCKET) {
        return Err(refused(
            "Open streams for `:protocol` websocket; ask for other protocols by HTTP/1.1.",
        ));
    }
    Ok(Switch {
        protocol: HeaderValue::from_static(WEBSOCKET),
        key: credential::find(request.headers(), request.uri().query())?,
        place: Place::take(edge)?,
        client: hyper::upgrade::on(request),
        socket: Some(Socket::new(&edge.ids, opened)),
    })
}

fn refused(detail: &'static str) -> Refused {
    Refused {
        detail,
        ..Refusal::BadRequest.into()
    }
}

/// The one protocol that `Upgrade` names, when `Connection` says that it is meant.
fn wanted(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut protocols = headers.get_all(UPGRADE).iter();
    let protocol = protocols.next()?;
    let is_one = protocols.next().is_none() && is_protocol(protocol.as_bytes());
    (is_one && nominates_upgrade(headers) && !carries_http(protocol.as_bytes()))
        .then(|| protocol.clone())
}

fn nominates_upgrade(headers: &HeaderMap) -> bool {
    let options = headers.get_all(CONNECTION).iter();
    let mut options = options.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
}

/// A name, and maybe a version behind a slash.
fn is_protocol(text: &[u8]) -> bool {
    let mut parts = text.split(|byte| *byte == b'/');
    let is_token = |part: &[u8]| !part.is_empty() && part.iter().all(headers::is_of_token);
    parts.next().is_some_and(is_token)
        && parts.next().is_none_or(is_token)
        && parts.next().is_none()
}

/// Whether calls could pass through such a tunnel.
fn carries_http(protocol: &[u8]) -> bool {
    let name = protocol.split(|byte| *byte == b'/').next();
    let names: [&[u8]; 4] = [b"h2c", b"h2", b"http", b"tls"];
    name.is_some_and(|name| names.iter().any(|other| name.eq_ignore_ascii_case(other)))
}

impl Switch {
    /// Asks the upstream for the same.
    pub(crate) fn put(&self, headers: &mut HeaderMap) {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, self.protocol.clone());
        if let Some(socket) = &self.socket {
            socket.put(headers);
        }
    }

    /// Whether the upstream, which has answered 101, means this.
    pub(crate) fn is_meant(&self, head: &HeaderMap) -> bool {
        let is_same = wanted(head).is_some_and(|protocol| {
            let (told, asked) = (protocol.as_bytes(), self.protocol.as_bytes());
            told.eq_ignore_ascii_case(asked)
        });
        let socket = self.socket.as_ref();
        is_same && socket.is_none_or(|socket| socket.is_meant(head))
    }

    /// How a call is refused whose upstream has answered something else, which its client would
    /// take for the tunnel.
    pub(crate) fn refusal(&self, status: StatusCode) -> Option<Refused> {
        let is_mistaken = self.socket.is_some() && status.is_success();
        is_mistaken.then(|| Refused {
            detail: "The service opened no WebSocket; the call was not charged.",
            ..Refusal::UpstreamUnreachable.into()
        })
    }

    /// Begins the tunnel, and returns what tells the client.
    ///
    /// # Errors
    /// The call cannot be recorded.
    pub(crate) async fn begin(
        self,
        worker: &Rc<Worker>,
        mut response: Response<Incoming>,
        mut ticket: Ticket,
        (lent, upload): (Lent, Rc<Upload>),
    ) -> Result<Response<EdgeBody>, Refused> {
        let refusal = Refusal::MeteringUnavailable;
        let Ok(proof) = ticket.switched(response.headers()) else {
            ticket.refuse(refusal, Disposition::GatewayAborted);
            return Err(refusal.into());
        };
        if !proof.wait().await {
            ticket.refuse(refusal, Disposition::GatewayAborted);
            let mut unsaid = Response::new(EdgeBody::empty());
            unsaid.extensions_mut().insert(proxy::Unsaid);
            return Ok(unsaid);
        }
        let upstream = hyper::upgrade::on(&mut response);
        let cost = ticket.announce(false);
        let (mut parts, _) = response.into_parts();
        proxy::head(&mut parts, None, cost, false);
        parts.headers.remove(CONTENT_LENGTH);
        match &self.socket {
            None => self.put(&mut parts.headers),
            Some(_) => Socket::tell(&mut parts.status, &mut parts.headers),
        }
        let tunnel = Tunnel {
            edge: Arc::clone(&worker.edge),
            ticket: RefCell::new(ticket),
            upload,
            passed: Cell::new(0),
            is_broken: [Cell::new(false), Cell::new(false)],
            is_ended: Cell::new(false),
            key: self.key,
            lent,
            socket: self.socket,
            _place: self.place,
        };
        let carried = tunnel.carry(self.client, upstream);
        tokio::task::spawn_local(worker.beyond.track_future(carried));
        Ok(Response::from_parts(parts, EdgeBody::empty()))
    }
}

/// A tunnel in use.
struct Tunnel {
    edge: Arc<Edge>,
    ticket: RefCell<Ticket>,
    upload: Rc<Upload>,
    /// Bytes, both ways.
    passed: Cell<u64>,
    /// Whether the client's connection, or the upstream's, has broken.
    is_broken: [Cell<bool>; 2],
    /// The client has ended its way.
    is_ended: Cell<bool>,
    key: PresentedKey,
    /// The connection counts as used.
    lent: Lent,
    /// So does that of a client of HTTP/2.
    socket: Option<Socket>,
    _place: Place,
}

/// Why a tunnel ended before its ends did.
enum Cut {
    Idle,
    Key(Refusal),
}

impl Tunnel {
    async fn carry(self, client: OnUpgrade, upstream: OnUpgrade) {
        let changed = async { tokio::try_join!(client, upstream) };
        let changed = tokio::time::timeout(CHANGE_TIMEOUT, changed).await;
        // Else the client was gone before it heard of the change; the ticket says so.
        let Ok(Ok((client, upstream))) = changed else {
            return;
        };
        let cut = {
            let [client_broken, upstream_broken] = &self.is_broken;
            let mut client = End {
                io: TokioIo::new(client),
                is_broken: client_broken,
                seen: |data: &[u8]| self.came(data),
            };
            let mut upstream = End {
                io: TokioIo::new(upstream),
                is_broken: upstream_broken,
                seen: |data: &[u8]| self.went(data),
            };
            let (size, other) = (BUFFER_BYTES, BUFFER_BYTES);
            tokio::select! {
                ended = copy_bidirectional_with_sizes(&mut client, &mut upstream, size, other) => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a tunnel broke off");
                    }
                    None
                }
                cut = self.look_after() => Some(cut),
            }
        };
        self.end(cut);
    }

    /// From the client; nothing at the end of its way.
    fn came(&self, data: &[u8]) {
        self.is_ended.set(data.is_empty());
        let bytes = self.count(data);
        let upload = &self.upload.bytes;
        upload.set(upload.get().saturating_add(bytes));
    }

    /// To the client.
    fn went(&self, data: &[u8]) {
        self.count(data);
        self.ticket.borrow_mut().sent(data);
    }

    fn count(&self, data: &[u8]) -> u64 {
        let bytes = u64::try_from(data.len()).unwrap_or(u64::MAX);
        self.passed.set(self.passed.get().saturating_add(bytes));
        bytes
    }

    /// Resolves when the tunnel is to be cut.
    async fn look_after(&self) -> Cut {
        let (mut seen, mut quiet) = ((0, false), Duration::ZERO);
        loop {
            tokio::time::sleep(LOOK_PERIOD).await;
            // An end counts like bytes: the time for what may follow begins with it.
            let passed = (self.passed.get(), self.is_ended.get());
            quiet = match passed == seen {
                true => quiet.saturating_add(LOOK_PERIOD),
                false => Duration::ZERO,
            };
            seen = passed;
            if quiet >= self.silence_max() {
                return Cut::Idle;
            }
            if let Some(refusal) = self.judge().await {
                return Cut::Key(refusal);
            }
            self.ticket.borrow_mut().keep_noted();
        }
    }

    fn silence_max(&self) -> Duration {
        let idle = self.edge.tunnel_idle;
        match self.socket.is_some() && self.is_ended.get() {
            true => idle.min(ENDED_IDLE),
            false => idle,
        }
    }

    /// Why the key may not be used any more. What cannot be looked up is taken for unchanged: an
    /// outage cuts nothing.
    async fn judge(&self) -> Option<Refusal> {
        let keyring = &self.edge.keyring;
        let hashing = Arc::clone(&keyring.hashing());
        let hash = hashing.hash(&self.key);
        let entry = match keyring.cached(&hash, self.edge.clock.monotonic_nanos()) {
            Some(entry) => entry,
            None => {
                let (own, sought) = (Arc::clone(keyring), hashing.seek(hash, &self.key));
                let origin = Origin::from(self.ticket.borrow().facts().client);
                let looked_up = async move { own.find(&sought, origin).await };
                match self.edge.control.spawn(looked_up).await {
                    Ok(Ok((Some(entry), _))) => entry,
                    Ok(Ok((None, _))) => return Some(Refusal::InvalidKey),
                    _ => return None,
                }
            }
        };
        domain::judge_key(&entry, self.edge.clock.now().as_microsecond()).err()
    }

    fn end(self, cut: Option<Cut>) {
        let [client, upstream] = self.is_broken.map(Cell::into_inner);
        let ticket = self.ticket.into_inner();
        match cut {
            Some(Cut::Key(refusal)) => ticket.cut(refusal),
            Some(Cut::Idle) => drop(ticket.finish()),
            None if upstream => ticket.abort(),
            None if client => drop(ticket), // says that the client broke off
            None => drop(ticket.finish()),
        }
        drop(self.lent);
    }
}

/// One end of a tunnel, with somebody looking at what is read from it.
struct End<'a, F> {
    io: TokioIo<Upgraded>,
    is_broken: &'a Cell<bool>,
    seen: F,
}

impl<F> End<'_, F> {
    /// A stream of HTTP/2 that its client has reset is read to an orderly end: only who still has
    /// something to send hears of it.
    fn note<T>(&self, done: io::Result<T>) -> io::Result<T> {
        if done.is_err() {
            self.is_broken.set(true);
        }
        done
    }
}

impl<F: FnMut(&[u8]) + Unpin> AsyncRead for End<'_, F> {
    fn poll_read(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut this.io).poll_read(task, buffer));
        let read = this.note(read);
        (this.seen)(buffer.filled().get(before..).unwrap_or_default());
        Poll::Ready(read)
    }
}

impl<F: Unpin> AsyncWrite for End<'_, F> {
    fn poll_write(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.io).poll_write(task, data));
        Poll::Ready(this.note(written))
    }

    fn poll_flush(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = ready!(Pin::new(&mut this.io).poll_flush(task));
        Poll::Ready(this.note(flushed))
    }

    fn poll_shutdown(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let ended = ready!(Pin::new(&mut this.io).poll_shutdown(task));
        Poll::Ready(this.note(ended))
    }
}

#[cfg(test)]
mod tests;
