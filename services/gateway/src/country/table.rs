use anyhow::{Result, bail, ensure};

use super::Country;

/// An address as a number, of either family.
pub(super) trait Address: Copy + Ord + Default {
    /// The address after this one, unless this is the last.
    fn next(self) -> Option<Self>;
}

impl Address for u32 {
    fn next(self) -> Option<u32> {
        self.checked_add(1)
    }
}

impl Address for u128 {
    fn next(self) -> Option<u128> {
        self.checked_add(1)
    }
}

/// A sorted map from address to country, written once in ascending order.
///
/// `countries[i]` holds from `starts[i]` up to the next start. Gaps are entries too (`ZZ`), so an
/// entry needs no end, neighbours of one country are one entry, and the search touches nothing
/// but the dense `starts`.
pub(super) struct Table<A> {
    starts: Vec<A>,
    countries: Vec<Country>,
    /// The first address above everything pushed; none when the last address there is was pushed.
    free: Option<A>,
}

impl<A: Address> Default for Table<A> {
    fn default() -> Table<A> {
        Table {
            starts: Vec::new(),
            countries: Vec::new(),
            free: Some(A::default()),
        }
    }
}

impl<A: Address> Table<A> {
    /// Adds the addresses from `low` to `high`, both included.
    pub(super) fn push(&mut self, low: A, high: A, country: Country) -> Result<()> {
        ensure!(low <= high, "the range ends before it begins");
        let Some(free) = self.free.filter(|free| *free <= low) else {
            bail!("the range overlaps an earlier one or is out of order");
        };
        if free < low {
            self.start(free, Country::UNKNOWN);
        }
        self.start(low, country);
        self.free = high.next();
        Ok(())
    }

    /// Ends the last range.
    pub(super) fn finish(&mut self) {
        if let Some(free) = self.free.take() {
            self.start(free, Country::UNKNOWN);
        }
        self.starts.shrink_to_fit();
        self.countries.shrink_to_fit();
    }

    pub(super) fn get(&self, address: A) -> Country {
        let after = self.starts.partition_point(|start| *start <= address);
        let entry = after.checked_sub(1).and_then(|at| self.countries.get(at));
        entry.copied().unwrap_or(Country::UNKNOWN)
    }

    pub(super) fn knows_a_country(&self) -> bool {
        self.countries
            .iter()
            .any(|country| *country != Country::UNKNOWN)
    }

    fn start(&mut self, at: A, country: Country) {
        if self.countries.last() != Some(&country) {
            self.starts.push(at);
            self.countries.push(country);
        }
    }
}
