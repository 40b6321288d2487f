//! Who needs a connection of his own, when an upstream has as many as it may have.

use std::{rc::Rc, time::Duration};

use tokio::{io::AsyncReadExt as _, net::TcpListener, task::LocalSet, time::Instant};

use super::rig::{self, Rig};
use crate::{
    catalogue::Upstream,
    pool::{Lent, Need, Unlent, Wire},
};

/// Nothing here takes longer.
const LIMIT: Duration = Duration::from_secs(20);
/// How long calls wait for a connection: shorter than idle ones are kept.
const WAIT: (&str, &str) = ("TOLLGATE_GATEWAY_UPSTREAM_WAIT_MILLIS", "3000");

/// An upstream with two addresses, and its listeners. Nobody has connected to it yet.
async fn behind(rig: &Rig, connections_max: i64) -> (Upstream, [TcpListener; 2]) {
    speaking(rig, "http1", connections_max).await
}

async fn speaking(rig: &Rig, protocol: &str, connections_max: i64) -> (Upstream, [TcpListener; 2]) {
    let bind = async || TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let listeners = [bind().await, bind().await];
    let addresses = listeners.each_ref().map(|it| it.local_addr());
    let addresses = addresses.map(|address| address.expect("bound"));
    rig.offer(addresses[0], |it| {
        it.connections_max = connections_max;
        it.protocol = protocol.to_owned();
    });
    let catalogue = rig.worker.edge.catalogue.load_full();
    let service = catalogue.service("echo").expect("it is offered");
    rig.worker.pool.point(&service.upstream, &addresses);
    (service.upstream.clone(), listeners)
}

/// Gets a connection of hyper's which is idle as soon as it is given back.
async fn lend(rig: &Rig, upstream: &Upstream) -> Lent {
    let lent = rig.worker.pool.lend(upstream, Need::Any).await;
    let mut lent = lent.expect("a connection");
    if let Wire::One(sender) = &mut lent.wire {
        sender.ready().await.expect("it is open");
    }
    lent
}

async fn with_rig(test: impl AsyncFn(&Rig)) {
    let (host, config) = rig::host(&[WAIT]).await;
    let all = LocalSet::new();
    let all = all.run_until(async {
        let rig = Rig::new(&host, &config).await;
        let test = tokio::time::timeout(LIMIT, test(&rig));
        test.await.expect("the test ends");
    });
    all.await;
}

#[tokio::test]
async fn idle_connections_make_room_for_those_who_need_their_own() {
    with_rig(async |rig| {
        for case in ["switch", "new", "elsewhere"] {
            let (upstream, _listeners) = behind(rig, 2).await;
            let burst = [lend(rig, &upstream).await, lend(rig, &upstream).await];
            let target = burst[0].target();
            burst.into_iter().for_each(Lent::give_back);
            let need = match case {
                "switch" => Need::Switch,
                "new" => Need::New,
                _ => Need::Elsewhere(&target),
            };
            // At once: the second one finds somebody in the queue.
            let pool = &rig.worker.pool;
            let both = tokio::join!(pool.lend(&upstream, need), pool.lend(&upstream, need));
            for lent in [both.0, both.1] {
                let lent = lent.expect(case);
                assert!(!lent.reused, "{case}");
                let is_other = !Rc::ptr_eq(&lent.target(), &target);
                assert!(is_other || case != "elsewhere");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn who_waits_for_another_address_is_not_sent_to_the_one_that_failed() {
    with_rig(async |rig| {
        let pool = &rig.worker.pool;
        let (upstream, _listeners) = behind(rig, 1).await;
        let lent = lend(rig, &upstream).await;
        let failed = lent.target();
        let given_back = async { lent.give_back() };
        let (other, ()) = tokio::join!(pool.lend(&upstream, Need::Elsewhere(&failed)), given_back);
        assert!(matches!(other.err(), Some(Unlent::Unreachable(_))));
        let again = lend(rig, &upstream).await;
        assert!(again.reused, "others use it");

        // The same without hyper.
        let (upstream, _listeners) = behind(rig, 1).await;
        let direct = pool.direct(&upstream, LIMIT).await.expect("nobody failed");
        let direct = direct.expect("a connection");
        let failed = Rc::clone(direct.target());
        let given_back = async { direct.give_back() };
        let (other, ()) = tokio::join!(pool.lend(&upstream, Need::Elsewhere(&failed)), given_back);
        assert!(matches!(other.err(), Some(Unlent::Unreachable(_))));
        let again = pool.direct(&upstream, LIMIT).await.expect("nobody failed");
        assert!(again.expect("a connection").reused, "others use it");
    })
    .await;
}

#[tokio::test]
async fn connections_that_nobody_uses_are_closed() {
    with_rig(async |rig| {
        for protocol in ["http1", "h2"] {
            let pool = &rig.worker.pool;
            let (upstream, listeners) = speaking(rig, protocol, 1).await;
            let lent = lend(rig, &upstream).await;
            let [one, other] = &listeners;
            let (mut accepted, _) = tokio::select! {
                accepted = one.accept() => accepted.expect("a connection"),
                accepted = other.accept() => accepted.expect("a connection"),
            };
            let late = Instant::now()
                .checked_add(LIMIT.saturating_mul(10))
                .expect("soon");
            pool.tidy(late);
            lent.give_back();
            let again = lend(rig, &upstream).await;
            assert!(again.reused, "{protocol}: what is in use stays");
            again.give_back();
            pool.tidy(late);
            let mut sent = Vec::new();
            let closed = accepted.read_to_end(&mut sent).await;
            closed.expect("an orderly end");
            assert!(
                !lend(rig, &upstream).await.reused,
                "there is room for a new one"
            );
        }
    })
    .await;
}
