//! The checks behind the key, cheapest first. A refused call gives back what an earlier check took,
//! and leaves a record of cost 0.

use std::{
    rc::Rc,
    sync::{Arc, atomic::Ordering},
};

use http::{Method, Request};
use hyper::body::Incoming;
use proto::{events::v1::Disposition, keys::v1::KeyUse};
use runtime::trace::Span;
use tokio::time::timeout;
use types::Refusal;

use crate::{
    catalogue::{Catalogue, Route, Service},
    cors::{self, Page},
    domain,
    edge::{Denied, Edge},
    idempotency::{self, Replay},
    keyring::Entry,
    lease::{Account, Hold, Owner, Permits},
    lender::CALL_WAITS_MAX,
    limits::{Limits, QuotaSpent},
    meter::{Facts, PERMITS, Ticket},
    pool::Target,
    refuse::Refused,
};

/// A request that passed every check.
pub(crate) struct Admitted<'a> {
    pub(crate) ticket: Ticket,
    pub(crate) service: &'a Service,
    pub(crate) route: &'a Route,
    /// What is answered instead of the upstream.
    pub(crate) replay: Option<Box<Replay>>,
    /// It was sent there once, and not answered.
    pub(crate) avoid: Option<Rc<Target>>,
}

/// What a call is meant for.
#[derive(Clone, Copy)]
pub(crate) enum Aim<'a> {
    /// What it says: a service, a method, and a path behind the service.
    Said(&'a Catalogue, &'a str, &'a Method, &'a str),
    /// What the catalogue has for that.
    Found(&'a Arc<Service>, &'a Route),
}

/// A request whose key is known.
#[derive(Clone, Copy)]
pub(crate) enum Asked<'a> {
    Any(&'a Request<Incoming>),
    /// Without an idempotency key and not from a page of another origin: nothing is waited for
    /// before it is judged, at this monotonic nanosecond.
    Plain {
        now: u64,
    },
}

impl<'a> Asked<'a> {
    fn page(self) -> Option<&'a Page> {
        match self {
            Self::Any(request) => request.extensions().get(),
            Self::Plain { .. } => None,
        }
    }

    /// Monotonic nanoseconds.
    fn now(self, edge: &Edge) -> u64 {
        match self {
            Self::Any(_) => edge.clock.monotonic_nanos(),
            Self::Plain { now } => now,
        }
    }
}

/// Judges a call, and takes what it needs: a place in the rate, permits, credits.
pub(crate) async fn admit<'a>(
    edge: &Arc<Edge>,
    aim: Aim<'a>,
    asked: Asked<'_>,
    mut ticket: Ticket,
) -> Result<(Admitted<'a>, Limits), Denied> {
    let entry = Arc::clone(ticket.entry());
    let (service, route) = match route(aim, &entry, &mut ticket) {
        Ok(found) => found,
        Err(refusal) => return Err(deny(ticket, refusal.into(), Limits::default())),
    };
    if let Some(refusal) = asked
        .page()
        .and_then(|page| cors::refusal(edge, &entry.org, page))
    {
        return Err(deny(ticket, refusal.into(), Limits::default()));
    }
    let mut limits = Limits::default();
    if let Err(refused) = take_places(edge, &entry, asked, &mut limits) {
        return Err(deny(ticket, refused, limits));
    }
    let replay = match asked {
        Asked::Plain { .. } => None,
        Asked::Any(request) => match idempotency::begin(edge, &ticket, request).await {
            Ok(replay) => replay,
            Err(refused) => {
                // Else it was judged, at the price of a look into the keys.
                if refused.refusal == Refusal::MeteringUnavailable {
                    give_back_places(&entry, limits);
                }
                return Err(deny(ticket, refused, limits));
            }
        },
    };
    // What is given again has taken its credits and permits already.
    if replay.is_none() {
        match take(edge, &entry, asked, route, &ticket.facts().span).await {
            Ok((permits, hold)) => ticket.holds(hold, permits, route),
            Err((refused, spent)) => {
                give_back_places(&entry, limits);
                return Err(deny(ticket, refused, Limits { spent, ..limits }));
            }
        }
    }
    touch(edge, &entry, ticket.facts());
    let admitted = Admitted {
        ticket,
        service,
        route,
        replay,
        avoid: None,
    };
    Ok((admitted, limits))
}

/// Ends the ticket of a call that a check has refused.
fn deny(ticket: Ticket, refused: Refused, limits: Limits) -> Denied {
    ticket.refuse(refused.refusal, Disposition::Refused);
    Denied::counted(refused, limits)
}

/// Notes a key's use, once a minute.
fn touch(edge: &Edge, entry: &Entry, facts: &Facts) {
    let now = facts.at;
    let minute = now.as_second() / 60;
    if entry.touched.swap(minute, Ordering::Relaxed) == minute {
        return;
    }
    let used = KeyUse {
        key_id: entry.key.to_string(),
        at: Some(proto::convert::timestamp(now)),
        ip: facts.client.to_string(),
    };
    if edge.touches.try_send(used).is_err() {
        entry.touched.store(0, Ordering::Relaxed); // the next call says it again
    }
}

