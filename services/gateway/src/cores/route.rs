//! What a call costs by the terms of its route.

use proto::{events::v1::Disposition, keys::v1 as wire};

use crate::{
    charge::{Reached, Terms},
    units::{USAGE, Units},
};

/// The commercial side of a route.
#[derive(Clone, Debug)]
pub struct Route(Terms);

/// How far a call came.
#[derive(Clone, Debug)]
pub struct Way {
    reached: Reached,
    units: Units,
    bytes: u64,
}

impl Route {
    /// A route whose calls cost so much before their units.
    ///
    /// # Errors
    /// It makes no sense.
    pub fn new(mut route: wire::Route, cost: i64) -> anyhow::Result<Self> {
        Ok(Self(Terms::from_wire(&mut route, cost)?))
    }

    /// The most that a call costs.
    pub fn most(&self) -> i64 {
        self.0.hold()
    }

    /// What a call costs that came so far and ended so.
    pub fn cost(&self, end: Disposition, way: &Way) -> i64 {
        self.0.charge(end, way.reached, &way.units, way.bytes).cost
    }
}

impl Way {
    /// The upstream is asked.
    pub fn forwarded() -> Self {
        Self {
            reached: Reached::Upstream,
            units: Units::default(),
            bytes: 0,
        }
    }

    /// True when it has answered.
    pub fn is_answered(&self) -> bool {
        matches!(self.reached, Reached::Answer(_))
    }

    /// It answers.
    pub fn answered(&mut self, status: u16) {
        self.reached = Reached::Answer(status);
    }

    /// So much more of the answer has left.
    pub fn sent(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// The upstream reports units.
    pub fn reported(&mut self, report: &http::HeaderValue) {
        let name = http::HeaderName::from_static(USAGE);
        let fields = http::HeaderMap::from_iter([(name, report.clone())]);
        self.units.read_fields(&fields);
    }

    /// What was reported.
    pub fn units(&self) -> Vec<(String, u64)> {
        let units = self.units.all().iter().cloned();
        units.map(|unit| (unit.name, unit.count)).collect()
    }
}
