//! What each step does.

use super::{
    Action, Protocol, Variant,
    state::{Credits, Hand, Journal, LeaseState, Phase, Record, Request, State},
};

impl Protocol {
    pub(super) fn step(&self, state: &mut State, action: Action) {
        match action {
            Action::Ask { journal } => {
                state.left.asks -= 1;
                state.journals[journal].asking = true;
                state.journals[journal].request = Some(Request::Sent);
            }
            Action::Lend { journal, credits } => {
                self.lend(state, journal, credits);
                if !state.journals[journal].asking {
                    state.journals[journal].request = None; // nobody waits for the reply
                }
            }
            Action::Refuse { journal } => {
                state.journals[journal].asking = false;
                state.journals[journal].request = None;
            }
            Action::Reply { journal, repeated } => self.reply(state, journal, repeated),
            Action::GiveUp { journal } => {
                let journal = &mut state.journals[journal];
                journal.asking = false;
                journal.request = journal.request.filter(|it| *it == Request::Sent);
            }
            Action::Orphan { lease } => state.leases[lease].state = LeaseState::Orphaned,
            Action::WriteOff { lease } => self.write_off(state, lease),
            Action::Expire { lease } => self.expire(state, lease),
            Action::RollOver => {
                state.left.epochs -= 1;
                self.roll_over(state);
            }
            Action::Admit { .. }
            | Action::Abandon { .. }
            | Action::Complete { .. }
            | Action::Write { .. }
            | Action::GiveBack { .. }
            | Action::Report { .. }
            | Action::SendReport { .. }
            | Action::TakeReport { .. } => self.step_of_lease(state, action),
            Action::Publish { .. }
            | Action::RememberOnly { .. }
            | Action::EndIdWindow { .. }
            | Action::Settle { .. }
            | Action::Acknowledge { .. }
            | Action::Lose { .. }
            | Action::Trim { .. } => self.step_of_stream(state, action),
            life => self.step_of_life(state, life),
        }
    }

    fn reply(&self, state: &mut State, journal: usize, repeated: bool) {
        state.journals[journal].asking = false;
        let Some(Request::Lent { lease, granted_cum }) = state.journals[journal].request.take()
        else {
            return;
        };
        let draining = repeated && self.must_drain(state, lease);
        let lent = &mut state.leases[lease];
        if lent.closed_by_owner {
            return;
        }
        let hand = lent.hand.get_or_insert(Hand {
            remaining: 0,
            holds: Vec::new(),
            cum: 0,
            granted_cum: 0,
            returned_cum: 0,
            draining,
        });
        if hand.draining && hand.granted_cum > 0 {
            return; // a lease that drains is never extended
        }
        let more = (granted_cum - hand.granted_cum).max(0);
        hand.remaining += more;
        hand.granted_cum += more;
        // Two leases of one owner: the older one ends.
        for (index, other) in state.leases.iter_mut().enumerate() {
            if other.journal == journal
                && index != lease
                && let Some(hand) = &mut other.hand
            {
                hand.draining = true;
            }
        }
    }

    fn step_of_lease(&self, state: &mut State, action: Action) {
        match action {
            Action::Admit { lease, hold } => {
                let hand = hand(state, lease);
                hand.remaining -= hold;
                hand.holds.push(hold);
                hand.holds.sort_unstable();
            }
            Action::Abandon { lease, hold } => release(hand(state, lease), hold, 0),
            Action::Complete { lease, hold, cost } => self.complete(state, lease, hold, cost),
            Action::Write { journal, position } => {
                let record = state.journals[journal].unwritten.remove(position);
                state.journals[journal].records.push(record);
                if self.is(Variant::NumberBeforeRecord) {
                    state.leases[record.lease].spent += record.cost;
                }
            }
            Action::GiveBack { lease } => {
                let hand = hand(state, lease);
                hand.returned_cum += hand.remaining;
                hand.remaining = 0;
            }
            Action::Report { lease } => {
                let hand = hand(state, lease);
                let (cum, returned) = (hand.cum, hand.returned_cum);
                self.report(state, lease, cum, returned);
                if self.must_drain(state, lease) {
                    self::hand(state, lease).draining = true;
                }
            }
            Action::SendReport { lease } => {
                let hand = hand(state, lease);
                let report = (hand.cum, hand.returned_cum);
                state.leases[lease].report = Some(report);
            }
            Action::TakeReport { lease } => {
                let (cum, mut returned) = state.leases[lease].report.expect("it was sent");
                if self.is(Variant::RecallByDifference) {
                    returned += state.leases[lease].returned;
                }
                self.report(state, lease, cum, returned);
            }
            _ => {}
        }
    }

    fn complete(&self, state: &mut State, lease: usize, hold: Credits, cost: Credits) {
        state.left.calls -= 1;
        let hand = hand(state, lease);
        hand.cum += cost;
        release(hand, hold, cost);
        let record = Record {
            lease,
            cost,
            cum: hand.cum,
            is_final: false,
        };
        let lease = &mut state.leases[lease];
        let journal = &mut state.journals[lease.journal];
        match self.variant {
            Variant::NumberBeforeRecord => journal.unwritten.push(record),
            Variant::RecordAfterAnswer => {
                lease.spent += cost;
                journal.unwritten.push(record);
            }
            _ => {
                lease.spent += cost;
                journal.records.push(record);
            }
        }
    }

