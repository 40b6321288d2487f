//! The life of one connection: TLS, which protocol it speaks, its calls, its end.
//!
//! A connection of HTTP/1 is a socket and a place on the roll. Most calls need no more (`express`);
//! hyper and its buffers are there for what does, as long as something happens.

use std::{cell::Cell, net::SocketAddr, pin::Pin, rc::Rc, sync::Arc, task::Poll};

use bytes::Bytes;
use http::{Request, Response, Version};
use hyper::{
    body::Incoming,
    server::conn,
    service::{HttpService, service_fn},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use runtime::crash_point;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use types::Refusal;

use super::{
    Hall,
    answer::{self, refuse},
    door::Peer,
    express::{self, Next, Resume},
    flows::{Flow, Flowing},
    hints::Hints,
    life::HeadClock,
    limits::{
        BUFFER_BYTES_MAX, CONNECTION_WINDOW_BYTES, FAREWELL, FAREWELL_BYTES_MAX,
        FIELD_LIST_BYTES_MAX, FRAME_BYTES_MAX, HYPER_CALLS, PING_PERIOD, PING_TIMEOUT,
        RESETS_PROVOKED_MAX, RESETS_WAITING_MAX, STREAM_SEND_BYTES_MAX, STREAM_WINDOW_BYTES,
        STREAMS_MAX,
    },
    opened::Opened,
    request,
    roll::{Order, Phase, Seat},
    wire::{Stream, Wire},
};
use crate::{
    body::{BodyError, EdgeBody},
    edge::{self, Worker},
    proxy::Unsaid,
};

/// What a client of HTTP/2 says first.
const PREFACE: [u8; 24] = *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How a connection goes on after hyper's calls.
enum After {
    /// It waits for another one.
    Rest(Stream),
    /// Its last answer is this.
    Refuse(Stream, Refusal),
    /// It ends.
    End(Stream),
    /// It is another's, or broken.
    Gone,
}

/// Runs futures on the thread they are made on.
#[derive(Clone, Copy)]
pub(crate) struct OnThread;

impl<F: Future + 'static> hyper::rt::Executor<F> for OnThread {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

/// Serves a connection to its end.
pub(super) async fn serve(hall: Rc<Hall>, stream: TcpStream, address: SocketAddr) {
    let present = hall.roll.enter(hall.seconds());
    let seat = &present.0;
    let ended = seat.unless_ordered(open(&hall, seat, stream)).await;
    let Ok(Some((mut stream, mut input))) = ended else {
        return;
    };
    let peer = Peer {
        address: address.ip(),
        is_secure: stream.is_tls(),
    };
    let is_http2 = input.starts_with(&PREFACE);
    if stream.agreed_h2().is_some_and(|agreed| agreed != is_http2) {
        return; // it speaks another protocol than was agreed upon
    }
    if is_http2 {
        Box::pin(http2(hall, seat, peer, stream, &input)).await;
        return;
    }
    loop {
        let next = express::serve(&hall, seat, peer, &mut stream, input).await;
        let after = match next {
            // Boxed, so that a connection that rests has not the size of one that works.
            Next::Hyper {
                read,
                resume,
                is_for_long,
            } => {
                Box::pin(http1(
                    &hall,
                    seat,
                    peer,
                    stream,
                    (read, resume, is_for_long),
                ))
                .await
            }
            Next::End => After::End(stream),
            Next::Gone => After::Gone,
        };
        stream = match after {
            After::Rest(stream) => stream,
            After::Refuse(mut stream, refusal) => {
                let text = answer::close(&hall.worker.edge, refusal);
                // Who takes nothing more is not waited for.
                let written = tokio::time::timeout(FAREWELL, stream.write_all(&text));
                if let Ok(Ok(())) = written.await {
                    farewell(seat, stream).await;
                }
                return;
            }
            After::End(stream) => return farewell(seat, stream).await,
            After::Gone => return,
        };
        input = Vec::new();
    }
}

/// Shakes hands where there is TLS, and reads what tells the protocol.
async fn open(hall: &Hall, seat: &Seat, stream: TcpStream) -> Option<(Stream, Vec<u8>)> {
    let mut stream = match &hall.door.tls {
        None => Stream::Plain(stream),
        Some(config) => {
            let acceptor = tokio_rustls::TlsAcceptor::from(config.load_full());
            match Box::pin(acceptor.accept(stream)).await {
                Ok(stream) => Stream::Tls(Box::new(stream)),
                Err(error) => {
                    tracing::debug!(%error, "a handshake failed");
                    hall.door.note_cut("handshake");
                    return None;
                }
            }
        }
    };
    let mut first = hall.read(&mut stream, seat).await?;
    while first.len() < PREFACE.len() && PREFACE.starts_with(&first) {
        first.append(&mut hall.read(&mut stream, seat).await?);
    }
    Some((stream, first))
}

/// Serves calls until the connection rests or ends; the first one may have begun.
async fn http1(
    hall: &Rc<Hall>,
    seat: &Seat,
    peer: Peer,
    stream: Stream,
    (read, resume, is_for_long): (Bytes, Option<Box<Resume>>, bool),
) -> After {
    let life = Arc::clone(&seat.life);
    let hints = Hints::new(Arc::clone(&life));
    let wire = Wire::http1(stream, read, Arc::clone(&life), Arc::clone(&hints));
    let (resume, answered) = (Cell::new(resume), Rc::<Cell<u32>>::default());
    let is_old = Cell::new(false);
    let calls = if is_for_long { HYPER_CALLS } else { 1 };
    let service = service_fn(|mut request: Request<Incoming>| {
        let (worker, life) = (Rc::clone(&hall.worker), Arc::clone(&life));
        let hints = Arc::clone(&hints);
        if request.version() == Version::HTTP_11 {
            request.extensions_mut().insert(hints.begin());
        }
        let (resume, answered) = (resume.take(), Rc::clone(&answered));
        is_old.set(request.version() == Version::HTTP_10);
        async move {
            let answering = std::pin::pin!(async {
                match resume {
                    Some(resume) => said(express::resume(worker, request, *resume).await),
                    None => respond(worker, peer, request).await,
                }
            });
            let response = hints.during(answering).await?;
            life.is_tunnel
                .set(response.status() == http::StatusCode::SWITCHING_PROTOCOLS);
            answered.set(answered.get().saturating_add(1));
            Ok::<_, Unsaid>(response)
        }
    });
    let mut connection = conn::http1::Builder::new()
        .timer(HeadClock::new(Arc::clone(&life)))
        .max_buf_size(BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(wire), service)
        .with_upgrades();
    seat.set_phase(Phase::Http1);
    let end = drive(&mut connection, seat, || answered.get() >= calls).await;
    // None: it was upgraded, and is no longer ours.
    match connection.into_parts() {
        Some(parts) => end.after(parts.io.into_inner().into_stream(), is_old.get()),
        None => After::Gone,
    }
}

/// Drives a connection until hyper's part of it ends. What hyper was needed for may be done.
async fn drive<S>(
    connection: &mut conn::http1::UpgradeableConnection<TokioIo<Wire>, S>,
    seat: &Seat,
    is_done: impl Fn() -> bool,
) -> End
where
    S: HttpService<Incoming, ResBody = EdgeBody>,
    S::Error: Into<BodyError>,
{
    let life = &seat.life;
    let (mut ends, mut is_ending) = (false, false);
    std::future::poll_fn(|task| {
        loop {
            if let Poll::Ready(ended) = Pin::new(&mut *connection).poll(task) {
                match ended {
                    // The last byte of each of its answers has left.
                    Ok(()) => {
                        crash_point!("gateway.last_byte_sent");
                    }
                    Err(error) => {
                        tracing::debug!(%error, "a connection ended");
                        if error.is_user() {
                            return Poll::Ready(End::Broken);
                        }
                    }
                }
                return Poll::Ready(life.breach().map_or(End::Ended, End::Refuse));
            }
            let is_between = life.is_between_calls();
            if let Some(refusal) = life.breach().filter(|_| is_between) {
                return Poll::Ready(End::Refuse(refusal));
            }
            let is_idle = is_between && !life.is_in_head.is_set();
            if is_idle && is_done() {
                return Poll::Ready(End::Rest);
            }
            let order = seat.heed(task);
            if order == Some(Order::Cut) {
                return Poll::Ready(End::Cut);
            }
            // Who has sent half a head is answered first.
            ends |= order == Some(Order::End);
            if ends && is_idle {
                return Poll::Ready(End::Ended);
            }
            if ends && !is_between && !is_ending {
                is_ending = true;
                Pin::new(&mut *connection).graceful_shutdown();
                continue;
            }
            match order {
                Some(Order::Rest) if is_idle => return Poll::Ready(End::Rest),
                Some(Order::LateHead) if is_between => {
                    return Poll::Ready(End::Refuse(Refusal::RequestTimeout));
                }
                Some(Order::LateBody) => life.is_too_slow.set(true),
                _ => return Poll::Pending,
            }
        }
    })
    .await
}

/// How hyper's part of a connection ends.
enum End {
    Rest,
    Refuse(Refusal),
    Ended,
    /// In the middle of an answer.
    Broken,
    Cut,
}

impl End {
    /// To a client of HTTP/1.0, which is old, an orderly end says that its answer is complete.
    /// Others see that it is not, and get what was sent before.
    fn after(self, stream: Stream, is_old: bool) -> After {
        match self {
            Self::Broken | Self::Cut if is_old => {
                stream.break_off();
                After::Gone
            }
            Self::Rest => After::Rest(stream),
            Self::Refuse(refusal) => After::Refuse(stream, refusal),
            Self::Ended => After::End(stream),
            Self::Broken => After::End(stream),
            Self::Cut => After::Gone,
        }
    }
}

/// Ends a connection so that its client reads the last answer: what he still sends is thrown away
/// for a moment, otherwise the system would tell him that it came to nothing.
async fn farewell(seat: &Seat, mut stream: Stream) {
    let ended = async {
        stream.shutdown().await?;
        let (mut thrown, mut bytes) = (0_usize, [0; 1024]);
        while thrown < FAREWELL_BYTES_MAX {
            match stream.read(&mut bytes).await? {
                0 => break,
                read => thrown = thrown.saturating_add(read),
            }
        }
        std::io::Result::Ok(())
    };
    let within = tokio::time::timeout(FAREWELL, Box::pin(ended));
    if let Ok(Ok(Err(error))) = seat.unless_ordered(within).await {
        tracing::debug!(%error, "a connection ended before its end");
    }
}

/// Serves streams until there are no more.
async fn http2(hall: Rc<Hall>, seat: &Rc<Seat>, peer: Peer, stream: Stream, read: &[u8]) {
    let (_, frames) = read.split_at_checked(PREFACE.len()).unwrap_or_default();
    let wire = Wire::http2(stream, &PREFACE, frames, Arc::clone(&seat.life));
    let service = service_fn(|mut request: Request<Incoming>| {
        Opened::read(&mut request, &seat.life);
        let (worker, flow) = (Rc::clone(&hall.worker), Rc::<Flow>::default());
        seat.add_flow(&flow);
        async move {
            let response = match request::check_list(&request) {
                Ok(()) => respond(worker, peer, request).await?,
                Err(refusal) => refuse(&worker.edge, refusal),
            };
            Ok::<_, Unsaid>(response.map(|body| Flowing::new(flow, body)))
        }
    });
    let connection = conn::http2::Builder::new(OnThread)
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_pending_accept_reset_streams(RESETS_WAITING_MAX)
        .max_local_error_reset_streams(RESETS_PROVOKED_MAX)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .max_send_buf_size(STREAM_SEND_BYTES_MAX)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_header_list_size(FIELD_LIST_BYTES_MAX)
        .keep_alive_interval(PING_PERIOD)
        .keep_alive_timeout(PING_TIMEOUT)
        .enable_connect_protocol()
        .serve_connection(TokioIo::new(wire), service);
    seat.set_phase(Phase::Http2);
    let mut connection = std::pin::pin!(connection);
    let mut is_ending = false;
    let ended = std::future::poll_fn(|task| {
        loop {
            if let Poll::Ready(ended) = connection.as_mut().poll(task) {
                return Poll::Ready(ended);
            }
            match seat.heed(task) {
                Some(Order::Cut) => return Poll::Ready(Ok(())),
                Some(Order::End) if !is_ending => {
                    is_ending = true;
                    connection.as_mut().graceful_shutdown();
                }
                _ => return Poll::Pending,
            }
        }
    });
    if let Err(error) = ended.await {
        tracing::debug!(%error, "a connection ended");
        if seat.life.is_flooded() {
            hall.door.note_cut("flood");
        }
    }
}

/// Answers one request.
async fn respond(
    worker: Rc<Worker>,
    peer: Peer,
    request: Request<Incoming>,
) -> Result<Response<EdgeBody>, Unsaid> {
    match request::check(&request) {
        Ok(()) => said(edge::handle(worker, peer, request).await),
        Err(refusal) => Ok(refuse(&worker.edge, refusal)),
    }
}

/// The answer, if its client may have it; else hyper breaks off.
fn said(response: Response<EdgeBody>) -> Result<Response<EdgeBody>, Unsaid> {
    match response.extensions().get() {
        Some(unsaid) => Err(*unsaid),
        None => Ok(response),
    }
}
