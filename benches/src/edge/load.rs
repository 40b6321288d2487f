//! Load on one proxy: kept connections, one call in flight on each, on one thread.
//!
//! - Closed loop: each connection calls again as soon as it was answered.
//! - Open loop: calls are due at times drawn beforehand, whether or not earlier ones were answered,
//!   and their latency counts from then on. A proxy that stalls cannot hide it by being asked less.

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, TcpStream},
    rc::Rc,
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

use super::poll::{self, Poll};

/// Bytes read at once.
const READ_BYTES: usize = 256 << 10;
/// Calls in flight at the end of a slice are waited for so long.
const DRAIN: Duration = Duration::from_secs(5);
/// One call with each of many keys takes no longer.
const ONCE_WITHIN: Duration = Duration::from_secs(600);
/// Calls in flight when every connection makes one.
const AT_ONCE: usize = 64;
/// Makes no calls by itself.
const WAITS: Pace = Pace::Open {
    per_second: 1.0,
    waits: true,
};

/// When calls are made.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// All connections all the time.
    Closed,
    /// So many a second, at times of a Poisson process.
    Open {
        per_second: f64,
        /// A call that finds every connection busy waits for one, or is given up.
        waits: bool,
    },
}

/// How long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slice {
    /// Not counted.
    pub(crate) warm_up: Duration,
    pub(crate) measured: Duration,
}

/// Told when the measured part begins and ends.
pub(crate) trait Watch {
    fn begin(&mut self);
    fn end(&mut self);
}

impl Watch for () {
    fn begin(&mut self) {}
    fn end(&mut self) {}
}

/// What came of a slice.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Calls answered in the measured part, by status.
    pub(crate) by_status: BTreeMap<u16, u64>,
    /// Nanoseconds, sorted, of calls due in the measured part and answered 200.
    pub(crate) nanos: Vec<u64>,
    /// The same of those answered otherwise.
    pub(crate) refused_nanos: Vec<u64>,
    /// Connections that ended in mid-call.
    pub(crate) broken: u64,
    /// Calls that found no free connection and were given up.
    pub(crate) given_up: u64,
    /// Length of the measured part.
    pub(crate) seconds: f64,
}

impl Outcome {
    /// Calls answered 200.
    pub(crate) fn good(&self) -> u64 {
        self.by_status.get(&200).copied().unwrap_or(0)
    }

    /// Calls answered otherwise or not at all.
    pub(crate) fn bad(&self) -> u64 {
        self.by_status.values().sum::<u64>() - self.good() + self.broken
    }
}

/// Requests as bytes.
pub(crate) type Requests = Rc<[Vec<u8>]>;

/// Connections to one port.
pub(crate) struct Load {
    port: u16,
    requests: Requests,
    poll: Poll,
    connections: Vec<Connection>,
    free: Vec<usize>,
    random: SmallRng,
    scratch: Vec<u8>,
    ready: Vec<usize>,
    outcome: Outcome,
    /// Nanoseconds since the slice began in which calls count.
    window: std::ops::Range<u64>,
}

struct Connection {
    stream: TcpStream,
    /// When its call was due.
    due: u64,
    is_busy: bool,
    request: usize,
    written: usize,
    /// A head that is not complete yet.
    begun: Vec<u8>,
    status: u16,
    /// Bytes of the answer's body still to come, once its head was there.
    body_left: Option<usize>,
    writes: bool,
}

impl Connection {
    fn open(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            due: 0,
            is_busy: false,
            request: 0,
            written: 0,
            begun: Vec::new(),
            status: 0,
            body_left: None,
            writes: false,
        })
    }

    /// Takes bytes of an answer. True: it is complete.
    fn take(&mut self, bytes: &[u8]) -> io::Result<bool> {
        if let Some(left) = &mut self.body_left {
            *left = left
                .checked_sub(bytes.len())
                .ok_or(io::ErrorKind::InvalidData)?;
            return Ok(*left == 0);
        }
        if !self.begun.is_empty() {
            let mut begun = std::mem::take(&mut self.begun);
            begun.extend_from_slice(bytes);
            return self.take_head(&begun);
        }
        self.take_head(bytes)
    }

    fn take_head(&mut self, bytes: &[u8]) -> io::Result<bool> {
        let Some(head) = poll::head(bytes) else {
            self.begun = bytes.to_vec();
            return Ok(false);
        };
        let digits = bytes.get(9..12).ok_or(io::ErrorKind::InvalidData)?;
        self.status = digits.iter().fold(0, |number, digit| {
            number * 10 + u16::from(digit.wrapping_sub(b'0'))
        });
        let left = head.content_length.checked_sub(bytes.len() - head.bytes);
        let left = left.ok_or(io::ErrorKind::InvalidData)?;
        self.body_left = Some(left);
        Ok(left == 0)
    }
}

