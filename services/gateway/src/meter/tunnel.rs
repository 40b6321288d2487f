//! The ticket of a call that becomes a tunnel.

use http::{HeaderMap, StatusCode};
use proto::events::v1::{Disposition, RecordKind};
use runtime::crash_point;
use types::Refusal;

use super::{Proof, Ticket};
use crate::charge::Reached;

impl Ticket {
    /// The upstream has changed protocols: a tunnel begins, and the call is charged however that
    /// ends. It is noted before anybody hears of it: if this process dies, its successor charges
    /// for it too. The client may hear of it when what this returns says so.
    ///
    /// # Errors
    /// There is no room for the note.
    pub(crate) fn switched(&mut self, head: &HeaderMap) -> Result<Proof, Refusal> {
        let reservation = self.edge.journal.reserve();
        let reservation = reservation.ok_or(Refusal::MeteringUnavailable)?;
        let now = self.edge.clock.monotonic_nanos();
        self.upstream_nanos = now.saturating_sub(self.upstream_began);
        self.status = StatusCode::SWITCHING_PROTOCOLS.as_u16();
        self.reached = Reached::Tunnel;
        self.units.read_fields(head);
        let kind = match self.open {
            None => RecordKind::Open,
            Some(_) => RecordKind::Progress,
        };
        let seq = self.note_progress(kind, reservation);
        crash_point!("gateway.tunnel_noted");
        Ok(self.proof(seq, self.terms.hold()))
    }

    /// Ends a call whose tunnel this gateway has cut, and says why.
    pub(crate) fn cut(mut self, refusal: Refusal) {
        self.refusal = Some(refusal);
        self.record(Disposition::GatewayAborted);
    }
}
