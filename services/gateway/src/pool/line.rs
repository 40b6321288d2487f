//! One HTTP/2 connection to an upstream, and its streams.

use std::{cell::Cell, rc::Rc};

use hyper::client::conn::http2;
use tokio::time::Instant;

use super::{Lent, Wire, site::Site, targets::Target};
use crate::upload::Uploaded;

/// Streams on one connection before another one is opened.
pub(super) const STREAMS_TARGET: usize = 64;

/// A connection that streams share.
pub(crate) struct Line {
    sender: http2::SendRequest<Uploaded>,
    target: Rc<Target>,
    streams: Cell<usize>,
    /// As the upstream said last.
    streams_max: Cell<usize>,
    /// It has said goodbye, or is broken.
    is_closed: Cell<bool>,
    idle_since: Cell<Instant>,
}

impl Line {
    pub(super) fn new(sender: http2::SendRequest<Uploaded>, target: Rc<Target>) -> Rc<Self> {
        Rc::new(Self {
            sender,
            target,
            streams: Cell::default(),
            streams_max: Cell::new(STREAMS_TARGET),
            is_closed: Cell::default(),
            idle_since: Cell::new(Instant::now()),
        })
    }

    /// Whether it takes another stream while it has fewer than `most`.
    pub(super) fn has_room(&self, most: usize) -> bool {
        self.is_used() && self.streams.get() < most.min(self.streams_max.get())
    }

    pub(super) fn is_used(&self) -> bool {
        !self.is_closed.get() && !self.sender.is_closed() && self.target.is_used()
    }

    pub(super) fn streams(&self) -> usize {
        self.streams.get()
    }

    /// Set while it has no streams.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        (self.streams.get() == 0).then(|| self.idle_since.get())
    }

    /// How many streams the upstream takes; true when there are more than before.
    pub(super) fn takes(&self, streams_max: usize) -> bool {
        self.streams_max.replace(streams_max) < streams_max
    }

    pub(super) fn close(&self) {
        self.is_closed.set(true);
    }

    /// One stream of it.
    pub(super) fn lend(self: &Rc<Self>, site: &Rc<Site>) -> Lent {
        self.streams.set(self.streams.get().saturating_add(1));
        Lent {
            wire: Wire::Two(Stream {
                sender: self.sender.clone(),
                line: Rc::clone(self),
                site: Rc::clone(site),
            }),
            reused: true,
            target: Rc::clone(&self.target),
            trial: None,
            site: Rc::clone(site),
            held: None,
            was_heard: false,
        }
    }
}

/// A place on a connection; free again when it is dropped.
pub(crate) struct Stream {
    pub(super) sender: http2::SendRequest<Uploaded>,
    line: Rc<Line>,
    site: Rc<Site>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        let line = &self.line;
        line.streams.set(line.streams.get().saturating_sub(1));
        line.idle_since.set(Instant::now());
        self.site.hand_over(line);
    }
}
