//! What may happen next, in any order.

use stateright::{Model, Property};

use super::{
    properties,
    state::{Budget, Credits, Journal, LeaseState, Phase, Request, State, Wallet},
};

/// How much of the world is modelled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope {
    pub(crate) gateways: usize,
    /// What the wallet holds, and holds again in each epoch.
    pub(crate) credits: Credits,
    /// What one acquisition asks for; it may get less.
    pub(crate) want: Credits,
    /// What a call may set aside; it may cost less.
    pub(crate) holds: &'static [Credits],
    /// Calls in flight at once on one lease.
    pub(crate) at_once: usize,
    pub(crate) asks: u8,
    pub(crate) calls: u8,
    pub(crate) kills: u8,
    pub(crate) epochs: u8,
    /// Messages of one journal in the stream at once.
    pub(crate) messages: usize,
    /// The stream may lose what it has acknowledged.
    pub(crate) stream_loses: bool,
    /// Gateways give back what they do not hold, when asked or when idle.
    pub(crate) recall: bool,
    /// Reports may be overtaken and repeated, also after their sender is dead.
    pub(crate) late_reports: bool,
    /// Owners may seem silent: orphaned, then written off, dead or not.
    pub(crate) silence: bool,
    /// Journals of killed processes may be destroyed.
    pub(crate) disk_loss: bool,
}

/// The protocol, or the protocol with one protection removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Variant {
    Sound,
    /// A lease's credits return when it times out; what comes later is refused.
    TimerRefusesLate,
    /// A lease's credits return when it times out; what comes later is debited.
    TimerChargesLate,
    /// The journal lets go of what the stream has acknowledged.
    TrimOnAcknowledgement,
    /// Nothing but the stream's window of message ids prevents repetition; the window ends.
    TrustIdWindow,
    /// The stream remembers the id of a message it never stored, and acknowledges the retry.
    TrustDuplicateAnswer,
    /// The answer leaves first, its record is written afterwards.
    RecordAfterAnswer,
    /// Number and total are taken without the lock, the record is written later.
    NumberBeforeRecord,
    /// Each delivery adds its costs.
    AddEachDelivery,
    /// Final counts are written for a journal that may still be lent to.
    CloseWithoutFence,
    /// The final count is what the journal still holds, without what is settled.
    CloseFromJournalAlone,
    /// What turns up after a write-off is debited to the customer.
    WriteOffDebitsLate,
    /// A new epoch sets the balance; leases do not know their epoch.
    SetBalance,
    /// A recall's answer is subtracted when it comes, instead of a total that only grows.
    RecallByDifference,
}

/// The model: a scope, a variant, and the one invariant it is accused of breaking, if any.
#[derive(Clone, Debug)]
pub(crate) struct Protocol {
    pub(crate) scope: Scope,
    pub(crate) variant: Variant,
    pub(crate) accused: Option<&'static str>,
}

/// One step of one part. Numbers are positions of leases, journals and gateways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Ask {
        journal: usize,
    },
    Lend {
        journal: usize,
        credits: Credits,
    },
    /// The wallet refuses, or the request is lost.
    Refuse {
        journal: usize,
    },
    Reply {
        journal: usize,
        repeated: bool,
    },
    /// The reply is lost, and so are its repetitions. The request may still be on its way.
    GiveUp {
        journal: usize,
    },
    Admit {
        lease: usize,
        hold: Credits,
    },
    /// The call ends without costing anything.
    Abandon {
        lease: usize,
        hold: Credits,
    },
    Complete {
        lease: usize,
        hold: Credits,
        cost: Credits,
    },
    /// Writes what was answered or numbered before; only in rejected variants.
    Write {
        journal: usize,
        position: usize,
    },
    GiveBack {
        lease: usize,
    },
    /// A heartbeat, or the answer to a recall, that arrives at once.
    Report {
        lease: usize,
    },
    SendReport {
        lease: usize,
    },
    TakeReport {
        lease: usize,
    },
    Publish {
        journal: usize,
        from: usize,
        to: usize,
    },
    /// A change of the stream's leader: the id is remembered, the message is not.
    RememberOnly {
        journal: usize,
        from: usize,
        to: usize,
    },
    EndIdWindow {
        journal: usize,
    },
    Settle {
        journal: usize,
        message: (usize, usize),
    },
    Acknowledge {
        journal: usize,
        message: (usize, usize),
    },
    Lose {
        journal: usize,
        message: (usize, usize),
    },
    Trim {
        journal: usize,
    },
    Kill {
        gateway: usize,
    },
    Restart {
        gateway: usize,
    },
    Stop {
        journal: usize,
    },
    Close {
        lease: usize,
    },
    Retire {
        journal: usize,
    },
    WriteClose {
        lease: usize,
    },
    Remove {
        journal: usize,
    },
    Destroy {
        journal: usize,
    },
    Orphan {
        lease: usize,
    },
    WriteOff {
        lease: usize,
    },
    Expire {
        lease: usize,
    },
    RollOver,
}

