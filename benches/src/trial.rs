//! One key is changed while it is in use, and watched at each gateway.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use parking_lot::Mutex;
use proto::{
    convert::timestamp,
    keys::v1::{RevokeKeyRequest, UpdateKeyRequest},
};
use runtime::Clock;
use testkit::{eventually, load::Connection};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    population::Key,
    system::{Keys, OTHER_SCOPE},
    traffic::kind,
};

/// Between two calls while the key is accepted: what the figures resolve.
const PROBE_PAUSE: Duration = Duration::from_millis(2);
/// Between two calls once it was refused.
const WATCH_PAUSE: Duration = Duration::from_millis(50);
/// A key is in use when it was accepted so often.
const IN_USE_CALLS: usize = 3;
/// So long it takes at most until a key is in use.
const IN_USE_WITHIN: Duration = Duration::from_secs(30);
/// A change that no gateway has noticed after so long never will be.
const NOTICED_WITHIN: Duration = Duration::from_secs(30);
/// The end of a key's life is moved so close: it must lie in the future when it is read.
const EXPIRES_IN: Duration = Duration::from_secs(2);

/// What happens to a key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Change {
    Revoke,
    Suspend,
    Narrow,
    Expire,
}

impl Change {
    /// Seven of ten keys are revoked.
    pub(crate) fn of(index: usize) -> Self {
        match index % 10 {
            3 => Self::Suspend,
            6 => Self::Narrow,
            9 => Self::Expire,
            _ => Self::Revoke,
        }
    }

    /// In figures.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Revoke => "revoke",
            Self::Suspend => "suspend",
            Self::Narrow => "narrow",
            Self::Expire => "expire",
        }
    }

    /// Makes the change. Since when it holds, and who has not confirmed it.
    async fn make(self, keys: &mut Keys, key: &Key) -> anyhow::Result<(Instant, Vec<String>)> {
        let id = key.id.clone();
        let update = UpdateKeyRequest {
            key_id: id.clone(),
            ..Default::default()
        };
        let start = Instant::now();
        let update = match self {
            Self::Revoke => {
                let reason = "measured".to_owned();
                let request = RevokeKeyRequest { key_id: id, reason };
                let told = keys.revoke_key(request).await?.into_inner();
                return Ok((start, told.pending_gateways));
            }
            Self::Suspend => UpdateKeyRequest {
                active: Some(false),
                ..update
            },
            Self::Narrow => UpdateKeyRequest {
                scopes: vec![OTHER_SCOPE.to_owned()],
                ..update
            },
            Self::Expire => UpdateKeyRequest {
                expires_at: Some(timestamp(Clock::system().now() + EXPIRES_IN)),
                ..update
            },
        };
        keys.update_key(update).await?;
        let holds_from = match self {
            Self::Expire => start + EXPIRES_IN,
            _ => start,
        };
        Ok((holds_from, Vec::new()))
    }
}

/// One call of a watched key, answered in full.
#[derive(Clone, Debug)]
struct Sight {
    sent: Instant,
    answered: Instant,
    /// `None`: accepted.
    refusal: Option<String>,
}

/// What one gateway did with a key.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Noticed {
    /// Seconds from the request for the change to the first refusal after which no call was
    /// accepted. `None`: it was accepted to the end.
    pub(crate) since_request: Option<f64>,
    /// The same from the answer to that request; below zero when it was refused before.
    pub(crate) since_answer: Option<f64>,
    /// Calls sent after that answer and accepted.
    pub(crate) accepted_after_answer: usize,
    /// Calls accepted after a refusal.
    pub(crate) relapses: usize,
    /// How it was refused, and how often.
    pub(crate) refusals: BTreeMap<String, usize>,
}

/// What came of one change.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) change: Change,
    /// By gateway.
    pub(crate) noticed: Vec<Noticed>,
    /// Who had not confirmed when the change was answered.
    pub(crate) pending: Vec<String>,
    /// Calls whose answer broke off.
    pub(crate) broken: usize,
}

/// A key to be changed, and where it is watched.
pub(crate) struct Trial {
    pub(crate) keys: Keys,
    pub(crate) key: Arc<Key>,
    pub(crate) gateways: Vec<String>,
    pub(crate) change: Change,
    /// So long the key is watched after it was refused everywhere.
    pub(crate) watch: Duration,
    /// The change is made once this is so.
    pub(crate) go: CancellationToken,
    /// Told when the key is in use.
    pub(crate) in_use: tokio::sync::mpsc::Sender<()>,
}

/// What is seen at one gateway.
#[derive(Default)]
struct Sights {
    calls: Vec<Sight>,
    broken: usize,
}

impl Trial {
    /// Uses the key, changes it, and goes on using it.
    pub(crate) async fn run(self) -> anyhow::Result<Outcome> {
        let sights: Vec<Mutex<Sights>> = self.gateways.iter().map(|_| Mutex::default()).collect();
        let stop = CancellationToken::new();
        let watches = self.gateways.iter().zip(&sights);
        let watches = watches.map(|(base, sights)| watch(base, &self.key, sights, &stop));
        let watches = join_all(watches);
        let mut keys = self.keys.clone();
        let conduct = async {
            let done = conduct(&self, &mut keys, &sights).await;
            stop.cancel();
            done
        };
        let (_ended, done) = tokio::join!(watches, conduct);
        let (holds_from, answered, pending) = done?;
        let noticed = sights
            .iter()
            .map(|sights| judge(&sights.lock().calls, holds_from, answered));
        Ok(Outcome {
            change: self.change,
            noticed: noticed.collect(),
            pending,
            broken: sights.iter().map(|sights| sights.lock().broken).sum(),
        })
    }
}

