//! Calls of the common shape, from wire to wire without hyper.
//!
//! - A request that came whole, with a body of a known length or none, for an upstream that speaks
//!   HTTP/1.1 without TLS, whose answer has a length too. That is most of all calls, and for them
//!   messages between tasks, maps of fields and timers would cost more than all checks together.
//! - Whatever is otherwise goes to hyper: before anything was done, after the call was admitted, or
//!   with the beginning of an answer. So there is one place for what is rare, and nothing is
//!   refused here for its form.
//! - What is read here (`head`) would be passed by [`Framing`](super::framing::Framing) and by
//!   hyper as what it is here; checks, record and charge are the same code.

mod answer;
mod ask;
mod exchange;
mod front;
mod head;
mod interim;
mod request;
mod resume;
mod whence;
mod write;

use bytes::Bytes;

use self::{exchange::Exchanged, front::Front, request::Request};
pub(super) use self::{
    interim::write_interim,
    resume::{Resume, resume},
};
use super::{
    Hall,
    door::Peer,
    limits::READ_BYTES,
    roll::{Phase, Seat},
    wire::Stream,
};

/// Most that is held of what a client sends: a read that ends in an incomplete request, and one
/// more.
const INPUT_BYTES_MAX: usize = 2 * READ_BYTES;

/// What follows on a connection.
pub(super) enum Next {
    /// hyper reads what has come.
    Hyper {
        read: Bytes,
        /// The first request's call has begun.
        resume: Option<Box<Resume>>,
        /// Requests are of another shape here; else the next one may be tried again.
        is_for_long: bool,
    },
    /// Everything is answered, and it ends.
    End,
    /// It is broken, or was cut.
    Gone,
}

/// Serves calls until one is for hyper, or the connection ends.
pub(super) async fn serve(
    hall: &Hall,
    seat: &Seat,
    peer: Peer,
    stream: &mut Stream,
    mut input: Vec<u8>,
) -> Next {
    let mut front = Front::new(hall, seat, stream);
    loop {
        if input.is_empty() && !front.take_ahead(&mut input) {
            hall.spares.keep(input);
            if front.is_ending {
                return Next::End;
            }
            seat.set_phase(Phase::Resting);
            input = match front.read().await {
                Ok(input) => input,
                Err(ended) => return ended,
            };
        }
        seat.set_phase(Phase::Express);
        debug_assert!(
            input.len() <= INPUT_BYTES_MAX,
            "one incomplete request and one read"
        );
        // Boxed, so that a connection that rests has not the size of one that works.
        let (exchanged, bytes) = Box::pin(one(hall, peer, &mut front, &input)).await;
        match exchanged {
            Exchanged::Answered => {
                #[cfg(test)]
                hall.expressed.set(hall.expressed.get().strict_add(1));
            }
            // The rest of it may be there.
            Exchanged::Unfit if front.take_ahead(&mut input) => continue,
            Exchanged::Unfit => return for_hyper(input, &mut front, None, true),
            Exchanged::Cold => return for_hyper(input, &mut front, None, false),
            Exchanged::Begun(resume) => {
                return for_hyper(input, &mut front, Some(resume), false);
            }
            Exchanged::Ended => return Next::End,
            Exchanged::Gone => return Next::Gone,
        }
        input.drain(..bytes);
    }
}

/// Carries the first call of these bytes, if it is of the common shape. Returns how long it was.
async fn one(hall: &Hall, peer: Peer, front: &mut Front<'_>, input: &[u8]) -> (Exchanged, usize) {
    let mut room = head::NO_FIELDS;
    match Request::parse(input, &mut room) {
        Some(request) => {
            let exchanged = exchange::exchange(hall, peer, front, &request).await;
            (exchanged, request.bytes)
        }
        None => (Exchanged::Unfit, 0),
    }
}

fn for_hyper(
    mut input: Vec<u8>,
    front: &mut Front<'_>,
    resume: Option<Box<Resume>>,
    is_for_long: bool,
) -> Next {
    front.take_ahead(&mut input);
    front.pass_order_on();
    Next::Hyper {
        read: input.into(),
        resume,
        is_for_long,
    }
}
