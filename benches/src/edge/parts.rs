//! The parts of the comparison, one after the other.

use serde_json::json;

use super::{
    Arguments, Findings, Part, account,
    contenders::Contender,
    lanes::{self, Figure, Lane},
    load::{Load, Pace},
    requests::{self, Ask},
    setting::Setting,
};
use crate::report::{in_units, to_f64};

/// Connections where there are few.
const FEW: usize = 64;
/// Connections where there are many.
const MANY: usize = 1_000;
/// Keys of the comparisons that are not about their number. Each request with a large body has its
/// own copy of it.
const KEYS: usize = 100;
/// A flood's valid calls, of what the gateway can carry.
const VALID_SHARE: f64 = 0.05;
/// For each of them so many invalid ones.
const FLOOD: f64 = 10.0;
/// What everybody is compared with.
const REFERENCE: &str = "nginx";
const BARE: &str = "bare";
const TOLLGATE: &str = "Tollgate";

/// Runs them.
pub(super) fn all(
    setting: &mut Setting,
    arguments: &Arguments,
    found: &mut Findings,
) -> anyhow::Result<()> {
    let mut saturated = None;
    if arguments.has(Part::Closed) {
        saturated = Some(closed(setting, arguments, found)?);
    }
    if arguments.has(Part::Keys) {
        keys(setting, arguments, found)?;
    }
    if arguments.has(Part::Open) || arguments.has(Part::Flood) {
        let rate = match saturated {
            Some(rate) => rate,
            None => saturation(setting, arguments)?,
        };
        if arguments.has(Part::Open) {
            open(setting, arguments, found, rate)?;
        }
        if arguments.has(Part::Flood) {
            flood(setting, arguments, found, rate)?;
        }
    }
    if arguments.has(Part::Idle) {
        idle(setting, arguments, found)?;
    }
    for contender in &setting.contenders {
        contender.check()?;
    }
    Ok(())
}

/// Measures lanes in turn, as it is asked for.
fn measure(setting: &Setting, lanes: &mut [Lane], arguments: &Arguments) -> anyhow::Result<()> {
    setting.step_back()?;
    let slice = arguments.slice();
    lanes::interleave(lanes, arguments.rounds, slice, arguments.other_core)
}

/// All connections always busy. Returns what Tollgate carries.
fn closed(setting: &Setting, arguments: &Arguments, found: &mut Findings) -> anyhow::Result<f64> {
    let kinds = [
        ("300 B", FEW, Ask::Small),
        ("300 B", MANY, Ask::Small),
        ("64 KiB", FEW, Ask::Large),
        ("64 KiB up", FEW, Ask::Upload),
    ];
    let mut saturated = 0.0;
    for (index, (what, connections, ask)) in kinds.into_iter().enumerate() {
        let requests = requests::with_keys(ask, setting.some_keys(KEYS));
        let mut lanes = Vec::new();
        for contender in &setting.contenders {
            lanes.push(setting.lane(contender, connections, &requests, Pace::Closed)?);
        }
        measure(setting, &mut lanes, arguments)?;
        let title = format!("{what}, {connections} connections");
        found.section.say(&format!("**Closed loop, {title}**"));
        table(&lanes, &title, found);
        if index == 0 {
            saturated = lane(&lanes, TOLLGATE)?.middle(|it| it.rate);
        }
    }
    Ok(saturated)
}

fn lane<'a>(lanes: &'a [Lane], name: &str) -> anyhow::Result<&'a Lane> {
    let found = lanes.iter().find(|lane| lane.name == name);
    found.ok_or_else(|| anyhow::anyhow!("{name} is not measured"))
}

/// One line for each lane of a closed loop.
fn table(lanes: &[Lane], title: &str, found: &mut Findings) {
    let columns = [
        "proxy",
        "calls/s",
        "ratio to nginx",
        "ratio to bare",
        "CPU µs a call",
        "its ratio to bare",
        "of its core",
        "control threads",
        "load + upstream",
        "switches a call",
        "not 200",
    ];
    let reference = lane(lanes, REFERENCE).ok();
    let bare = lane(lanes, BARE).ok();
    let mut rows = Vec::new();
    for lane in lanes {
        let ratio = |to: Option<&Lane>, figure: fn(&Figure) -> f64| match to {
            Some(to) => lane.ratio(to, figure).ratio(),
            None => "–".to_owned(),
        };
        let percent = |share: f64| format!("{:.0} %", share * 100.0);
        rows.push(vec![
            lane.name.clone(),
            format!("{:.0}", lane.middle(|it| it.rate)),
            ratio(reference, |it| it.rate),
            ratio(bare, |it| it.rate),
            format!("{:.1}", lane.middle(|it| it.proxy_seconds) * 1e6),
            ratio(bare, |it| it.proxy_seconds),
            percent(lane.middle(|it| it.proxy_share)),
            percent(lane.middle(|it| it.control_share)),
            format!(
                "{} of {}",
                percent(lane.middle(|it| it.load_share)),
                percent(lane.middle(|it| it.other_busy))
            ),
            format!("{:.2}", lane.middle(|it| it.switches)),
            format!("{:.0}", lane.bad()),
        ]);
        let middle = |to: Option<&Lane>| to.map(|to| lane.ratio(to, |it| it.rate).json());
        let figures = json!({
            "calls_per_second": lane.middle(|it| it.rate),
            "to_nginx": middle(reference),
            "to_bare": middle(bare),
            "cpu_seconds_a_call": lane.middle(|it| it.proxy_seconds),
        });
        found.figure(title, lane, figures);
    }
    found.section.table(&columns, &rows);
}