/// The change itself, once the key is in use, and the time to watch it afterwards.
async fn conduct(
    trial: &Trial,
    keys: &mut Keys,
    sights: &[Mutex<Sights>],
) -> anyhow::Result<(Instant, Instant, Vec<String>)> {
    eventually(IN_USE_WITHIN, "the key is in use", async || {
        let accepted = |sights: &Sights| {
            let accepted = sights.calls.iter().filter(|it| it.refusal.is_none());
            accepted.count()
        };
        let least = sights.iter().map(|it| accepted(&it.lock())).min();
        let least = least.unwrap_or_default();
        anyhow::ensure!(least >= IN_USE_CALLS, "accepted {least} times");
        Ok(())
    })
    .await?;
    trial.in_use.send(()).await?;
    trial.go.cancelled().await;
    let (holds_from, pending) = trial.change.make(keys, &trial.key).await?;
    let answered = Instant::now();
    let noticed = eventually(NOTICED_WITHIN, "it is refused everywhere", async || {
        let is_refused = |sights: &Sights| {
            let last = sights.calls.last();
            last.is_some_and(|it| it.refusal.is_some() && it.sent >= holds_from)
        };
        match sights.iter().all(|it| is_refused(&it.lock())) {
            true => Ok(()),
            false => Err("it is accepted"),
        }
    });
    if noticed.await.is_ok() {
        tokio::time::sleep(trial.watch).await;
    }
    Ok((holds_from, answered, pending))
}

/// Calls a gateway with the key until told to stop.
async fn watch(base: &str, key: &Key, sights: &Mutex<Sights>, stop: &CancellationToken) {
    let mut connection = Connection::to(base);
    let shot = key.shot();
    while !stop.is_cancelled() {
        let sent = Instant::now();
        let answer = connection.call(&key.text, &shot).await;
        let answered = Instant::now();
        let Ok(answer) = answer else {
            sights.lock().broken += 1;
            tokio::time::sleep(WATCH_PAUSE).await;
            continue;
        };
        let refusal = (!answer.status.is_success()).then(|| kind(&answer));
        let pause = match refusal {
            Some(_) => WATCH_PAUSE,
            None => PROBE_PAUSE,
        };
        sights.lock().calls.push(Sight {
            sent,
            answered,
            refusal,
        });
        tokio::time::sleep(pause).await;
    }
}

/// Says when a gateway had noticed a change that held from some moment on and was answered at
/// another.
fn judge(calls: &[Sight], holds_from: Instant, answered: Instant) -> Noticed {
    let accepted = calls.iter().filter(|call| call.refusal.is_none());
    let last_accepted = accepted.clone().map(|call| call.sent).max();
    let refused = calls.iter().filter(|call| call.refusal.is_some());
    let after = |call: &&Sight| last_accepted.is_none_or(|last| call.sent > last);
    let noticed = refused.clone().find(after);
    let first_refused = refused.clone().map(|call| call.answered).min();
    let mut refusals = BTreeMap::new();
    for call in refused {
        *refusals
            .entry(call.refusal.clone().unwrap_or_default())
            .or_default() += 1;
    }
    let since = |moment: Instant| {
        noticed.map(|call| match call.answered.checked_duration_since(moment) {
            Some(later) => later.as_secs_f64(),
            None => -(moment - call.answered).as_secs_f64(),
        })
    };
    Noticed {
        since_request: since(holds_from),
        since_answer: since(answered),
        accepted_after_answer: accepted
            .clone()
            .filter(|call| call.sent > answered.max(holds_from))
            .count(),
        relapses: accepted
            .filter(|call| first_refused.is_some_and(|first| call.sent > first))
            .count(),
        refusals,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(begin: Instant, sent: u64, refusal: Option<&str>) -> Sight {
        Sight {
            sent: begin + Duration::from_millis(sent),
            answered: begin + Duration::from_millis(sent + 1),
            refusal: refusal.map(str::to_owned),
        }
    }

    #[test]
    fn a_key_that_comes_back_was_not_refused_until_it_stays_so() {
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let mut calls = vec![
            call(begin, 5, None),
            call(begin, 15, Some("401 key_revoked")),
        ];
        let noticed = judge(&calls, at(10), at(20));
        assert_eq!(noticed.since_request, Some(0.006));
        assert_eq!(noticed.since_answer, Some(-0.004));
        assert_eq!((noticed.relapses, noticed.accepted_after_answer), (0, 0));

        calls.push(call(begin, 25, None));
        let noticed = judge(&calls, at(10), at(20));
        assert_eq!(noticed.since_request, None, "it is accepted to the end");
        assert_eq!((noticed.relapses, noticed.accepted_after_answer), (1, 1));

        calls.push(call(begin, 40, Some("401 key_revoked")));
        let noticed = judge(&calls, at(10), at(20));
        assert_eq!(noticed.since_request, Some(0.031));
        assert_eq!(noticed.refusals["401 key_revoked"], 2);
    }
}