impl Protocol {
    pub(super) fn is(&self, variant: Variant) -> bool {
        self.variant == variant
    }

    fn lending(&self, state: &State, index: usize, actions: &mut Vec<Action>) {
        let journal = &state.journals[index];
        let is_sent = journal.request == Some(Request::Sent);
        if journal.phase == Phase::Live && !journal.asking && !is_sent && state.left.asks > 0 {
            actions.push(Action::Ask { journal: index });
        }
        if is_sent {
            actions.push(Action::Refuse { journal: index });
            if !journal.retired {
                let most = self.scope.want.min(state.wallet.available());
                let lend = |credits| Action::Lend {
                    journal: index,
                    credits,
                };
                actions.extend((1..=most).map(lend));
            }
        }
        if !journal.asking {
            return;
        }
        if let Some(Request::Lent { lease, .. }) = journal.request {
            let reply = |repeated| Action::Reply {
                journal: index,
                repeated,
            };
            actions.push(reply(false));
            if self.must_drain(state, lease) {
                actions.push(reply(true));
            }
        }
        actions.push(Action::GiveUp { journal: index });
    }

    fn calls(&self, state: &State, index: usize, actions: &mut Vec<Action>) {
        let lease = &state.leases[index];
        let Some(hand) = &lease.hand else { return };
        let journal = &state.journals[lease.journal];
        let in_flight = hand.holds.len() + journal.unwritten.len();
        let may_admit = journal.phase == Phase::Live
            && !hand.draining
            && in_flight < self.scope.at_once
            && usize::from(state.left.calls) > hand.holds.len();
        for hold in self.scope.holds.iter().copied() {
            if may_admit && hold <= hand.remaining {
                actions.push(Action::Admit { lease: index, hold });
            }
            if hand.holds.contains(&hold) {
                actions.push(Action::Abandon { lease: index, hold });
                if state.left.calls > 0 {
                    let complete = |cost| Action::Complete {
                        lease: index,
                        hold,
                        cost,
                    };
                    actions.extend((1..=hold).map(complete));
                }
            }
        }
        if self.scope.recall && hand.remaining > 0 {
            actions.push(Action::GiveBack { lease: index });
        }
        let news = (hand.cum, hand.returned_cum) != (lease.known, lease.returned);
        let must_know = self.must_drain(state, index) && !hand.draining;
        if news || must_know || lease.state == LeaseState::Orphaned {
            actions.push(Action::Report { lease: index });
        }
        if self.scope.late_reports && lease.report != Some((hand.cum, hand.returned_cum)) {
            actions.push(Action::SendReport { lease: index });
        }
        let is_quiet = hand.holds.is_empty() && journal.unwritten.is_empty();
        if hand.draining && is_quiet {
            actions.push(Action::Close { lease: index });
        }
    }

    fn lease_ends(&self, state: &State, index: usize, actions: &mut Vec<Action>) {
        let lease = &state.leases[index];
        if lease.report.is_some() && lease.is_open() {
            actions.push(Action::TakeReport { lease: index });
        }
        if lease.pending_close.is_some() {
            actions.push(Action::WriteClose { lease: index });
        }
        let by_timer = self.is(Variant::TimerChargesLate) || self.is(Variant::TimerRefusesLate);
        if by_timer && lease.state == LeaseState::Active {
            actions.push(Action::Expire { lease: index });
        }
        if !self.scope.silence {
            return;
        }
        match lease.state {
            LeaseState::Active | LeaseState::Draining => {
                actions.push(Action::Orphan { lease: index });
            }
            LeaseState::Orphaned => actions.push(Action::WriteOff { lease: index }),
            _ => {}
        }
    }