    fn step_of_stream(&self, state: &mut State, action: Action) {
        let remembers = self.is(Variant::TrustIdWindow) || self.is(Variant::TrustDuplicateAnswer);
        match action {
            Action::Publish { journal, from, to } => {
                let journal = &mut state.journals[journal];
                if !journal.remembered.contains(&(from, to)) {
                    journal.stream.push((from, to));
                    journal.stream.sort_unstable();
                    if remembers {
                        journal.remembered.push((from, to));
                        journal.remembered.sort_unstable();
                    }
                }
                // Acknowledged; that is worth remembering only where it lets records go.
                let lets_go = self.is(Variant::TrimOnAcknowledgement) || remembers;
                if lets_go && from <= journal.acknowledged {
                    journal.acknowledged = journal.acknowledged.max(to);
                }
            }
            Action::RememberOnly { journal, from, to } => {
                state.journals[journal].remembered.push((from, to));
            }
            Action::EndIdWindow { journal } => state.journals[journal].remembered.clear(),
            Action::Settle { journal, message } => {
                self.settle(state, journal, message);
                if self.is(Variant::TrustIdWindow) {
                    // Even if each stored message were delivered exactly once.
                    state.journals[journal].stream.retain(|it| *it != message);
                }
            }
            Action::Acknowledge { journal, message } | Action::Lose { journal, message } => {
                state.journals[journal].stream.retain(|it| *it != message);
            }
            Action::Trim { journal } => {
                state.journals[journal].first = self.may_let_go(&state.journals[journal]);
            }
            _ => {}
        }
    }

    fn step_of_life(&self, state: &mut State, action: Action) {
        match action {
            Action::Kill { gateway } => kill(state, gateway),
            Action::Restart { gateway } => {
                state.up[gateway] = true;
                if state.left.asks > 0 {
                    state.journals.push(Journal::new(gateway));
                }
            }
            Action::Stop { journal } => {
                state.journals[journal].phase = Phase::Stopping;
                let own = state.leases.iter_mut().filter(|it| it.journal == journal);
                for hand in own.filter_map(|it| it.hand.as_mut()) {
                    hand.draining = true;
                }
            }
            Action::Close { lease } => {
                let cum = hand(state, lease).cum;
                write_close(state, lease, cum);
                state.leases[lease].hand = None;
                state.leases[lease].closed_by_owner = true;
            }
            Action::Retire { journal } => self.retire(state, journal),
            Action::WriteClose { lease } => {
                let cum = state.leases[lease].pending_close.take();
                write_close(state, lease, cum.expect("it is pending"));
            }
            Action::Remove { journal } => {
                let journal = &mut state.journals[journal];
                journal.phase = Phase::Removed;
                // Repetitions of what is applied change nothing; they are not followed further.
                if journal.watermark() >= journal.records.len() {
                    journal.records.clear();
                    journal.inbox.clear();
                    journal.stream.clear();
                    (journal.first, journal.acknowledged) = (0, 0);
                }
            }
            Action::Destroy { journal } => state.journals[journal].phase = Phase::Destroyed,
            _ => {}
        }
    }

    /// Ends a journal at the wallet, and decides on the final counts that are still owed.
    fn retire(&self, state: &mut State, journal: usize) {
        let ending = &mut state.journals[journal];
        let is_own = ending.phase == Phase::Stopping;
        ending.phase = Phase::Ending;
        ending.retired = !self.is(Variant::CloseWithoutFence);
        let kept = ending.records[ending.first..].to_vec();
        for (index, lease) in state.leases.iter_mut().enumerate() {
            let is_closed = kept.iter().any(|it| it.lease == index && it.is_final);
            if lease.journal != journal || !lease.is_open() {
                continue;
            }
            if !self.is(Variant::CloseWithoutFence) {
                lease.state = LeaseState::Draining;
            }
            if is_closed || (is_own && lease.closed_by_owner) {
                continue;
            }
            let own = kept.iter().filter(|it| it.lease == index);
            let total = own.map(|it| it.cum).max().unwrap_or(0);
            // Of what a process still running has never heard, nothing was spent.
            lease.pending_close = Some(match self.variant {
                _ if is_own => 0,
                Variant::CloseFromJournalAlone => total,
                _ => total.max(lease.settled),
            });
        }
    }
}

fn hand(state: &mut State, lease: usize) -> &mut Hand {
    let hand = state.leases[lease].hand.as_mut();
    hand.expect("only leases in hand do this")
}

fn release(hand: &mut Hand, hold: Credits, cost: Credits) {
    let at = hand.holds.iter().position(|it| *it == hold);
    hand.holds.remove(at.expect("it was held"));
    hand.remaining += hold - cost;
}

fn write_close(state: &mut State, lease: usize, cum: Credits) {
    let journal = state.leases[lease].journal;
    state.journals[journal].records.push(Record {
        lease,
        cost: 0,
        cum,
        is_final: true,
    });
}

/// The process is gone with everything in its memory.
fn kill(state: &mut State, gateway: usize) {
    state.left.kills -= 1;
    state.up[gateway] = false;
    let own = state.journals.iter_mut().filter(|it| it.gateway == gateway);
    for journal in own.filter(|it| !it.is_gone()) {
        journal.phase = Phase::Dead;
        journal.asking = false;
        journal.request = journal.request.filter(|it| *it == Request::Sent);
        journal.unwritten.clear();
    }
    for lease in &mut state.leases {
        if state.journals[lease.journal].gateway == gateway {
            lease.hand = None;
            lease.pending_close = None;
        }
    }
}