/// More and more keys. The bare form has the same requests: what the load itself loses with many
/// shows there.
fn keys(setting: &Setting, arguments: &Arguments, found: &mut Findings) -> anyhow::Result<()> {
    let all = setting.some_keys(usize::MAX).len();
    let mut steps: Vec<usize> = arguments.key_steps.clone();
    steps.retain(|count| (2..=all).contains(count));
    let mut lanes = Vec::new();
    for count in [1].into_iter().chain(steps) {
        let keys = setting.some_keys(count);
        let requests = requests::with_keys(Ask::Small, keys);
        for contender in two(setting) {
            let mut lane = setting.lane(contender, FEW, &requests, Pace::Closed)?;
            lane.name = format!("{}, keys: {}", contender.name, keys.len());
            lanes.push(lane);
        }
    }
    measure(setting, &mut lanes, arguments)?;
    found.section.say(&format!(
        "**More keys, 300 B, 64 connections.** {all} keys of {} organisations have called once \
         before; each in memory takes {:.0} bytes of the gateway.",
        arguments.organisations, setting.acquainted.bytes_each,
    ));
    found
        .report
        .figure("bytes a key", setting.acquainted.bytes_each);
    let columns = [
        "proxy",
        "calls/s",
        "ratio to 1 key",
        "CPU µs a call",
        "not 200",
    ];
    let mut rows = Vec::new();
    for (index, lane) in lanes.iter().enumerate() {
        let one = &lanes[index % 2];
        rows.push(vec![
            lane.name.clone(),
            format!("{:.0}", lane.middle(|it| it.rate)),
            lane.ratio(one, |it| it.rate).ratio(),
            format!("{:.1}", lane.middle(|it| it.proxy_seconds) * 1e6),
            format!("{:.0}", lane.bad()),
        ]);
        found.figure("keys", lane, lane.ratio(one, |it| it.rate).json());
    }
    found.section.table(&columns, &rows);
    Ok(())
}

/// Tollgate and its bare form.
fn two(setting: &Setting) -> impl Iterator<Item = &Contender> {
    let names = [TOLLGATE, BARE];
    setting
        .contenders
        .iter()
        .filter(move |it| names.contains(&it.name))
}

/// What Tollgate carries, when nothing else has told.
fn saturation(setting: &Setting, arguments: &Arguments) -> anyhow::Result<f64> {
    let requests = requests::with_keys(Ask::Small, setting.some_keys(KEYS));
    let mut lanes = vec![setting.lane(setting.tollgate(), FEW, &requests, Pace::Closed)?];
    measure(setting, &mut lanes, arguments)?;
    Ok(lanes[0].middle(|it| it.rate))
}

/// Calls at times drawn beforehand, at shares of what Tollgate carries.
fn open(
    setting: &Setting,
    arguments: &Arguments,
    found: &mut Findings,
    saturated: f64,
) -> anyhow::Result<()> {
    let requests = requests::with_keys(Ask::Small, setting.some_keys(KEYS));
    let names = [TOLLGATE, BARE, REFERENCE];
    let contenders = setting
        .contenders
        .iter()
        .filter(|it| names.contains(&it.name));
    let contenders: Vec<&Contender> = contenders.collect();
    let mut rows = Vec::new();
    let mut steady = 0.0;
    let mut overload = String::new();
    for (share, waits) in [(0.5, true), (0.8, true), (2.0, false)] {
        let pace = Pace::Open {
            per_second: saturated * share,
            waits,
        };
        let mut lanes = Vec::new();
        for contender in &contenders {
            lanes.push(setting.lane(contender, MANY, &requests, pace)?);
        }
        // As long again: there are fewer calls, and it is their slowest that counts.
        let mut slice = arguments.slice();
        slice.measured *= 2;
        lanes::interleave(&mut lanes, arguments.rounds, slice, arguments.other_core)?;
        let bare = lane(&lanes, BARE)?;
        for lane in &lanes {
            rows.push(latencies(lane, bare, saturated, share));
            let latency = [0, 1, 2].map(|at| lane.middle(|it| it.latency[at]));
            found.figure(&format!("open {share}"), lane, json!(latency));
        }
        let p99 = lane(&lanes, TOLLGATE)?.middle(|it| it.latency[1]);
        if waits {
            steady = p99;
        } else {
            overload = format!(
                "At twice the saturating load Tollgate's P99 is {:.1} × the one at 80 %.",
                p99 / steady
            );
            found.report.figure("overload", p99 / steady);
        }
    }
    found.section.say(&format!(
        "**Open loop, 300 B, shares of {saturated:.0} calls/s, {MANY} connections.** Latency from \
         the time at which a call was due. At 2.0 a call that finds every connection busy is given \
         up."
    ));
    let columns = [
        "load",
        "proxy",
        "answered 200/s",
        "refused/s",
        "given up/s",
        "P50",
        "P99",
        "P99.9",
        "P50 added to bare",
        "P99 added",
        "P99.9 added",
    ];
    found.section.table(&columns, &rows);
    found.section.say(&overload);
    Ok(())
}