    fn shipping(&self, state: &State, index: usize, actions: &mut Vec<Action>) {
        let journal = &state.journals[index];
        let end = journal.records.len();
        let runs = state.up[journal.gateway];
        let ships = runs && matches!(journal.phase, Phase::Live | Phase::Stopping | Phase::Ending);
        let by_id = self.is(Variant::TrustIdWindow) || self.is(Variant::TrustDuplicateAnswer);
        for from in journal.first..end {
            for to in from + 1..=end {
                // A batch is one record, or all that there is.
                let is_batch = to == from + 1 || (to == end && !by_id);
                let is_there = journal.stream.contains(&(from, to));
                if !ships || !is_batch || is_there {
                    continue;
                }
                if journal.stream.len() < self.scope.messages {
                    let journal = index;
                    actions.push(Action::Publish { journal, from, to });
                }
                if self.is(Variant::TrustDuplicateAnswer) && journal.remembered.is_empty() {
                    let journal = index;
                    actions.push(Action::RememberOnly { journal, from, to });
                }
            }
        }
        if !journal.remembered.is_empty() && self.is(Variant::TrustIdWindow) {
            actions.push(Action::EndIdWindow { journal: index });
        }
        for message in journal.stream.iter().copied() {
            let journal_index = index;
            actions.push(Action::Settle {
                journal: journal_index,
                message,
            });
            if journal.is_applied(&message) {
                actions.push(Action::Acknowledge {
                    journal: journal_index,
                    message,
                });
            } else if self.scope.stream_loses {
                actions.push(Action::Lose {
                    journal: journal_index,
                    message,
                });
            }
        }
        if ships && self.may_let_go(journal) > journal.first {
            actions.push(Action::Trim { journal: index });
        }
    }

    /// Records below may be forgotten.
    pub(super) fn may_let_go(&self, journal: &Journal) -> usize {
        let on_acknowledgement =
            self.is(Variant::TrimOnAcknowledgement) || self.is(Variant::TrustDuplicateAnswer);
        if on_acknowledgement {
            return journal.acknowledged;
        }
        journal.watermark()
    }

    fn lives(&self, state: &State, actions: &mut Vec<Action>) {
        for (index, journal) in state.journals.iter().enumerate() {
            let runs = state.up[journal.gateway];
            let is_pending = |open: bool| {
                let mut own = state.leases.iter().filter(|it| it.journal == index);
                own.any(|it| it.pending_close.is_some() || (open && it.hand.is_some()))
            };
            match journal.phase {
                Phase::Live if !journal.asking => actions.push(Action::Stop { journal: index }),
                Phase::Stopping if !is_pending(true) => {
                    actions.push(Action::Retire { journal: index });
                }
                Phase::Dead => {
                    if runs {
                        actions.push(Action::Retire { journal: index });
                    } else if self.scope.disk_loss {
                        actions.push(Action::Destroy { journal: index });
                    }
                }
                Phase::Ending
                    if runs
                        && !is_pending(false)
                        && self.may_let_go(journal) >= journal.records.len() =>
                {
                    actions.push(Action::Remove { journal: index });
                }
                _ => {}
            }
            for position in 0..journal.unwritten.len() {
                actions.push(Action::Write {
                    journal: index,
                    position,
                });
            }
        }
        for (gateway, up) in state.up.iter().enumerate() {
            let has_journal = state
                .journals
                .iter()
                .any(|it| it.gateway == gateway && !it.is_gone());
            if *up && state.left.kills > 0 && has_journal {
                actions.push(Action::Kill { gateway });
            }
            if !*up && has_journal {
                actions.push(Action::Restart { gateway });
            }
        }
        if state.left.epochs > 0 {
            actions.push(Action::RollOver);
        }
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let Scope {
            gateways,
            credits,
            asks,
            calls,
            kills,
            epochs,
            ..
        } = self.scope;
        vec![State {
            wallet: Wallet {
                balance: credits,
                reserved: 0,
                granted: credits,
                used: 0,
                expired: 0,
                epoch: 0,
            },
            leases: Vec::new(),
            journals: (0..gateways).map(Journal::new).collect(),
            up: vec![true; gateways],
            left: Budget {
                asks,
                calls,
                kills,
                epochs,
            },
            breach: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for index in 0..state.journals.len() {
            self.lending(state, index, actions);
            self.shipping(state, index, actions);
        }
        for index in 0..state.leases.len() {
            self.calls(state, index, actions);
            self.lease_ends(state, index, actions);
        }
        self.lives(state, actions);
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        self.step(&mut state, action);
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = properties::invariants();
        match self.accused {
            Some(accused) => properties.retain(|it| it.name == accused),
            None => properties.extend(properties::witnesses(self)),
        }
        properties
    }
}
