//! Whether the time of a refusal tells what a wrong key is close to.
//!
//! Three classes, interleaved in random order on one connection: keys that were never issued, keys
//! one character beside an issued one, and beside a revoked one, each with its right checksum. Each
//! is presented twice: at first it is looked up, then it is known to be unknown. Between any two
//! classes Welch's t is given, over all calls and without the slowest hundredth of either pass, and
//! |t| < 4.5 means that none can be told from the other.
//!
//! The gateways' limits for unknown keys have to be lifted for it: see `run.sh`.

use std::collections::HashSet;

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::Args;
use proto::keys::v1::RevokeKeyRequest;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use serde_json::json;
use tokio::time::Instant;
use types::{Environment, KEY_RANDOM_BYTES, NewKey};

use crate::{
    population::Population,
    report::{Report, in_units, quantile, to_f64},
    system::{PATH, System},
    wire::{Brief, Wire},
};

/// Where the calls come from.
const ADDRESS: &str = "198.19.255.1";
/// Characters of a key before its random part.
const PREFIX_CHARS: usize = 8;
/// Characters that hold nothing but random bits; six each.
const RANDOM_CHARS: usize = KEY_RANDOM_BYTES * 8 / 6;
/// Below it nothing can be told.
const T_MAX: f64 = 4.5;
/// The slowest of a hundred are left out of the second t: they are interrupts, not keys.
const KEPT: f64 = 0.99;

/// How many calls.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Keys of each class.
    #[arg(long, default_value_t = 100_000)]
    keys: usize,
    /// Issued keys, and as many revoked ones, whose neighbours are tried.
    #[arg(long, default_value_t = 200)]
    neighbours: usize,
    /// The same seed makes the same keys.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

const CLASSES: [&str; 3] = ["never issued", "beside issued", "beside revoked"];
const PASSES: [&str; 2] = ["looked up", "known to be unknown"];

/// Seconds of a pass by class.
type Seconds = [Vec<f64>; 3];

pub(crate) async fn run(system: &System, arguments: Arguments) -> anyhow::Result<Report> {
    let known = known_keys(system, arguments.neighbours).await?;
    let gateway = system.gateways()?.into_iter().next();
    let mut wire = Wire::to(&gateway.context("no gateway")?.url).await?;
    let mut random = StdRng::seed_from_u64(arguments.seed);
    let mut passes: [Seconds; 2] = Default::default();
    let mut one = None;
    // A key that is tried twice may be known to be unknown by then, and be told by that.
    let mut tried = HashSet::new();
    for number in 0..arguments.keys {
        let mut keys = Vec::with_capacity(CLASSES.len());
        for (class, known) in known.iter().enumerate() {
            let known = known.get(number % known.len().max(1));
            let mut draw = || match known {
                None => random.random(),
                Some(known) => beside(*known, &mut random),
            };
            let mut bytes = draw();
            while !tried.insert(bytes) {
                bytes = draw();
            }
            keys.push((class, NewKey::from_random(Environment::Production, &bytes)));
        }
        keys.shuffle(&mut random);
        for pass in &mut passes {
            for (class, key) in &keys {
                wire.push(PATH, key.reveal(), ADDRESS);
                let began = Instant::now();
                wire.flush().await?;
                let answer = wire.next().await?;
                pass[*class].push(began.elapsed().as_secs_f64());
                let same = one.get_or_insert_with(|| answer.clone());
                check(&answer, same)?;
            }
        }
    }
    let mut report = Report::new("timing");
    report.both("keys_of_each_class", arguments.keys);
    for (pass, seconds) in PASSES.iter().zip(passes) {
        describe(&mut report, pass, seconds);
    }
    Ok(report)
}

fn check(answer: &Brief, first: &Brief) -> anyhow::Result<()> {
    anyhow::ensure!(
        answer.status == 401,
        "answered {}: start the gateways with TOLLGATE_GATEWAY_UNKNOWN_KEYS_PER_MINUTE_MAX and \
         TOLLGATE_GATEWAY_UNKNOWN_LOOKUPS_PER_SECOND_MAX at 1000000",
        answer.status
    );
    anyhow::ensure!(answer == first, "not one answer: {answer:?}, {first:?}");
    Ok(())
}

/// The random parts of no keys, of issued and of revoked ones.
async fn known_keys(
    system: &System,
    count: usize,
) -> anyhow::Result<[Vec<[u8; KEY_RANDOM_BYTES]>; 3]> {
    let population = Population::make(system, 1, 2 * count).await?;
    let gateways: Vec<String> = system.gateways()?.into_iter().map(|it| it.url).collect();
    population.visit(&gateways).await?;
    let (issued, revoked) = population.keys.split_at(count);
    let mut keys = system.keys()?;
    for key in revoked {
        let request = RevokeKeyRequest {
            key_id: key.id.clone(),
            reason: "measurement".to_owned(),
        };
        keys.revoke_key(request).await?;
    }
    let parts = |keys: &[crate::population::Key]| {
        let parts = keys.iter().map(|key| random_part(&key.text));
        parts.collect::<anyhow::Result<Vec<_>>>()
    };
    Ok([Vec::new(), parts(issued)?, parts(revoked)?])
}

