//! The threads that carry calls: one event loop, one accepting socket and one pool each.

mod answer;
mod census;
mod door;
mod express;
mod flows;
mod frames;
mod framing;
mod hints;
mod life;
mod limits;
mod opened;
mod patience;
mod request;
mod roll;
mod serve;
mod spares;
mod tls;
mod wire;

use std::{
    cell::RefCell,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use anyhow::Context as _;
use futures_util::FutureExt as _;
use runtime::Clock;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    io::AsyncRead,
    net::{TcpListener, TcpStream},
    runtime::LocalRuntime,
};
use tokio_util::{io::poll_read_buf, sync::CancellationToken, task::TaskTracker};

pub(crate) use self::{
    door::{Door, Peer, Rules},
    hints::Hinted,
    opened::Opened,
    patience::Patience,
    serve::OnThread,
};
use self::{
    limits::{BACKLOG, UNSENT_BYTES_MAX},
    roll::{Roll, Seat},
    spares::Spares,
    wire::Stream,
};
use crate::{
    edge::{Edge, Worker},
    pool::{self, Pool},
    upload::Upload,
};

/// A gateway that stops lets idle connections be for so long: who calls meanwhile is served and
/// told that the connection ends. Closed at once, they would break calls on their way.
pub(crate) const LINGER: Duration = Duration::from_millis(500);
const SECOND_NANOS: u64 = 1_000_000_000;
/// Between two looks at the connections of a thread.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

/// The accepting sockets of all threads, on one address.
pub(crate) fn bind(
    address: SocketAddr,
    threads: usize,
) -> anyhow::Result<Vec<std::net::TcpListener>> {
    let open = || -> std::io::Result<std::net::TcpListener> {
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        // Connections of a life before that was killed may still linger on this address.
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    // Another process could join with the same option: probe without it first.
    let probe = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    probe.set_reuse_address(true)?;
    let taken = || format!("TOLLGATE_GATEWAY_LISTEN: cannot listen on {address}; is it taken?");
    probe.bind(&address.into()).with_context(taken)?;
    drop(probe);
    (0..threads).map(|_| open().with_context(taken)).collect()
}

/// One thread's part of the listener.
pub(crate) struct Hall {
    worker: Rc<Worker>,
    door: Arc<Door>,
    roll: Rc<Roll>,
    clock: Clock,
    /// Of all requests without a body.
    nothing: Rc<Upload>,
    spares: Spares,
    /// The field that says the date in answers, and the monotonic nanosecond when it is over.
    date: RefCell<(u64, String)>,
    /// Answers that hyper had no part in.
    #[cfg(test)]
    expressed: std::cell::Cell<u64>,
}

impl Hall {
    pub(crate) fn new(worker: Rc<Worker>, door: Arc<Door>) -> Rc<Self> {
        Rc::new(Self {
            clock: worker.edge.clock.clone(),
            worker,
            door,
            roll: Rc::default(),
            nothing: Upload::of(&[]),
            spares: Spares::default(),
            date: RefCell::default(),
            #[cfg(test)]
            expressed: std::cell::Cell::default(),
        })
    }

    /// Appends the date to the head of an answer at a monotonic nanosecond. It is made once a
    /// second, when the wall clock's ends.
    fn write_date(&self, head: &mut Vec<u8>, now: u64) {
        let mut date = self.date.borrow_mut();
        if date.0 <= now {
            let wall = self.clock.now();
            let past = u64::try_from(wall.subsec_nanosecond()).unwrap_or(0);
            let end = now.saturating_add(SECOND_NANOS.saturating_sub(past));
            *date = (end, format!("date: {}\r\n", answer::date(wall)));
        }
        head.extend_from_slice(date.1.as_bytes());
    }

    /// Reads what has come of the bytes that are expected, with a buffer only if something has.
    /// None: nothing will.
    fn poll_read(
        &self,
        stream: &mut (impl AsyncRead + Unpin),
        task: &mut Context<'_>,
        expected: u64,
    ) -> Poll<Option<Vec<u8>>> {
        let mut buffer = self.spares.take(expected);
        let read = poll_read_buf(Pin::new(stream), task, &mut buffer);
        if let Poll::Ready(Ok(1..)) = read {
            return Poll::Ready(Some(buffer));
        }
        self.spares.keep(buffer);
        read.map(|_nothing| None)
    }

    async fn read(&self, stream: &mut Stream, seat: &Seat) -> Option<Vec<u8>> {
        let read = std::future::poll_fn(|task| self.poll_read(stream, task, 0)).await?;
        seat.life.read.add(read.len());
        Some(read)
    }

    fn seconds(&self) -> u64 {
        self.clock.monotonic_nanos() / SECOND_NANOS
    }

    /// Looks after all connections of the thread.
    #[expect(
        clippy::infinite_loop,
        reason = "it ends with those who wait beside it"
    )]
    async fn look(&self) {
        loop {
            tokio::time::sleep(LOOK_PERIOD).await;
            for reason in self.roll.look(self.seconds(), &self.door.patience) {
                self.door.note_cut(reason);
            }
        }
    }
}

