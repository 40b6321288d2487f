//! Prices of calls whose cost is known only afterwards: `base + Σ units × credits / per`, exact
//! until it is rounded up once, at the end.

/// Most units a route has prices for.
pub const UNIT_PRICES_MAX: usize = 8;
/// Longest name of a unit, bytes.
pub const UNIT_NAME_BYTES_MAX: usize = 32;
/// Longest JSON pointer to a unit, bytes.
const POINTER_BYTES_MAX: usize = 200;
/// Credits a call may cost, a unit price may name, and a call may hold.
pub const CALL_COST_MAX: i64 = 1_000_000;
/// Units that one price may be for.
const PER_MAX: i64 = 1_000_000_000;
/// Bytes that an estimate may take for one unit.
const BYTES_PER_UNIT_MAX: i64 = 1_000_000_000;
/// A call that reports more units of one name is priced as if it had reported so many.
const UNITS_COUNTED_MAX: u64 = 1_000_000_000_000;

/// The least common multiple of what a route's prices are for. Keeps every sum below 2^127:
/// 8 × 10^12 units × 10^6 credits × 10^12.
const COMMON_MAX: i128 = 1_000_000_000_000;

/// The price of one unit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnitPrice {
    /// As upstreams report it, such as `tokens`.
    pub unit: String,
    /// Credits for `per` units, 1 to [`CALL_COST_MAX`].
    pub credits: i64,
    /// Units that cost `credits`, 1 to 10^9.
    pub per: i64,
    /// Where an answer tells the count, an RFC 6901 JSON pointer into a JSON answer or into the
    /// last event of a stream that has it; empty: only the header or trailer `tollgate-usage`.
    pub pointer: String,
    /// Bytes of an answer that stand for one unit in an estimate, 1 to 10^9;
    /// 0: none.
    pub bytes_per_unit: i64,
}

/// What a call costs whose units nobody reported. Never nothing by oversight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unreported {
    /// All that was held for it.
    MaxCost,
    /// The units that the bytes of its answer stand for.
    Estimate,
    /// Only the base.
    Base,
}

/// A price that depends on what an upstream reports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Price {
    base: i64,
    units: Vec<UnitPrice>,
    max_cost: i64,
    unreported: Unreported,
    /// A multiple of each `per`.
    common: i128,
}

/// What a call costs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Charge {
    /// Credits to be paid, at most what was held.
    pub cost: i64,
    /// Credits of the price above what was held: the provider's loss.
    pub overrun: i64,
    /// True when a unit was not reported, and the price assumes something.
    pub estimated: bool,
}

/// A price that makes no sense.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct PriceError {
    /// The field concerned.
    pub field: &'static str,
    /// What is wrong with it, and what is right.
    pub problem: String,
}

fn wrong(field: &'static str, problem: impl Into<String>) -> PriceError {
    let problem = problem.into();
    PriceError { field, problem }
}

impl Unreported {
    /// Reads its name; empty is the default.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "max_cost" => Some(Self::MaxCost),
            "estimate" => Some(Self::Estimate),
            "base" => Some(Self::Base),
            _ => None,
        }
    }

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MaxCost => "max_cost",
            Self::Estimate => "estimate",
            Self::Base => "base",
        }
    }
}

impl UnitPrice {
    fn check(&self) -> Result<(), PriceError> {
        if !is_unit_name(&self.unit) {
            let problem = format!(
                "the unit must be 1 to {UNIT_NAME_BYTES_MAX} of a-z, A-Z, 0-9, `_` and `-`"
            );
            return Err(wrong("unit_prices", problem));
        }
        let unit = &self.unit;
        for (name, number, least, most) in [
            ("credits", self.credits, 1, CALL_COST_MAX),
            ("per", self.per, 1, PER_MAX),
            ("bytes_per_unit", self.bytes_per_unit, 0, BYTES_PER_UNIT_MAX),
        ] {
            if !(least..=most).contains(&number) {
                let problem = format!("{name} of `{unit}` must be from {least} to {most}");
                return Err(wrong("unit_prices", problem));
            }
        }
        let pointer = &self.pointer;
        let is_pointer = pointer.is_empty() || pointer.starts_with('/');
        if !is_pointer || pointer.len() > POINTER_BYTES_MAX || pointer.chars().any(char::is_control)
        {
            let problem = format!(
                "pointer of `{unit}` must be a JSON pointer such as /usage/total_tokens, at most \
                 {POINTER_BYTES_MAX} bytes"
            );
            return Err(wrong("unit_prices", problem));
        }
        Ok(())
    }
}