fn latencies(lane: &Lane, bare: &Lane, saturated: f64, share: f64) -> Vec<String> {
    let mut row = vec![
        format!("{share:.1} ({:.0}/s)", saturated * share),
        lane.name.clone(),
        format!("{:.0}", lane.middle(|it| it.rate)),
        format!("{:.0}", lane.middle(|it| it.refused)),
        format!("{:.0}", lane.middle(|it| it.given_up)),
    ];
    for at in 0..3 {
        row.push(in_units(lane.middle(|it| it.latency[at])));
    }
    for at in 0..3 {
        let added = lane.beside(bare, |mine, its| mine.latency[at] - its.latency[at]);
        row.push(in_units(added.median));
    }
    row
}

/// Valid calls alone, and beside ten times as many invalid ones.
fn flood(
    setting: &Setting,
    arguments: &Arguments,
    found: &mut Findings,
    saturated: f64,
) -> anyhow::Result<()> {
    let known = setting.some_keys(KEYS);
    let valid = saturated * VALID_SHARE;
    let pace = |per_second| Pace::Open {
        per_second,
        waits: true,
    };
    let tollgate = setting.tollgate();
    let alone = requests::with_keys(Ask::Small, known);
    let flooded = requests::flood(known, 7);
    let mut lanes = vec![
        setting.lane(tollgate, FEW, &alone, pace(valid))?,
        setting.lane(tollgate, FEW, &flooded, pace(valid * (1.0 + FLOOD)))?,
    ];
    lanes[0].name = "valid calls alone".to_owned();
    lanes[1].name = "the same in a flood".to_owned();
    measure(setting, &mut lanes, arguments)?;
    let columns = [
        "load",
        "answered 200/s",
        "ratio",
        "refused/s",
        "P50",
        "P99",
        "of its core",
    ];
    let mut rows = Vec::new();
    for lane in &lanes {
        rows.push(vec![
            lane.name.clone(),
            format!("{:.0}", lane.middle(|it| it.rate)),
            lane.ratio(&lanes[0], |it| it.rate).ratio(),
            format!("{:.0}", lane.middle(|it| it.refused)),
            in_units(lane.middle(|it| it.latency[0])),
            in_units(lane.middle(|it| it.latency[1])),
            format!("{:.0} %", lane.middle(|it| it.proxy_share) * 100.0),
        ]);
    }
    let ratio = lanes[1].ratio(&lanes[0], |it| it.rate);
    found.report.figure("flood", ratio.json());
    found.section.say(&format!(
        "**Invalid keys.** Valid calls at {valid:.0} a second, alone and beside {FLOOD:.0} times \
         as many with keys that nobody issued."
    ));
    found.section.table(&columns, &rows);
    Ok(())
}

/// Memory of connections that have called once and are kept.
fn idle(setting: &Setting, arguments: &Arguments, found: &mut Findings) -> anyhow::Result<()> {
    let requests = requests::with_keys(Ask::Small, setting.some_keys(1));
    let mut rows = Vec::new();
    for contender in &setting.contenders {
        // Whatever is made once is there before.
        Load::open(contender.port, FEW, requests.clone(), 0)?.once_on_each()?;
        let before = account::memory(contender.process)?;
        let mut load = Load::open(contender.port, arguments.idle, requests.clone(), 0)?;
        let outcome = load.once_on_each()?;
        let after = account::memory(contender.process)?;
        let each = (after - before) / to_f64(arguments.idle) / 1024.0;
        let note = match outcome.bad() {
            0 => String::new(),
            bad => format!("{bad} calls were not answered 200"),
        };
        rows.push(vec![contender.name.to_owned(), format!("{each:.1}"), note]);
        found
            .report
            .figure(format!("idle KiB/{}", contender.name), each);
    }
    let text = format!(
        "**Idle connections.** Private memory of the process for each of {} connections that have \
         called once.",
        arguments.idle
    );
    found.section.say(&text);
    found.section.table(&["proxy", "KiB each", ""], &rows);
    Ok(())
}
