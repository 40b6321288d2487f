//! Calls with many keys at a given pace, each answer judged.
//!
//! Open loop: a call is due at its time whether or not earlier ones were answered, and its latency
//! counts from then on; a system that stalls cannot hide it by being asked less.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use testkit::load::{Answer, Connection, Shot};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use types::{Environment, KEY_RANDOM_BYTES, NewKey};

use crate::{
    population::{Key, Popularity, Population, Standing},
    system::PATH,
};

/// Wrong keys that clients keep on using.
const WRONG_KEYS: usize = 10;
/// Between attempts to connect to a gateway that is down.
const RECONNECT: Duration = Duration::from_millis(20);

/// Calls to come.
pub(crate) struct Traffic {
    /// Base addresses; each call goes to any of them.
    pub(crate) gateways: Vec<String>,
    pub(crate) population: Arc<Population>,
    pub(crate) popularity: Popularity,
    /// Share of calls with keys that do not exist. Half of them repeat a few.
    pub(crate) unknown_share: f64,
    /// Connections to each gateway; the most calls in flight.
    pub(crate) workers: usize,
    /// Calls due in a second.
    pub(crate) calls_per_second: f64,
    /// The same seed makes the same calls.
    pub(crate) seed: u64,
}

/// What the clients saw.
#[derive(Default)]
pub(crate) struct Seen {
    /// Complete answers by status and refusal.
    pub(crate) answers: BTreeMap<String, u64>,
    /// Calls whose answer broke off or never came.
    pub(crate) broken: u64,
    /// Attempts that found no gateway; the call went to the next one.
    pub(crate) unreachable: u64,
    /// Good keys that were refused, by how.
    pub(crate) refused_wrongly: BTreeMap<String, u64>,
    /// Calls accepted with a key that does not exist or was revoked before the call.
    pub(crate) accepted_wrongly: u64,
    /// Seconds until the answer, of calls that were accepted.
    pub(crate) seconds: Vec<f64>,
    /// The same of each key's first call at a gateway.
    pub(crate) first_seconds: Vec<f64>,
}

impl Seen {
    /// All complete answers.
    pub(crate) fn calls(&self) -> u64 {
        self.answers.values().sum()
    }

    fn note(&mut self, call: &Call<'_>, standing_before: Standing, answer: &Answer) {
        let accepted = answer.status.is_success();
        let kind = kind(answer);
        *self.answers.entry(kind.clone()).or_default() += 1;
        if accepted {
            let seconds = call.due.elapsed().as_secs_f64();
            self.seconds.push(seconds);
            if call.is_first {
                self.first_seconds.push(seconds);
            }
        }
        let standing_after = call.key.map_or(Standing::Ended, Key::standing);
        match judge(standing_before, standing_after, accepted) {
            Verdict::Right => {}
            Verdict::RefusedWrongly => *self.refused_wrongly.entry(kind).or_default() += 1,
            Verdict::AcceptedWrongly => self.accepted_wrongly += 1,
        }
    }
}

/// Status, and the code of a refusal.
pub(crate) fn kind(answer: &Answer) -> String {
    let status = answer.status.as_u16();
    match answer.json()["code"].as_str() {
        Some(code) if status >= 400 => format!("{status} {code}"),
        _ => status.to_string(),
    }
}

#[derive(PartialEq, Eq, Debug)]
enum Verdict {
    Right,
    RefusedWrongly,
    AcceptedWrongly,
}

/// Judges an answer by what was known of the key before the call and after it.
fn judge(before: Standing, after: Standing, accepted: bool) -> Verdict {
    match (before, after, accepted) {
        (Standing::Ended, _, true) => Verdict::AcceptedWrongly,
        (Standing::Good, Standing::Good, false) => Verdict::RefusedWrongly,
        _ => Verdict::Right,
    }
}

struct Call<'a> {
    due: Instant,
    gateway: usize,
    /// Nothing for a key that does not exist.
    key: Option<&'a Key>,
    text: String,
    shot: Shot,
    is_first: bool,
}

impl Traffic {
    /// Calls until told to stop.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) -> Seen {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let mut workers = JoinSet::new();
        let begin = Instant::now();
        for index in 0..self.workers {
            let (traffic, seen, stop) = (Arc::clone(&self), Arc::clone(&seen), stop.clone());
            workers.spawn(async move { traffic.work(index, begin, &seen, &stop).await });
        }
        while workers.join_next().await.is_some() {}
        std::mem::take(&mut *seen.lock())
    }

    async fn work(
        &self,
        index: usize,
        begin: Instant,
        seen: &Mutex<Seen>,
        stop: &CancellationToken,
    ) {
        let (index, workers) = (count(index), count(self.workers.max(1)));
        let mut random = StdRng::seed_from_u64(self.seed.wrapping_add(u64::from(index)));
        let mut connections: Vec<Connection> = self
            .gateways
            .iter()
            .map(|base| Connection::to(base))
            .collect();
        let interval = Duration::from_secs_f64(f64::from(workers) / self.calls_per_second.max(0.1));
        let mut due = begin + interval * index / workers;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = sleep_until(due) => {}
            }
            let mut call = self.next(due, &mut random);
            while connections[call.gateway].connect().await.is_err() {
                seen.lock().unreachable += 1;
                call.gateway = (call.gateway + 1) % connections.len();
                tokio::time::sleep(RECONNECT).await;
                if stop.is_cancelled() {
                    return;
                }
            }
            let before = call.key.map_or(Standing::Ended, Key::standing);
            call.is_first = call.key.is_some_and(|key| key.is_first_use(call.gateway));
            let answer = connections[call.gateway].call(&call.text, &call.shot).await;
            match answer {
                Ok(answer) => seen.lock().note(&call, before, &answer),
                Err(_broken_off) => seen.lock().broken += 1,
            }
            due += interval;
        }
    }

    fn next(&self, due: Instant, random: &mut StdRng) -> Call<'_> {
        let gateway = random.random_range(0..self.gateways.len());
        if random.random::<f64>() < self.unknown_share {
            let from = format!("198.19.{}.{}", gateway, random.random_range(1..200));
            return Call {
                due,
                gateway,
                key: None,
                text: self.wrong_key(random),
                shot: Shot::get(PATH).with("x-forwarded-for", &from),
                is_first: false,
            };
        }
        let key = &self.population.keys[self.popularity.pick(random.random())];
        Call {
            due,
            gateway,
            key: Some(key),
            text: key.text.clone(),
            shot: key.shot(),
            is_first: false,
        }
    }

    /// Well made, but nobody's: its form gives nothing away.
    fn wrong_key(&self, random: &mut StdRng) -> String {
        let mut bytes = [0; KEY_RANDOM_BYTES];
        if random.random::<f64>() < 0.5 {
            let repeated = random.random_range(0..WRONG_KEYS);
            let seed = self.seed.wrapping_add(u64::from(count(repeated)));
            StdRng::seed_from_u64(seed).fill(&mut bytes);
        } else {
            random.fill(&mut bytes);
        }
        NewKey::from_random(Environment::Production, &bytes)
            .reveal()
            .to_owned()
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_crosses_a_change_is_right_either_way() {
        use Standing::{Changing, Ended, Good};
        for accepted in [true, false] {
            assert_eq!(judge(Good, Changing, accepted), Verdict::Right);
            assert_eq!(judge(Changing, Ended, accepted), Verdict::Right);
        }
        assert_eq!(judge(Good, Good, false), Verdict::RefusedWrongly);
        assert_eq!(judge(Ended, Ended, true), Verdict::AcceptedWrongly);
        assert_eq!(judge(Ended, Ended, false), Verdict::Right);
    }
}