/// Whether a unit may be called so.
#[must_use]
pub fn is_unit_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    (1..=UNIT_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_plain)
}

impl Price {
    /// A price of `base` credits and so much for units; `max_cost` is held while a call runs.
    ///
    /// # Errors
    /// Names the field that makes no sense.
    pub fn new(
        base: i64,
        units: Vec<UnitPrice>,
        max_cost: i64,
        unreported: Unreported,
    ) -> Result<Self, PriceError> {
        if units.is_empty() || units.len() > UNIT_PRICES_MAX {
            let problem = format!("must be 1 to {UNIT_PRICES_MAX} prices");
            return Err(wrong("unit_prices", problem));
        }
        if !(0..=CALL_COST_MAX).contains(&base) {
            return Err(wrong("cost", format!("must be from 0 to {CALL_COST_MAX}")));
        }
        if !(base.max(1)..=CALL_COST_MAX).contains(&max_cost) {
            let problem = format!(
                "must be from {} to {CALL_COST_MAX} credits: so much is held while a call runs",
                base.max(1)
            );
            return Err(wrong("max_cost", problem));
        }
        if unreported == Unreported::Base && base == 0 {
            let problem = "`base` needs a cost above 0, or calls that report nothing would be free";
            return Err(wrong("unreported", problem));
        }
        let mut common = 1_i128;
        for (at, price) in units.iter().enumerate() {
            price.check()?;
            if units.iter().take(at).any(|other| other.unit == price.unit) {
                return Err(wrong(
                    "unit_prices",
                    format!("`{}` has two prices", price.unit),
                ));
            }
            if unreported == Unreported::Estimate && price.bytes_per_unit == 0 {
                let problem = format!("an estimate needs bytes_per_unit of `{}`", price.unit);
                return Err(wrong("unit_prices", problem));
            }
            common = least_common_multiple(common, i128::from(price.per))
                .filter(|common| *common <= COMMON_MAX)
                .ok_or_else(|| {
                    let problem = "`per` of the units have no common multiple up to 10^12: use \
                                   powers of ten";
                    wrong("unit_prices", problem)
                })?;
        }
        Ok(Self {
            base,
            units,
            max_cost,
            unreported,
            common,
        })
    }

    /// Credits held while a call runs.
    #[must_use]
    pub fn max_cost(&self) -> i64 {
        self.max_cost
    }

    /// The units that have a price.
    #[must_use]
    pub fn units(&self) -> &[UnitPrice] {
        &self.units
    }

    /// True when each unit that has a price is reported.
    pub fn is_known(&self, count: impl Fn(&str) -> Option<u64>) -> bool {
        self.units.iter().all(|price| count(&price.unit).is_some())
    }

    /// What a call costs that reported these units and answered with so many bytes. A unit that is
    /// not reported is missing, even when others are: who means none reports 0.
    pub fn charge(&self, count: impl Fn(&str) -> Option<u64>, bytes: u64) -> Charge {
        let mut sum = 0_i128;
        let mut estimated = false;
        for price in &self.units {
            let units = count(&price.unit).unwrap_or_else(|| {
                estimated = true;
                let each = u64::try_from(price.bytes_per_unit).unwrap_or(0);
                match self.unreported {
                    Unreported::Estimate => bytes.div_ceil(each.max(1)),
                    Unreported::MaxCost | Unreported::Base => 0,
                }
            });
            let units = i128::from(units.min(UNITS_COUNTED_MAX));
            let each = i128::from(price.credits)
                .saturating_mul(self.common.checked_div(i128::from(price.per)).unwrap_or(0));
            sum = sum.saturating_add(units.saturating_mul(each));
        }
        if estimated && self.unreported == Unreported::MaxCost {
            let cost = self.max_cost;
            return Charge {
                cost,
                overrun: 0,
                estimated,
            };
        }
        let rounding = self.common.saturating_sub(1);
        let whole = sum.saturating_add(rounding).checked_div(self.common);
        let price = i64::try_from(whole.unwrap_or(i128::MAX))
            .unwrap_or(i64::MAX)
            .saturating_add(self.base);
        let cost = price.min(self.max_cost);
        Charge {
            cost,
            overrun: price.saturating_sub(cost),
            estimated,
        }
    }
}

fn least_common_multiple(a: i128, b: i128) -> Option<i128> {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x.checked_rem(y)?);
    }
    a.checked_div(x)?.checked_mul(b)
}

#[cfg(test)]
mod tests;