fn random_part(key: &str) -> anyhow::Result<[u8; KEY_RANDOM_BYTES]> {
    let body = key.get(PREFIX_CHARS..).context("no key")?;
    let bytes = URL_SAFE_NO_PAD.decode(body)?;
    let random = bytes.get(..KEY_RANDOM_BYTES).context("no key")?;
    Ok(random.try_into()?)
}

/// The same with another character at one place.
fn beside(mut random_part: [u8; KEY_RANDOM_BYTES], random: &mut StdRng) -> [u8; KEY_RANDOM_BYTES] {
    let (place, change) = (
        random.random_range(0..RANDOM_CHARS),
        random.random_range(1..64_u8),
    );
    for bit in 0..6 {
        let at = place * 6 + bit;
        let is_flipped = change >> (5 - bit) & 1;
        random_part[at / 8] ^= is_flipped << (7 - at % 8);
    }
    random_part
}

fn describe(report: &mut Report, pass: &str, mut seconds: Seconds) {
    for (class, seconds) in CLASSES.iter().zip(&mut seconds) {
        let mut sorted = seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |share| quantile(&sorted, share);
        report.row(
            format!("{pass}, {class}"),
            format!(
                "mean {}, P50 {}, P99 {}",
                in_units(moments(seconds).0),
                in_units(at(0.5)),
                in_units(at(0.99))
            ),
        );
        report.figure(
            format!("{pass}, {class}"),
            json!({ "mean": moments(seconds).0, "p50": at(0.5), "p99": at(0.99) }),
        );
    }
    let mut all = seconds.concat();
    all.sort_by(f64::total_cmp);
    let limit = quantile(&all, KEPT);
    let kept = seconds.each_ref().map(|seconds| {
        let kept = seconds.iter().copied().filter(|it| *it <= limit);
        kept.collect::<Vec<f64>>()
    });
    for (one, other) in [(0, 1), (0, 2), (1, 2)] {
        let pair = format!("{pass}, {} against {}", CLASSES[one], CLASSES[other]);
        let raw = welch(&seconds[one], &seconds[other]);
        let cropped = welch(&kept[one], &kept[other]);
        let verdict = match raw.abs().max(cropped.abs()) < T_MAX {
            true => "cannot be told",
            false => "CAN BE TOLD",
        };
        report.row(
            format!("t {pair}"),
            format!("{raw:.2}, {cropped:.2} without the slowest: {verdict}"),
        );
        report.figure(format!("t {pair}"), json!({ "all": raw, "kept": cropped }));
    }
}

/// Mean, and variance of a sample.
fn moments(values: &[f64]) -> (f64, f64) {
    let count = to_f64(values.len());
    let mean = values.iter().sum::<f64>() / count;
    let squares = values.iter().map(|value| (value - mean).powi(2));
    (mean, squares.sum::<f64>() / (count - 1.0))
}

/// Welch's t of two samples.
fn welch(one: &[f64], other: &[f64]) -> f64 {
    let ((mean, variance), (other_mean, other_variance)) = (moments(one), moments(other));
    let error = variance / to_f64(one.len()) + other_variance / to_f64(other.len());
    (mean - other_mean) / error.sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_neighbour_differs_in_one_character_and_its_checksum() {
        let mut random = StdRng::seed_from_u64(1);
        for _ in 0..1_000 {
            let part: [u8; KEY_RANDOM_BYTES] = random.random();
            let text = |part| {
                let key = NewKey::from_random(Environment::Production, &part);
                key.reveal().to_owned()
            };
            let (one, other) = (text(part), text(beside(part, &mut random)));
            assert_eq!(random_part(&one).expect("a key"), part);
            let chars = || {
                one.chars()
                    .zip(other.chars())
                    .take(PREFIX_CHARS + RANDOM_CHARS)
            };
            assert_eq!(chars().filter(|(a, b)| a != b).count(), 1, "{one} {other}");
        }
    }

    #[test]
    fn t_is_welchs() {
        // Worked by hand: means 2 and 4, variances 1 and 4, three and five of them.
        let t = welch(&[1.0, 2.0, 3.0], &[2.0, 2.0, 4.0, 6.0, 6.0]);
        let expected = -2.0 / (1.0_f64 / 3.0 + 4.0 / 5.0).sqrt();
        assert!((t - expected).abs() < 1e-12, "{t}");
    }
}
