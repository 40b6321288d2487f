//! What a call costs: decided by its route's terms, by how it ended, and by the units that its
//! upstream reported.

use std::sync::Arc;

use proto::{events::v1::Disposition, keys::v1 as wire};
use types::{Charge, Price, Unreported};

use crate::units::Units;

/// Which answers are charged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ChargeOn {
    /// Statuses 200–299.
    Success,
    /// Every answer of the upstream.
    Always,
}

/// When a call is charged that did not come to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OnAbort {
    /// Never.
    Free,
    /// Once the upstream has answered with a status that is charged.
    Answered,
    /// Also when it was asked and has not answered yet.
    Forwarded,
}

/// The commercial side of a route.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    /// Credits of a call, before its units.
    pub(crate) cost: i64,
    pub(crate) charge_on: ChargeOn,
    pub(crate) on_client_abort: OnAbort,
    /// The upstream broke off, or this gateway.
    pub(crate) on_server_abort: OnAbort,
    /// Of units that the upstream reports.
    pub(crate) price: Option<Arc<Price>>,
}

/// How far a call came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reached {
    /// The upstream was not asked.
    Nothing,
    /// It was asked.
    Upstream,
    /// It has answered with this status.
    Answer(u16),
    /// It has changed protocols. That is what was asked for, so it is charged however it ends.
    Tunnel,
}

impl Terms {
    /// Of calls that no route claims: nothing is charged.
    pub(crate) const NONE: Self = Self {
        cost: 0,
        charge_on: ChargeOn::Success,
        on_client_abort: OnAbort::Free,
        on_server_abort: OnAbort::Free,
        price: None,
    };

    /// Reads those of a route whose cost, its own or its service's, is known.
    ///
    /// # Errors
    /// They make no sense.
    pub(crate) fn from_wire(route: &mut wire::Route, cost: i64) -> anyhow::Result<Self> {
        anyhow::ensure!(cost >= 0, "a cost is negative");
        let unit_prices = std::mem::take(&mut route.unit_prices);
        let price = if unit_prices.is_empty() {
            None
        } else {
            let unreported = Unreported::parse(&route.unreported)
                .ok_or_else(|| anyhow::anyhow!("`{}` is no policy", route.unreported))?;
            let units = unit_prices.into_iter().map(Into::into).collect();
            // The service's cost may have grown since the route was set.
            let max_cost = route.max_cost.max(cost);
            Some(Arc::new(Price::new(cost, units, max_cost, unreported)?))
        };
        Ok(Self {
            cost,
            charge_on: match route.charge_on.as_str() {
                "always" => ChargeOn::Always,
                _ => ChargeOn::Success,
            },
            on_client_abort: match route.on_client_abort.as_str() {
                "free" => OnAbort::Free,
                "forwarded" => OnAbort::Forwarded,
                _ => OnAbort::Answered,
            },
            on_server_abort: match route.on_server_abort.as_str() {
                "answered" => OnAbort::Answered,
                _ => OnAbort::Free,
            },
            price,
        })
    }

    /// Credits set aside for a call: the most that it can cost.
    pub(crate) fn hold(&self) -> i64 {
        self.price
            .as_ref()
            .map_or(self.cost, |price| price.max_cost())
    }

    /// What a call costs that came so far and ended so, when its upstream reported `units` and its
    /// answer had so many bytes.
    pub(crate) fn charge(
        &self,
        end: Disposition,
        reached: Reached,
        units: &Units,
        bytes: u64,
    ) -> Charge {
        let on_abort = match end {
            Disposition::Completed => OnAbort::Answered,
            Disposition::ClientAborted => self.on_client_abort,
            Disposition::UpstreamAborted | Disposition::GatewayAborted => self.on_server_abort,
            Disposition::Refused | Disposition::UpstreamFailed | Disposition::Unspecified => {
                OnAbort::Free
            }
        };
        let is_due = match reached {
            Reached::Nothing => false,
            Reached::Upstream => on_abort == OnAbort::Forwarded,
            Reached::Answer(status) => on_abort != OnAbort::Free && self.charges(status),
            Reached::Tunnel => true,
        };
        match &self.price {
            _ if !is_due => Charge::default(),
            Some(price) => price.charge(|name| units.count(name), bytes),
            None => Charge {
                cost: self.cost,
                ..Charge::default()
            },
        }
    }

    /// Whether an answer with this status is one that is charged for, be it with nothing.
    pub(crate) fn charges(&self, status: u16) -> bool {
        match self.charge_on {
            ChargeOn::Always => true,
            ChargeOn::Success => (200..300).contains(&status),
        }
    }
}

#[cfg(test)]
mod tests;
