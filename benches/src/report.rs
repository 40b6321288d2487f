//! Figures, for people and for programs.
#![expect(clippy::print_stdout, reason = "figures are what this program is for")]

use serde_json::{Map, Value, json};

/// Columns of the label.
const LABEL_CHARS: usize = 34;

/// What a measurement found.
pub(crate) struct Report {
    measure: &'static str,
    rows: Vec<(String, String)>,
    figures: Map<String, Value>,
}

impl Report {
    /// An empty one of a measurement.
    pub(crate) fn new(measure: &'static str) -> Self {
        Self {
            measure,
            rows: Vec::new(),
            figures: Map::new(),
        }
    }

    /// A line of the table.
    pub(crate) fn row(&mut self, label: impl Into<String>, text: impl Into<String>) {
        self.rows.push((label.into(), text.into()));
    }

    /// A field of the JSON line.
    pub(crate) fn figure(&mut self, name: impl Into<String>, value: impl Into<Value>) {
        self.figures.insert(name.into(), value.into());
    }

    /// Both: a line of the table, and a field of the same value.
    pub(crate) fn both(&mut self, name: &str, value: impl Into<Value>) {
        let value = value.into();
        self.row(name.replace('_', " "), value.to_string());
        self.figure(name, value);
    }

    /// Prints the table, then one line of JSON.
    pub(crate) fn print(self) {
        for (label, text) in &self.rows {
            println!("{label:LABEL_CHARS$} {text}");
        }
        let mut line = json!({ "measure": self.measure });
        if let Some(fields) = line.as_object_mut() {
            fields.extend(self.figures);
        }
        println!("{line}");
    }
}

/// The share of `sorted` that is at most this value: its quantile, 0 when there is nothing.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let wanted = (share * to_f64(sorted.len())).ceil();
    let found = sorted
        .iter()
        .zip(1_u32..)
        .find(|(_, rank)| f64::from(*rank) >= wanted);
    found.map_or(0.0, |(value, _)| *value)
}

/// The middle one of several runs.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    quantile(&sorted, 0.5)
}

/// Counts of a run are far below what a float cannot tell apart.
pub(crate) fn to_f64(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}

/// A duration in the unit that suits it.
pub(crate) fn in_units(seconds: f64) -> String {
    let (number, unit) = match seconds.abs() {
        size if size < 0.001 => (seconds * 1e6, "µs"),
        _ => (seconds * 1e3, "ms"),
    };
    match number.abs() {
        size if size >= 100.0 || number.fract() == 0.0 => format!("{number:.0} {unit}"),
        size if size >= 1.0 => format!("{number:.1} {unit}"),
        _ => format!("{number:.2} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_never_below_its_share() {
        let sorted = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(quantile(&sorted, 0.5), 2.0);
        assert_eq!(quantile(&sorted, 0.51), 3.0);
        assert_eq!(quantile(&sorted, 0.99), 4.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
    }
}