impl Load {
    /// Opens connections.
    pub(crate) fn open(
        port: u16,
        connections: usize,
        requests: Requests,
        seed: u64,
    ) -> anyhow::Result<Self> {
        anyhow::ensure!(!requests.is_empty(), "nothing to ask for");
        let mut load = Self {
            port,
            requests,
            poll: Poll::new()?,
            connections: Vec::with_capacity(connections),
            free: Vec::with_capacity(connections),
            random: SmallRng::seed_from_u64(seed),
            scratch: vec![0; READ_BYTES],
            ready: Vec::new(),
            outcome: Outcome::default(),
            window: 0..0,
        };
        for number in 0..connections {
            let connection = Connection::open(port)?;
            load.poll.add(&connection.stream, number)?;
            load.connections.push(connection);
            load.free.push(number);
        }
        Ok(load)
    }

    /// One slice of load, to its last answer.
    pub(crate) fn run(
        &mut self,
        pace: Pace,
        slice: Slice,
        watch: &mut dyn Watch,
    ) -> anyhow::Result<Outcome> {
        self.outcome = Outcome::default();
        let begin = Instant::now();
        let from = nanos(slice.warm_up);
        self.window = u64::MAX..u64::MAX;
        let mut counted_from = None;
        let mut due = self.gap(pace);
        loop {
            let now = nanos(begin.elapsed());
            if now >= from && counted_from.is_none() {
                watch.begin();
                // The watch itself takes a moment.
                let now = nanos(begin.elapsed());
                self.window = now..now.saturating_add(nanos(slice.measured));
                counted_from = Some(Instant::now());
            }
            let to = self.window.end;
            if now >= to {
                break;
            }
            let wake = match pace {
                Pace::Closed => {
                    while let Some(number) = self.free.pop() {
                        self.send(number, now)?;
                    }
                    to
                }
                Pace::Open { waits, .. } => {
                    while due <= now {
                        match self.free.pop() {
                            Some(number) => self.send(number, due)?,
                            None if waits => break,
                            None => {
                                let counts = self.window.contains(&due);
                                self.outcome.given_up += u64::from(counts);
                            }
                        }
                        due += self.gap(pace);
                    }
                    // Who waits for a free connection is woken by an answer.
                    if due <= now { to } else { due.min(to) }
                }
            };
            let wake = match counted_from {
                None => wake.min(from),
                Some(_) => wake,
            };
            self.wait(begin, Duration::from_nanos(wake.saturating_sub(now)), pace)?;
        }
        let counted = counted_from.map_or(0.0, |from| from.elapsed().as_secs_f64());
        watch.end();
        self.drain(begin)?;
        let mut outcome = std::mem::take(&mut self.outcome);
        outcome.seconds = counted;
        outcome.nanos.sort_unstable();
        outcome.refused_nanos.sort_unstable();
        Ok(outcome)
    }

    /// Calls once with each of the requests, so many in flight as there are connections.
    pub(crate) fn once_each(&mut self) -> anyhow::Result<Outcome> {
        self.outcome = Outcome::default();
        self.window = 0..u64::MAX;
        let begin = Instant::now();
        let mut next = 0;
        while next < self.requests.len() {
            while let Some(number) = self.free.pop() {
                if next == self.requests.len() {
                    self.free.push(number);
                    break;
                }
                self.begin(number, next, nanos(begin.elapsed()))?;
                next += 1;
            }
            self.wait(begin, DRAIN, WAITS)?;
            anyhow::ensure!(begin.elapsed() < ONCE_WITHIN, "not all calls were answered");
        }
        self.drain(begin)?;
        Ok(std::mem::take(&mut self.outcome))
    }

