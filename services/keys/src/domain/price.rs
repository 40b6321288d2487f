//! What a route's calls cost beside a fixed number of credits, and when they are charged that did
//! not come to their end.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use types::{Price, PriceError, UnitPrice, Unreported};

use super::catalogue::word;
use crate::error::{Error, Result};

/// Prices of units, and what interrupted calls cost.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Pricing {
    pub(crate) unit_prices: Vec<UnitPrice>,
    /// 0 without unit prices.
    pub(crate) max_cost: i64,
    pub(crate) unreported: String,
    pub(crate) on_client_abort: String,
    pub(crate) on_server_abort: String,
}

impl Pricing {
    /// Checks a wish for a route of this fixed cost; empty and 0 stand for the default.
    pub(crate) fn check(mut self, cost: Option<i64>) -> Result<Self> {
        self.on_client_abort = word(
            "on_client_abort",
            &self.on_client_abort,
            &["answered", "free", "forwarded"],
        )?;
        self.on_server_abort = word(
            "on_server_abort",
            &self.on_server_abort,
            &["free", "answered"],
        )?;
        self.unreported = word(
            "unreported",
            &self.unreported,
            &["max_cost", "estimate", "base"],
        )?;
        let unreported = Unreported::parse(&self.unreported).unwrap_or(Unreported::MaxCost);
        if self.unit_prices.is_empty() {
            for (field, is_set) in [
                ("max_cost", self.max_cost != 0),
                ("unreported", unreported != Unreported::MaxCost),
            ] {
                if is_set {
                    let problem = "is for routes with unit_prices: name a price, or leave it out";
                    return Err(Error::invalid(field, problem));
                }
            }
            return Ok(self);
        }
        for price in &mut self.unit_prices {
            if price.per == 0 {
                price.per = 1;
            }
        }
        // A route without a cost of its own has the service's, which may change; it is no floor.
        Price::new(
            cost.unwrap_or(0),
            self.unit_prices.clone(),
            self.max_cost,
            unreported,
        )
        .map_err(|PriceError { field, problem }| Error::Invalid { field, problem })?;
        Ok(self)
    }
}

/// A price as the table and the audit log hold it.
#[derive(Serialize, Deserialize)]
struct Stored {
    unit: String,
    credits: i64,
    per: i64,
    pointer: String,
    bytes_per_unit: i64,
}

/// Prices as JSON.
pub(crate) fn to_json(prices: &[UnitPrice]) -> Value {
    let stored = prices.iter().map(|price| Stored {
        unit: price.unit.clone(),
        credits: price.credits,
        per: price.per,
        pointer: price.pointer.clone(),
        bytes_per_unit: price.bytes_per_unit,
    });
    serde_json::to_value(stored.collect::<Vec<_>>()).unwrap_or_default()
}

/// Prices from JSON.
///
/// # Errors
/// It is none of ours.
pub(crate) fn from_json(value: Value) -> serde_json::Result<Vec<UnitPrice>> {
    let stored: Vec<Stored> = serde_json::from_value(value)?;
    let prices = stored.into_iter().map(|it| UnitPrice {
        unit: it.unit,
        credits: it.credits,
        per: it.per,
        pointer: it.pointer,
        bytes_per_unit: it.bytes_per_unit,
    });
    Ok(prices.collect())
}
