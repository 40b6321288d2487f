//! How long an answer may pause: one timer for all answers of a thread.
//!
//! Most answers wait for a piece once, for microseconds. A timer for each would cost more than the
//! wait: here an answer that waits leaves its waker and a deadline, and what is overdue is looked
//! for from time to time. So a pause may last a little longer than it should, never shorter.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Context, Waker},
    time::Duration,
};

use slab::Slab;
use tokio::time::Instant;

#[cfg(test)]
mod tests;

/// Between two looks.
const TICK: Duration = Duration::from_millis(200);

/// Answers that wait, of one thread.
#[derive(Debug)]
pub(crate) struct Patience {
    waits: RefCell<Slab<Wait>>,
    /// Set while somebody looks from time to time: as it was then.
    now: Cell<Option<Instant>>,
}

#[derive(Debug)]
struct Wait {
    waker: Waker,
    deadline: Instant,
    is_over: bool,
}

impl Patience {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            waits: RefCell::default(),
            now: Cell::default(),
        })
    }

    /// Of an answer that begins: how long it may pause, and how long it may take in all.
    pub(crate) fn pauses(self: &Rc<Self>, idle: Duration, total: Duration) -> Pauses {
        Pauses {
            patience: Rc::clone(self),
            idle,
            total,
            end: None,
            place: None,
        }
    }

    /// The time, as of the last look.
    fn time(self: &Rc<Self>) -> Instant {
        if let Some(now) = self.now.get() {
            return now;
        }
        let now = Instant::now();
        self.now.set(Some(now));
        tokio::task::spawn_local(Rc::clone(self).look());
        now
    }

    /// Wakes who is overdue, as long as anybody waits.
    async fn look(self: Rc<Self>) {
        loop {
            tokio::time::sleep(TICK).await;
            let now = Instant::now();
            self.now.set(Some(now));
            for (_, wait) in self.waits.borrow_mut().iter_mut() {
                if wait.deadline <= now {
                    wait.is_over = true;
                    wait.waker.wake_by_ref();
                }
            }
            if self.waits.borrow().is_empty() {
                self.now.set(None);
                return;
            }
        }
    }

    fn enter(&self, waker: &Waker, deadline: Instant) -> usize {
        self.waits.borrow_mut().insert(Wait {
            waker: waker.clone(),
            deadline,
            is_over: false,
        })
    }
}

/// The pauses of one answer.
#[derive(Debug)]
pub(crate) struct Pauses {
    patience: Rc<Patience>,
    idle: Duration,
    total: Duration,
    /// Set by the first pause or piece: the answer has no longer than that.
    end: Option<Instant>,
    place: Option<usize>,
}

impl Pauses {
    /// The answer has nothing to give. True when that has lasted too long; else the task is woken
    /// when it has.
    pub(crate) fn pause(&mut self, task: &Context<'_>) -> bool {
        if let Some(place) = self.place {
            let mut waits = self.patience.waits.borrow_mut();
            let Some(wait) = waits.get_mut(place) else {
                return false;
            };
            wait.waker.clone_from(task.waker());
            return wait.is_over;
        }
        let deadline = self.deadline();
        self.place = Some(self.patience.enter(task.waker(), deadline));
        false
    }

    /// The answer has given a piece, and is not over. True when it has lasted too long: also where
    /// it never paused, because its client takes it so slowly.
    pub(crate) fn go_on(&mut self) -> bool {
        let deadline = self.deadline();
        if let Some(place) = self.place
            && let Some(wait) = self.patience.waits.borrow_mut().get_mut(place)
        {
            wait.deadline = deadline;
            wait.is_over = false;
        }
        self.end.is_some_and(|end| end <= self.patience.time())
    }

    /// When the next piece must be there. The time may be a tick old.
    fn deadline(&mut self) -> Instant {
        let now = self.patience.time();
        let after = |wait: Duration| {
            let wait = wait.saturating_add(TICK);
            now.checked_add(wait).unwrap_or(now)
        };
        let end = *self.end.get_or_insert_with(|| after(self.total));
        after(self.idle).min(end)
    }
}

impl Drop for Pauses {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            let gone = self.patience.waits.borrow_mut().try_remove(place);
            drop(gone); // its waker may end a task that has a place as well
        }
    }
}
