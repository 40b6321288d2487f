//! When a wallet is running dry: shares of what it held after credits came in last.

use types::{Credits, Id};

use super::Live;

/// Shares that are announced, in percent, in the order a balance falls through them.
const PERCENTS: [u8; 3] = [50, 20, 10];
/// No share has been announced.
const FULL: u8 = 100;

/// How far a live wallet has fallen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Level {
    /// The balance after credits came in last; zero when none ever did.
    pub(crate) reference: Credits,
    /// The lowest share announced since, in percent.
    pub(crate) percent: u8,
}

/// A share that a wallet has fallen to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fallen {
    pub(crate) wallet: Id<Live>,
    pub(crate) percent: u8,
    pub(crate) reference: Credits,
    /// After the debit that crossed the threshold.
    pub(crate) balance: Credits,
}

impl Level {
    /// Where a wallet begins anew when credits come in.
    pub(crate) fn after(balance: Credits) -> Self {
        Self {
            reference: balance,
            percent: FULL,
        }
    }

    /// Takes note of a lower balance; the shares it has fallen to, each told once.
    pub(crate) fn fall(&mut self, balance: Credits) -> Vec<u8> {
        let reference = i128::from(self.reference.get());
        let present = i128::from(balance.get()).saturating_mul(100);
        let crossed = |percent: &u8| {
            *percent < self.percent && present <= reference.saturating_mul(i128::from(*percent))
        };
        // Who never had anything cannot run dry.
        let fallen: Vec<u8> = match reference {
            0 => Vec::new(),
            _ => PERCENTS.into_iter().filter(crossed).collect(),
        };
        if let Some(lowest) = fallen.last() {
            self.percent = *lowest;
        }
        fallen
    }
}
