//! What the model remembers: the nouns of the money protocol, with small numbers.

/// Credits; no scope has more than a handful.
pub(crate) type Credits = i8;

/// Everything there is.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct State {
    pub(crate) wallet: Wallet,
    pub(crate) leases: Vec<Lease>,
    pub(crate) journals: Vec<Journal>,
    /// Whether each gateway's process runs.
    pub(crate) up: Vec<bool>,
    pub(crate) left: Budget,
    /// A batch or report broke a rule: it would be a dead letter.
    pub(crate) breach: bool,
}

/// What may still happen; keeps the state space finite.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Budget {
    pub(crate) asks: u8,
    pub(crate) calls: u8,
    pub(crate) kills: u8,
    pub(crate) epochs: u8,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Wallet {
    pub(crate) balance: Credits,
    pub(crate) reserved: Credits,
    pub(crate) granted: Credits,
    pub(crate) used: Credits,
    pub(crate) expired: Credits,
    pub(crate) epoch: u8,
}

impl Wallet {
    pub(crate) fn available(&self) -> Credits {
        self.balance - self.reserved
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum LeaseState {
    Active,
    Draining,
    Closed,
    Orphaned,
    WrittenOff,
    /// Released by a timer; only the rejected variants do that.
    Expired,
}

/// A lease as the wallet knows it, as its owner has it in hand, and what is true of it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Lease {
    pub(crate) journal: usize,
    pub(crate) epoch: u8,
    pub(crate) state: LeaseState,
    /// Lent now: everything granted less everything returned.
    pub(crate) granted: Credits,
    pub(crate) returned: Credits,
    pub(crate) settled: Credits,
    pub(crate) known: Credits,
    pub(crate) final_cum: Option<Credits>,
    /// Part of `settled` that the provider bears.
    pub(crate) late: Credits,
    /// What the owner's process holds of it; gone with the process.
    pub(crate) hand: Option<Hand>,
    /// The owner's process has written the final count.
    pub(crate) closed_by_owner: bool,
    /// A final count that is to be written for it.
    pub(crate) pending_close: Option<Credits>,
    /// A heartbeat or recall reply on its way: spent, given back. Taken any time, any number of
    /// times.
    pub(crate) report: Option<(Credits, Credits)>,
    /// The truth: the cost of all completed calls.
    pub(crate) spent: Credits,
}

impl Lease {
    pub(crate) fn is_open(&self) -> bool {
        matches!(
            self.state,
            LeaseState::Active | LeaseState::Draining | LeaseState::Orphaned
        )
    }

    pub(crate) fn granted_cum(&self) -> Credits {
        self.granted + self.returned
    }
}

/// A lease in the memory of a gateway.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Hand {
    pub(crate) remaining: Credits,
    /// Of calls in flight, sorted.
    pub(crate) holds: Vec<Credits>,
    pub(crate) cum: Credits,
    pub(crate) granted_cum: Credits,
    pub(crate) returned_cum: Credits,
    pub(crate) draining: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Phase {
    /// Of a running process.
    Live,
    /// Its process ends: no acquisition begins, nothing more is admitted.
    Stopping,
    /// Its process was killed.
    Dead,
    /// At its end: final counts are written, the rest is shipped.
    Ending,
    /// Applied everywhere and gone.
    Removed,
    /// Gone with its disk.
    Destroyed,
}

/// An acquisition, identified by journal and nonce.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Request {
    /// On its way to the wallet, with or without anybody waiting for the answer.
    Sent,
    /// Lent of this lease, up to this total. Repeating it changes nothing.
    Lent { lease: usize, granted_cum: Credits },
}

/// One process life of a gateway.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Journal {
    pub(crate) gateway: usize,
    pub(crate) phase: Phase,
    /// The wallet lends nothing to it any more.
    pub(crate) retired: bool,
    pub(crate) asking: bool,
    pub(crate) request: Option<Request>,
    /// Every record ever written; the position is the sequence number.
    pub(crate) records: Vec<Record>,
    /// Records below are let go.
    pub(crate) first: usize,
    /// Records below are in the stream, as the last acknowledgement says.
    pub(crate) acknowledged: usize,
    /// Messages in the stream: half-open ranges of sequence numbers, in no order.
    pub(crate) stream: Vec<(usize, usize)>,
    /// Message ids that the stream remembers; only the rejected variants rely on them.
    pub(crate) remembered: Vec<(usize, usize)>,
    /// Sequence numbers that the wallet has applied.
    pub(crate) inbox: Vec<usize>,
    /// Answered or numbered, and not written; only the rejected variants have such.
    pub(crate) unwritten: Vec<Record>,
}

impl Journal {
    pub(crate) fn new(gateway: usize) -> Self {
        Self {
            gateway,
            phase: Phase::Live,
            retired: false,
            asking: false,
            request: None,
            records: Vec::new(),
            first: 0,
            acknowledged: 0,
            stream: Vec::new(),
            remembered: Vec::new(),
            inbox: Vec::new(),
            unwritten: Vec::new(),
        }
    }

    /// The first sequence number that the wallet has not applied.
    pub(crate) fn watermark(&self) -> usize {
        (0..)
            .find(|seq| !self.inbox.contains(seq))
            .expect("the inbox is finite")
    }

    /// Whether the wallet has applied all records of a message.
    pub(crate) fn is_applied(&self, message: &(usize, usize)) -> bool {
        (message.0..message.1).all(|seq| self.inbox.contains(&seq))
    }

    pub(crate) fn is_gone(&self) -> bool {
        matches!(self.phase, Phase::Removed | Phase::Destroyed)
    }
}

/// A record that concerns money: a call, or with `is_final` a final count.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct Record {
    pub(crate) lease: usize,
    /// Of the call; 0 for a final count.
    pub(crate) cost: Credits,
    pub(crate) cum: Credits,
    pub(crate) is_final: bool,
}
