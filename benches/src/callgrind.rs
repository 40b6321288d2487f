//! What callgrind wrote: instructions by function, its own and with all it called.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::Context as _;

/// Instructions of one thread between two dumps.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Profile {
    /// All of them.
    pub(crate) total: u64,
    /// By name of the function.
    pub(crate) functions: BTreeMap<String, Cost>,
    /// By name of the function: who called it, and what that took.
    callers: BTreeMap<String, BTreeMap<String, u64>>,
}

/// Of one function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    /// In it.
    pub(crate) own: u64,
    /// In it and in what it called.
    pub(crate) inclusive: u64,
}

impl Profile {
    /// Reads a file.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self::parse(&text))
    }

    /// A function is named once, with a number, and called by that number afterwards. Lines that
    /// begin with a number, `+`, `-` or `*` are costs; the one behind `calls=` is what was called.
    fn parse(text: &str) -> Self {
        let mut names: BTreeMap<&str, &str> = BTreeMap::new();
        let mut found = Self::default();
        let (mut current, mut called, mut is_called) = ("", "", false);
        for line in text.lines() {
            if let Some(value) = line.strip_prefix("fn=") {
                current = name(value, &mut names);
            } else if let Some(value) = line.strip_prefix("cfn=") {
                called = name(value, &mut names);
            } else if line.starts_with("calls=") {
                is_called = true;
            } else if line.starts_with(|sign: char| sign.is_ascii_digit() || "+-*".contains(sign)) {
                let cost = line
                    .split_whitespace()
                    .nth(1)
                    .and_then(|it| it.parse().ok());
                let cost: u64 = cost.unwrap_or(0);
                let function = found.functions.entry(current.to_owned()).or_default();
                function.inclusive += cost;
                if std::mem::take(&mut is_called) {
                    let callers = found.callers.entry(called.to_owned()).or_default();
                    *callers.entry(current.to_owned()).or_default() += cost;
                } else {
                    function.own += cost;
                    found.total += cost;
                }
            }
        }
        found
    }

    /// With all they called, of the functions whose names contain this; the outermost one counts,
    /// as the others are within it.
    pub(crate) fn inclusive(&self, part: &str) -> Option<u64> {
        let named = self
            .functions
            .iter()
            .filter(|(name, _)| name.contains(part));
        named.map(|(_, cost)| cost.inclusive).max()
    }

    /// The most expensive functions, by this.
    pub(crate) fn top(&self, by: fn(&Cost) -> u64) -> Vec<(&str, u64)> {
        let functions = self.functions.iter();
        let mut all: Vec<(&str, u64)> = functions.map(|it| (it.0.as_str(), by(it.1))).collect();
        all.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
        all
    }

    /// Who calls a function, most expensive first.
    pub(crate) fn callers(&self, function: &str) -> Vec<(&str, u64)> {
        let callers = self.callers.get(function).into_iter().flatten();
        let mut all: Vec<(&str, u64)> =
            callers.map(|(name, cost)| (name.as_str(), *cost)).collect();
        all.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
        all
    }
}

/// `(12) name` defines a name, `(12)` repeats it. A recursive function has a name with `'2`.
fn name<'a>(value: &'a str, names: &mut BTreeMap<&'a str, &'a str>) -> &'a str {
    let Some((number, text)) = value.split_once(')') else {
        return value;
    };
    let text = text.trim();
    if !text.is_empty() {
        names.insert(number, text);
    }
    names.get(number).copied().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_costs_add_up_and_called_ones_belong_to_the_caller_too() {
        let text = "events: Ir\nfn=(1) outer\n10 100\ncfn=(2) inner\ncalls=3 0\n11 60\n+2 5\n\
                    fn=(2)\n0 60\ntotals: 165\n";
        let found = Profile::parse(text);
        assert_eq!(found.total, 165);
        let outer = Cost {
            own: 105,
            inclusive: 165,
        };
        assert_eq!(found.functions["outer"], outer);
        assert_eq!(found.inclusive("inn"), Some(60));
        assert_eq!(found.callers("inner"), [("outer", 60)]);
        assert_eq!(found.top(|cost| cost.own)[0], ("outer", 105));
    }
}