    /// Calls once on each connection.
    pub(crate) fn once_on_each(&mut self) -> anyhow::Result<Outcome> {
        self.outcome = Outcome::default();
        self.window = 0..u64::MAX;
        let begin = Instant::now();
        let mut numbers = std::mem::take(&mut self.free);
        while !numbers.is_empty() {
            let rest = numbers.split_off(numbers.len().min(AT_ONCE));
            for number in numbers {
                self.send(number, nanos(begin.elapsed()))?;
            }
            self.drain(begin)?;
            numbers = rest;
        }
        Ok(std::mem::take(&mut self.outcome))
    }

    fn gap(&mut self, pace: Pace) -> u64 {
        match pace {
            Pace::Closed => 0,
            Pace::Open { per_second, .. } => {
                let draw: f64 = self.random.random();
                let seconds = -(1.0 - draw).ln() / per_second;
                nanos(Duration::from_secs_f64(seconds))
            }
        }
    }

    fn send(&mut self, number: usize, due: u64) -> anyhow::Result<()> {
        let request = match self.requests.len() {
            1 => 0,
            many => self.random.random_range(0..many),
        };
        self.begin(number, request, due)
    }

    fn begin(&mut self, number: usize, request: usize, due: u64) -> anyhow::Result<()> {
        let connection = &mut self.connections[number];
        connection.due = due;
        connection.is_busy = true;
        connection.request = request;
        connection.written = 0;
        connection.body_left = None;
        if self.write(number).is_err() {
            self.replace(number)?;
        }
        Ok(())
    }

    fn write(&mut self, number: usize) -> io::Result<()> {
        let connection = &mut self.connections[number];
        let request = &self.requests[connection.request];
        let rest = &request[connection.written..];
        if !rest.is_empty() {
            connection.written += poll::write(&connection.stream, rest)?;
        }
        let writes = connection.written < request.len();
        if writes != connection.writes {
            connection.writes = writes;
            self.poll.also_write(&connection.stream, number, writes)?;
        }
        Ok(())
    }

    /// Waits for sockets and takes what they bring.
    fn wait(&mut self, begin: Instant, timeout: Duration, pace: Pace) -> anyhow::Result<()> {
        let mut ready = std::mem::take(&mut self.ready);
        self.poll.wait(Some(timeout), &mut ready)?;
        let now = nanos(begin.elapsed());
        for number in ready.drain(..) {
            match self.step(number) {
                Ok(false) => {}
                Ok(true) => {
                    self.note(number, now);
                    let again = matches!(pace, Pace::Closed) && now < self.window.end;
                    if again {
                        self.send(number, now)?;
                    } else {
                        self.free.push(number);
                    }
                }
                Err(_ended) => self.replace(number)?,
            }
        }
        self.ready = ready;
        Ok(())
    }

    /// True: the connection's call was answered.
    fn step(&mut self, number: usize) -> io::Result<bool> {
        if self.connections[number].writes {
            self.write(number)?;
        }
        let connection = &mut self.connections[number];
        let Some(read) = poll::read(&connection.stream, &mut self.scratch)? else {
            return Ok(false);
        };
        if read == 0 || !connection.is_busy {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        connection.take(&self.scratch[..read])
    }

    fn note(&mut self, number: usize, now: u64) {
        let connection = &mut self.connections[number];
        connection.is_busy = false;
        let (due, status) = (connection.due, connection.status);
        if self.window.contains(&now) {
            *self.outcome.by_status.entry(status).or_default() += 1;
        }
        if self.window.contains(&due) {
            let nanos = now.saturating_sub(due);
            match status {
                200 => self.outcome.nanos.push(nanos),
                _ => self.outcome.refused_nanos.push(nanos),
            }
        }
    }

    /// Opens a connection in the place of one that has ended.
    fn replace(&mut self, number: usize) -> anyhow::Result<()> {
        let was_busy = self.connections[number].is_busy;
        self.outcome.broken += u64::from(was_busy);
        let connection = Connection::open(self.port)?;
        self.poll.add(&connection.stream, number)?;
        self.connections[number] = connection;
        if was_busy {
            self.free.push(number);
        }
        Ok(())
    }

    fn drain(&mut self, begin: Instant) -> anyhow::Result<()> {
        let end = Instant::now() + DRAIN;
        while self.connections.iter().any(|it| it.is_busy) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let stuck = (0..self.connections.len()).filter(|it| self.connections[*it].is_busy);
                for number in stuck.collect::<Vec<_>>() {
                    self.replace(number)?;
                }
                break;
            }
            self.wait(begin, left, WAITS)?;
        }
        Ok(())
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
