//! What processes say of themselves at `/metrics.json`.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde_json::Value;
use testkit::load::{Connection, Shot};

/// One number, with what it is of.
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// All numbers of a process at one moment.
pub(crate) struct Samples(Vec<Sample>);

impl Samples {
    /// Reads them from the address for operators.
    pub(crate) async fn read(ops: &str) -> anyhow::Result<Self> {
        let answer = Connection::to(ops)
            .call("", &Shot::get("/metrics.json"))
            .await
            .with_context(|| format!("no metrics at {ops}"))?;
        anyhow::ensure!(answer.status == 200, "{ops} answers {}", answer.status);
        Ok(Self::parse(&answer.json()))
    }

    fn parse(json: &Value) -> Self {
        let fields = json.as_object().into_iter().flatten();
        let samples = fields.filter_map(|(text, value)| sample(text, value.as_f64()?));
        Self(samples.collect())
    }

    fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.0.iter().filter(move |sample| sample.name == name)
    }

    /// The largest value of a name.
    pub(crate) fn largest(&self, name: &str) -> Option<f64> {
        self.named(name)
            .map(|sample| sample.value)
            .max_by(f64::total_cmp)
    }

    /// A counter by one of its labels.
    pub(crate) fn by_label(&self, name: &str, label: &str) -> BTreeMap<String, f64> {
        let mut found = BTreeMap::new();
        for sample in self.named(name) {
            if let Some(of) = sample.labels.get(label) {
                *found.entry(of.clone()).or_default() += sample.value;
            }
        }
        found
    }

    /// A histogram by one of its labels; what has no such label is of "".
    pub(crate) fn histograms(&self, name: &str, label: &str) -> BTreeMap<String, Histogram> {
        let mut found: BTreeMap<String, Histogram> = BTreeMap::new();
        for sample in self.named(&format!("{name}_bucket")) {
            let Some(bound) = sample.labels.get("le") else {
                continue;
            };
            let of = sample.labels.get(label).cloned().unwrap_or_default();
            let bound = bound.parse().unwrap_or(f64::INFINITY);
            found.entry(of).or_default().add(bound, sample.value);
        }
        found
    }
}

/// `name{label="value",…}`; our label values contain neither quotes nor commas.
fn sample(text: &str, value: f64) -> Option<Sample> {
    let (name, rest) = text.split_once('{').unwrap_or((text, ""));
    let mut labels = BTreeMap::new();
    for pair in rest
        .trim_end_matches('}')
        .split(',')
        .filter(|it| !it.is_empty())
    {
        let (label, value) = pair.split_once('=')?;
        labels.insert(label.to_owned(), value.trim_matches('"').to_owned());
    }
    Some(Sample {
        name: name.to_owned(),
        labels,
        value,
    })
}

/// How many were at most so much, by upper bound in the order of the bounds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Histogram(Vec<(f64, f64)>);

impl Histogram {
    fn add(&mut self, bound: f64, count: f64) {
        match self.0.iter_mut().find(|(known, _)| *known == bound) {
            Some((_, known)) => *known += count,
            None => {
                self.0.push((bound, count));
                self.0.sort_by(|a, b| a.0.total_cmp(&b.0));
            }
        }
    }

    /// Both together: several processes count the same.
    pub(crate) fn plus(mut self, other: &Self) -> Self {
        for (bound, count) in &other.0 {
            self.add(*bound, *count);
        }
        self
    }

    /// What came in after an earlier reading.
    pub(crate) fn since(mut self, before: &Self) -> Self {
        for (bound, count) in &before.0 {
            self.add(*bound, -count);
        }
        self
    }

    /// How many there were.
    pub(crate) fn count(&self) -> f64 {
        self.0.last().map_or(0.0, |(_, count)| *count)
    }

    /// The smallest bound that holds this share of all: the quantile is no larger. Nothing when
    /// nothing came in.
    pub(crate) fn at_most(&self, share: f64) -> Option<f64> {
        let total = self.count();
        if total <= 0.0 {
            return None;
        }
        let found = self.0.iter().find(|(_, count)| *count >= total * share);
        found.map(|(bound, _)| *bound)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_histogram_is_read_by_label_and_only_what_came_in_between_counts() {
        let read = |fast: u32, slow: u32| {
            Samples::parse(&json!({
                "look_seconds_bucket{le=\"0.001\",source=\"local\"}": fast,
                "look_seconds_bucket{le=\"0.01\",source=\"local\"}": fast + slow,
                "look_seconds_bucket{le=\"+Inf\",source=\"local\"}": fast + slow,
                "look_seconds_count{source=\"local\"}": fast + slow,
            }))
        };
        let of = |samples: &Samples| samples.histograms("look_seconds", "source")["local"].clone();
        let (before, after) = (of(&read(90, 10)), of(&read(94, 16)));
        assert_eq!(after.at_most(0.5), Some(0.001));
        let between = after.since(&before);
        assert_eq!(between.count(), 10.0);
        assert_eq!(between.at_most(0.4), Some(0.001));
        assert_eq!(between.at_most(0.41), Some(0.01));
        assert_eq!(Histogram::default().at_most(0.5), None);
    }
}