/// Starts one thread. It ends when `stop` is cancelled and its connections are gone, or when
/// `cut` is cancelled.
pub(crate) fn start(
    index: usize,
    (edge, door): (Arc<Edge>, Arc<Door>),
    socket: std::net::TcpListener,
    pool: impl FnOnce() -> Pool + Send + 'static,
    stop: CancellationToken,
    cut: CancellationToken,
) -> anyhow::Result<std::thread::JoinHandle<()>> {
    let thread = std::thread::Builder::new().name(format!("edge-{index}"));
    Ok(thread.spawn(move || {
        // Of this thread alone: around a runtime of any thread, a set of local tasks would wake its
        // own future, the listener's, for each of them.
        let runtime = match LocalRuntime::new() {
            Ok(runtime) => runtime,
            Err(error) => return tracing::error!(%error, "a thread of the edge did not start"),
        };
        runtime.block_on(async move {
            let worker = Rc::new(Worker {
                edge,
                pool: pool(),
                patience: pool::patience::Patience::new(),
                beyond: TaskTracker::new(),
            });
            let (own, until) = (Rc::clone(&worker), stop.clone());
            tokio::task::spawn_local(async move { own.pool.keep(until).await });
            let carried = async {
                let listener = TcpListener::from_std(socket)?;
                accept(Hall::new(worker, door), listener, stop, cut).await;
                std::io::Result::Ok(())
            };
            if let Err(error) = carried.await {
                tracing::error!(%error, "a thread of the edge has died");
            }
        });
    })?)
}

/// Carries the calls of one thread until told to stop, and then until its connections are gone.
pub(crate) async fn accept(
    hall: Rc<Hall>,
    listener: TcpListener,
    stop: CancellationToken,
    cut: CancellationToken,
) {
    let connections = TaskTracker::new();
    let take = |stream: TcpStream, address: SocketAddr| {
        let Some(guest) = hall.door.enter(address.ip()) else {
            // Without a word, and without a trace in the system's tables.
            if let Err(error) = SockRef::from(&stream).set_linger(Some(Duration::ZERO)) {
                tracing::debug!(%error, "a connection was gone before it was refused");
            }
            return;
        };
        if let Err(error) = prepare(&stream) {
            tracing::debug!(%error, "a connection was gone before it was served");
            return;
        }
        let hall = Rc::clone(&hall);
        tokio::task::spawn_local(connections.track_future(async move {
            serve::serve(hall, stream, address).await;
            drop(guest);
        }));
    };
    let mut looking = std::pin::pin!(hall.look());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
            () = looking.as_mut() => break,
        };
        match accepted {
            Ok((stream, address)) => take(stream, address),
            // Out of descriptors, most likely: let some connections end first.
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
    // Who is in the queue has been told that somebody listens.
    while let Some(Ok((stream, address))) = listener.accept().now_or_never() {
        take(stream, address);
    }
    drop(listener);
    connections.close();
    hall.worker.beyond.close();
    let ended = async {
        hall.roll.stop();
        tokio::time::sleep(LINGER).await;
        hall.roll.close_silent();
        connections.wait().await;
        hall.worker.beyond.wait().await;
    };
    tokio::select! {
        () = ended => {}
        () = cut.cancelled() => {}
        () = looking => {}
    }
}

fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES_MAX)
}

#[cfg(test)]
mod tests;