fn route<'a>(
    aim: Aim<'a>,
    entry: &Entry,
    ticket: &mut Ticket,
) -> Result<(&'a Service, &'a Route), Refusal> {
    let now = ticket.facts().at.as_microsecond();
    domain::judge_key(entry, now)?;
    let service = match aim {
        Aim::Said(catalogue, name, ..) => catalogue.service(name),
        Aim::Found(service, _) => Some(service),
    };
    let service = service.ok_or(Refusal::UnknownService)?;
    ticket.concerns(service);
    if !service.active {
        return Err(Refusal::ServiceDisabled);
    }
    let route = match aim {
        Aim::Said(_, _, method, rest) => service.route(method, rest),
        Aim::Found(_, route) => Some(route),
    };
    let route = route.ok_or(Refusal::UnknownRoute)?;
    domain::judge(entry, route, ticket.facts().client, now)?;
    Ok((service, route))
}

/// A place in each rate of the key: the one that an anomaly imposes, then its own.
fn take_places(
    edge: &Edge,
    entry: &Entry,
    asked: Asked<'_>,
    limits: &mut Limits,
) -> Result<(), Refused> {
    if entry.throttle.is_none() && entry.rate.is_none() {
        return Ok(());
    }
    let now = asked.now(edge);
    let gateways = edge.keyring.live_gateways();
    if let Some(pace) = &entry.throttle {
        let taken = pace.take(gateways, now);
        limits.throttle = Some(taken.unwrap_or_else(|none| none));
        taken.map_err(|none| Refused::after(Refusal::AbnormalUsageDetected, none.wait))?;
    }
    if let Some(pace) = &entry.rate {
        let taken = pace.take(gateways, now);
        if taken.is_err() {
            give_back_places(entry, *limits);
        }
        limits.rate = Some(taken.unwrap_or_else(|none| none));
        taken.map_err(|none| Refused::after(Refusal::RateLimited, none.wait))?;
    }
    Ok(())
}

/// Gives back what `take_places` has taken.
fn give_back_places(entry: &Entry, limits: Limits) {
    let places = [
        (&entry.throttle, limits.throttle),
        (&entry.rate, limits.rate),
    ];
    for (pace, taken) in places {
        if let (Some(pace), Some(taken)) = (pace, taken) {
            pace.give_back(taken);
        }
    }
}

/// A permit of each quota of the key, and credits.
type Taken = (Permits, Option<Hold>);

/// Permits and credits: from the leases in hand without waiting, else all that is missing is asked
/// for at once. When one is refused, the others go back with their holds; a quota's refusal is told
/// before the wallet's.
async fn take(
    edge: &Arc<Edge>,
    entry: &Entry,
    asked: Asked<'_>,
    route: &Route,
    span: &Span,
) -> Result<Taken, (Refused, Option<QuotaSpent>)> {
    let most = route.terms.hold();
    if let Some(taken) = take_in_hand(edge, entry, most, asked.now(edge)) {
        return Ok(taken);
    }
    let permits = entry
        .quotas
        .iter()
        .map(|account| hold(edge, account, PERMITS, span));
    let credits = async {
        match most {
            0 => Ok(None),
            _ => hold(edge, &entry.account, most, span).await.map(Some),
        }
    };
    let (permits, credits) = futures_util::join!(futures_util::future::join_all(permits), credits);
    let permits = entry
        .quotas
        .iter()
        .zip(permits)
        .map(|(account, permit)| permit.map_err(|refusal| without_permit(edge, account, refusal)))
        .collect::<Result<_, _>>()?;
    Ok((permits, credits.map_err(|refusal| (refusal.into(), None))?))
}

/// `None`: some lease in hand has too little, and nothing was taken.
fn take_in_hand(edge: &Edge, entry: &Entry, most: i64, now: u64) -> Option<Taken> {
    let now = i64::try_from(now / 1_000).unwrap_or(i64::MAX);
    let mut permits = Permits::new();
    for account in &entry.quotas {
        permits.push(edge.lender.hold(account, PERMITS, now)?);
    }
    let credits = match most {
        0 => None,
        _ => Some(edge.lender.hold(&entry.account, most, now)?),
    };
    Some((permits, credits))
}

/// A quota that is used up is so until its period ends.
fn without_permit(
    edge: &Edge,
    account: &Account,
    refusal: Refusal,
) -> (Refused, Option<QuotaSpent>) {
    let (Owner::Quota { kind, .. }, true) = (account.owner, refusal == account.owner.exhausted())
    else {
        return (refusal.into(), None);
    };
    let calls = account.stated().map_or(0, |stated| stated.calls);
    let spent = QuotaSpent::new(kind, calls, edge.clock.now());
    (Refused::after(refusal, spent.wait), Some(spent))
}

/// From the lease in hand without waiting, else by way of the control runtime.
async fn hold(
    edge: &Arc<Edge>,
    account: &Arc<Account>,
    credits: i64,
    span: &Span,
) -> Result<Hold, Refusal> {
    let now = edge.lender.monotonic_micros();
    if let Some(hold) = edge.lender.hold(account, credits, now) {
        return Ok(hold);
    }
    let (lender, account) = (Arc::clone(&edge.lender), Arc::clone(account));
    let asked = async move { lender.hold_or_acquire(&account, credits).await };
    let acquired = edge.control.spawn(span.around(asked));
    match timeout(CALL_WAITS_MAX, acquired).await {
        Ok(Ok(acquired)) => acquired,
        _ => Err(Refusal::CreditsUnavailable),
    }
}
