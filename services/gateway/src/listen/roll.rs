//! The connections of one thread, and who looks after them: once a second, each.
//!
//! No connection has a timer of its own, and none is asked whether the gateway stops: who has
//! something to say to one leaves an order and wakes it.

use std::{
    cell::{Cell, RefCell},
    rc::{Rc, Weak},
    sync::Arc,
    task::{Context, Poll, Waker},
};

use slab::Slab;

use super::{
    flows::Flow,
    life::Life,
    patience::{Memory, Patience, Sight, Verdict, Waits},
};

/// Of a connection, as who looks after it needs to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Phase {
    /// TLS, and the first bytes.
    #[default]
    Opening,
    Http1,
    /// HTTP/1 between two calls, without buffers.
    Resting,
    /// A call that needs no hyper.
    Express,
    Http2,
}

/// What a connection is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Order {
    Rest,
    /// End, at once if there is no call, else with the last one.
    End,
    LateHead,
    LateBody,
    Cut,
}

/// One connection on the roll.
pub(super) struct Seat {
    pub(super) life: Arc<Life>,
    phase: Cell<Phase>,
    order: Cell<Option<Order>>,
    memory: Cell<Memory>,
    waker: RefCell<Option<Waker>>,
    /// Answers on their way over HTTP/2.
    flows: RefCell<Vec<Weak<Flow>>>,
    place: Cell<usize>,
    roll: Weak<Roll>,
}

/// All connections of a thread.
#[derive(Default)]
pub(super) struct Roll {
    seats: RefCell<Slab<Rc<Seat>>>,
    is_stopping: Cell<bool>,
}

impl Roll {
    /// Puts a new connection on the roll. It is struck off when `Present` is dropped.
    pub(super) fn enter(self: &Rc<Self>, now: u64) -> Present {
        let seat = Rc::new(Seat {
            life: Arc::default(),
            phase: Cell::default(),
            order: Cell::default(),
            memory: Cell::new(Memory::new(now)),
            waker: RefCell::default(),
            flows: RefCell::default(),
            place: Cell::default(),
            roll: Rc::downgrade(self),
        });
        let place = self.seats.borrow_mut().insert(Rc::clone(&seat));
        seat.place.set(place);
        Present(seat)
    }

    /// Looks at every connection. Returns why some are cut.
    pub(super) fn look(&self, now: u64, patience: &Patience) -> Vec<&'static str> {
        let mut cut = Vec::new();
        for (_, seat) in self.seats.borrow().iter() {
            seat.life.resets.set(0);
            seat.life.idle_frames.set(0);
            seat.flows.borrow_mut().retain(|flow| {
                let flow = flow.upgrade();
                flow.map(|flow| flow.look(now, patience)).is_some()
            });
            if self.is_stopping.get() && seat.phase.get() != Phase::Opening {
                seat.tell(Order::End);
            }
            let mut memory = seat.memory.get();
            let verdict = memory.judge(seat.sight(), now, patience);
            seat.memory.set(memory);
            match verdict {
                Verdict::Fine => {}
                Verdict::Rest => seat.tell(Order::Rest),
                Verdict::End => seat.tell(Order::End),
                Verdict::LateHead => seat.tell(Order::LateHead),
                Verdict::LateBody => seat.tell(Order::LateBody),
                Verdict::Cut(_) => seat.tell(Order::Cut),
            }
            cut.extend(match verdict {
                Verdict::Cut(why) => Some(why),
                Verdict::LateHead => Some("slow_head"),
                Verdict::LateBody => Some("slow_body"),
                _ => None,
            });
        }
        cut
    }

    /// Connections in a phase.
    #[cfg(test)]
    pub(super) fn count(&self, phase: Phase) -> usize {
        let seats = self.seats.borrow();
        let found = seats.iter().filter(|(_, seat)| seat.phase.get() == phase);
        found.count()
    }

    /// The gateway stops: connections end with their last call.
    pub(super) fn stop(&self) {
        self.is_stopping.set(true);
        for (_, seat) in self.seats.borrow().iter() {
            if seat.phase.get() != Phase::Opening {
                seat.tell(Order::End);
            }
        }
    }

    /// Nobody is waited for any more who has not said anything.
    pub(super) fn close_silent(&self) {
        for (_, seat) in self.seats.borrow().iter() {
            seat.tell(match seat.phase.get() {
                Phase::Opening => Order::Cut,
                _ => Order::End,
            });
        }
    }
}

impl Seat {
    pub(super) fn set_phase(&self, phase: Phase) {
        self.phase.set(phase);
    }

    /// Takes what was ordered. Whoever asks is woken by the next order.
    pub(super) fn heed(&self, task: &Context<'_>) -> Option<Order> {
        let mut waker = self.waker.borrow_mut();
        if !waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(task.waker()))
        {
            *waker = Some(task.waker().clone());
        }
        self.order.take()
    }

    /// Awaits what an order does not end.
    pub(super) async fn unless_ordered<T>(
        &self,
        awaited: impl Future<Output = T>,
    ) -> Result<T, Order> {
        let mut awaited = std::pin::pin!(awaited);
        std::future::poll_fn(|task| {
            if let Some(order) = self.heed(task) {
                return Poll::Ready(Err(order));
            }
            awaited.as_mut().poll(task).map(Ok)
        })
        .await
    }

    /// An answer is on its way.
    pub(super) fn add_flow(&self, flow: &Rc<Flow>) {
        let mut flows = self.flows.borrow_mut();
        flows.retain(|flow| flow.strong_count() > 0);
        flows.push(Rc::downgrade(flow));
    }

    /// The order that counts is the last one, but nothing stays a cut.
    pub(super) fn tell(&self, order: Order) {
        if self.order.get() != Some(Order::Cut) {
            self.order.set(Some(order));
        }
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    fn sight(&self) -> Sight {
        let life = &self.life;
        let waits = match self.phase.get() {
            _ if life.is_tunnel.is_set() => Waits::Us,
            Phase::Opening => Waits::Opening,
            Phase::Resting => Waits::Idle,
            _ if life.write_waits.is_set() => Waits::Reader,
            Phase::Express => Waits::Us,
            Phase::Http2 if life.tunnels.get() == 0 && self.flows.borrow().is_empty() => {
                Waits::Idle
            }
            Phase::Http2 => Waits::Us,
            Phase::Http1 if life.is_in_body.is_set() && life.read_waits.is_set() => Waits::Body,
            Phase::Http1 if !life.is_between_calls() => Waits::Us,
            Phase::Http1 if life.is_in_head.is_set() => Waits::Head,
            Phase::Http1 => Waits::Idle,
        };
        Sight {
            waits,
            read: life.read.get(),
            heads: life.heads.get(),
            written: life.written.get(),
            is_awake: self.phase.get() == Phase::Http1,
        }
    }
}

/// A connection that is there.
pub(super) struct Present(pub(super) Rc<Seat>);

impl Drop for Present {
    fn drop(&mut self) {
        if let Some(roll) = self.0.roll.upgrade() {
            roll.seats.borrow_mut().try_remove(self.0.place.get());
        }
    }
}
