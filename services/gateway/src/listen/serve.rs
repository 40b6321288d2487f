//! The life of one connection: TLS, which protocol it speaks, its calls, its end.
//!
//! Between two calls that are not close to each other, a connection of HTTP/1 is a socket and a
//! place on the roll: hyper and its buffers are there while something happens.

use std::{convert::Infallible, net::SocketAddr, pin::Pin, rc::Rc, sync::Arc, task::Poll};

use http::{Request, Response};
use hyper::{body::Incoming, server::conn, service::service_fn};
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
    flows::{Flow, Flowing},
    life::HeadClock,
    limits::{
        BUFFER_BYTES_MAX, CONNECTION_WINDOW_BYTES, FAREWELL, FAREWELL_BYTES_MAX,
        FIELD_LIST_BYTES_MAX, FRAME_BYTES_MAX, PING_PERIOD, PING_TIMEOUT, RESETS_WAITING_MAX,
        STREAM_SEND_BYTES_MAX, STREAM_WINDOW_BYTES, STREAMS_MAX,
    },
    request,
    roll::{Order, Phase, Seat},
    wire::{Stream, Wire},
};
use crate::{
    body::EdgeBody,
    edge::{self, Worker},
};

/// What a client of HTTP/2 says first.
const PREFACE: [u8; 24] = *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How a connection goes on after its calls.
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

/// First bytes of a connection, as many as it takes to know its protocol.
struct First {
    bytes: [u8; PREFACE.len()],
    length: usize,
}

impl First {
    fn get(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
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
    let ended = seat.unless_ordered(open(&hall, stream)).await;
    let Ok(Some((mut stream, mut first))) = ended else {
        return;
    };
    let peer = Peer {
        address: address.ip(),
        is_secure: stream.is_tls(),
    };
    if first.get() == PREFACE {
        Box::pin(http2(hall, seat, peer, stream)).await;
        return;
    }
    loop {
        // Boxed, so that a connection that rests has not the size of one that works.
        let after = Box::pin(http1(&hall, seat, peer, stream, first.get())).await;
        stream = match after {
            After::Rest(stream) => stream,
            After::Refuse(mut stream, refusal) => {
                let text = answer::close(&hall.worker.edge, refusal);
                if stream.write_all(&text).await.is_ok() {
                    farewell(seat, stream).await;
                }
                return;
            }
            After::End(stream) => return farewell(seat, stream).await,
            After::Gone => return,
        };
        seat.set_phase(Phase::Resting);
        // Whatever is ordered while nothing happens is an end.
        match seat.unless_ordered(read_first(&mut stream)).await {
            Ok(Some(read)) => first = read,
            _ => return,
        }
    }
}

/// Shakes hands where there is TLS, and reads what tells the protocol.
async fn open(hall: &Hall, stream: TcpStream) -> Option<(Stream, First)> {
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
    let first = read_first(&mut stream).await?;
    Some((stream, first))
}

/// Waits for bytes, without room for more of them than it takes to know what follows.
async fn read_first(stream: &mut Stream) -> Option<First> {
    let mut first = First {
        bytes: [0; PREFACE.len()],
        length: 0,
    };
    while let Some(room) = first.bytes.get_mut(first.length..) {
        let read = stream.read(room).await.ok().filter(|read| *read > 0)?;
        first.length = first.length.saturating_add(read);
        if first.get() == PREFACE || !PREFACE.starts_with(first.get()) {
            break;
        }
    }
    Some(first)
}

/// Serves calls until the connection rests or ends.
async fn http1(hall: &Rc<Hall>, seat: &Seat, peer: Peer, stream: Stream, first: &[u8]) -> After {
    let life = Arc::clone(&seat.life);
    let wire = Wire::http1(stream, first, Arc::clone(&life));
    let service = service_fn(|request: Request<Incoming>| {
        let (worker, life) = (Rc::clone(&hall.worker), Arc::clone(&life));
        async move {
            let response = respond(worker, peer, request).await;
            life.is_tunnel
                .set(response.status() == http::StatusCode::SWITCHING_PROTOCOLS);
            Ok::<_, Infallible>(response)
        }
    });
    let mut connection = conn::http1::Builder::new()
        .timer(HeadClock::new(Arc::clone(&life)))
        .max_buf_size(BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(wire), service)
        .with_upgrades();
    seat.set_phase(Phase::Http1);
    let mut is_ending = false;
    let end = std::future::poll_fn(|task| {
        loop {
            if let Poll::Ready(ended) = Pin::new(&mut connection).poll(task) {
                match ended {
                    // The last byte of each of its answers has left.
                    Ok(()) => {
                        crash_point!("gateway.last_byte_sent");
                    }
                    Err(error) => tracing::debug!(%error, "a connection ended"),
                }
                return Poll::Ready(life.breach().map_or(End::Ended, End::Refuse));
            }
            let is_between = life.is_between_calls();
            if let Some(refusal) = life.breach().filter(|_| is_between) {
                return Poll::Ready(End::Refuse(refusal));
            }
            let is_idle = is_between && !life.is_in_head.is_set();
            match seat.heed(task) {
                Some(Order::Cut) => return Poll::Ready(End::Cut),
                Some(Order::Rest) if is_idle => return Poll::Ready(End::Rest),
                Some(Order::End) if is_idle => return Poll::Ready(End::Ended),
                Some(Order::LateHead) if is_between => {
                    return Poll::Ready(End::Refuse(Refusal::RequestTimeout));
                }
                Some(Order::End) if !is_between && !is_ending => {
                    is_ending = true;
                    Pin::new(&mut connection).graceful_shutdown();
                }
                Some(Order::LateBody) => life.is_too_slow.set(true),
                _ => return Poll::Pending,
            }
        }
    });
    let end = end.await;
    // None: it was upgraded, and is no longer ours.
    let Some(parts) = connection.into_parts() else {
        return After::Gone;
    };
    let stream = parts.io.into_inner().into_stream();
    match end {
        End::Rest => After::Rest(stream),
        End::Refuse(refusal) => After::Refuse(stream, refusal),
        End::Ended => After::End(stream),
        End::Cut => After::Gone,
    }
}

/// How hyper's part of a connection ends.
enum End {
    Rest,
    Refuse(Refusal),
    Ended,
    Cut,
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
async fn http2(hall: Rc<Hall>, seat: &Rc<Seat>, peer: Peer, stream: Stream) {
    let wire = Wire::http2(stream, &PREFACE, Arc::clone(&seat.life));
    let service = service_fn(|request: Request<Incoming>| {
        let (worker, flow) = (Rc::clone(&hall.worker), Rc::<Flow>::default());
        seat.add_flow(&flow);
        async move {
            let response = match request::check_list(&request) {
                Ok(()) => respond(worker, peer, request).await,
                Err(refusal) => refuse(&worker.edge, refusal),
            };
            Ok::<_, Infallible>(response.map(|body| Flowing::new(flow, body)))
        }
    });
    let connection = conn::http2::Builder::new(OnThread)
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_pending_accept_reset_streams(RESETS_WAITING_MAX)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .max_send_buf_size(STREAM_SEND_BYTES_MAX)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_header_list_size(FIELD_LIST_BYTES_MAX)
        .keep_alive_interval(PING_PERIOD)
        .keep_alive_timeout(PING_TIMEOUT)
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
async fn respond(worker: Rc<Worker>, peer: Peer, request: Request<Incoming>) -> Response<EdgeBody> {
    match request::check(&request) {
        Ok(()) => edge::handle(worker, peer, request).await,
        Err(refusal) => refuse(&worker.edge, refusal),
    }
}
