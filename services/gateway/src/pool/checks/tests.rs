use std::{cell::Cell, net::SocketAddr, rc::Rc, sync::Arc};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::LocalSet,
    time::Instant,
};
use types::Networks;

use super::{super::health::FAILURES_MAX, BAD_MAX, Checks, Found, UPKEEP_PERIOD, look};
use crate::{
    catalogue::{Protocol, Upstream},
    pool::{Connector, Fault, site::Site},
    tests::rig,
};

fn upstream(port: u16) -> Upstream {
    Upstream {
        tls: false,
        host: "two.example".to_owned(),
        port,
        protocol: Protocol::Http1,
        connections_max: 10,
        connect_timeout: std::time::Duration::from_secs(1),
        health_path: Some("/well?deep=1".into()),
    }
}

/// Answers with this status, and counts the right questions.
fn serve(listener: TcpListener, status: Rc<Cell<u16>>) -> Rc<Cell<u32>> {
    let asked = Rc::<Cell<u32>>::default();
    let count = Rc::clone(&asked);
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.is_ok() {}
            let head = String::from_utf8_lossy(&head).to_lowercase();
            let is_right = head.starts_with("get /well?deep=1 http/1.1\r\n")
                && head.contains("\r\nhost: two.example:");
            count.set(count.get().saturating_add(u32::from(is_right)));
            let answer = format!("HTTP/1.1 {} x\r\ncontent-length: 0\r\n\r\n", status.get());
            drop(stream.write_all(answer.as_bytes()).await);
        }
    });
    asked
}

#[test]
fn one_thread_asks_for_all_and_one_bad_answer_says_nothing() {
    let (checks, key) = (
        Checks::default(),
        (upstream(1), SocketAddr::from(([1, 1, 1, 1], 1))),
    );
    let now = Instant::now();
    assert!(checks.is_due(&key, now));
    assert!(!checks.is_due(&key, now), "another thread asks already");
    assert_eq!(checks.found(&key), Found::Unknown);
    for bad in 1..=BAD_MAX {
        checks.note(&key, false);
        let found = if bad < BAD_MAX {
            Found::Unknown
        } else {
            Found::Down
        };
        assert_eq!(checks.found(&key), found);
    }
    checks.note(&key, true);
    assert_eq!(checks.found(&key), Found::Well);
    assert!(checks.is_due(&key, now + UPKEEP_PERIOD));
}

#[tokio::test]
async fn an_address_that_is_not_well_is_left_alone_while_another_one_is() {
    let (host, config) = rig::host(&[]).await;
    LocalSet::new()
        .run_until(async {
            let rig = rig::Rig::new(&host, &config).await;
            let one = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let port = one.local_addr().expect("bound").port();
            let two = TcpListener::bind(("127.0.0.2", port))
                .await
                .expect("free there too");
            let statuses = [Rc::new(Cell::new(204)), Rc::new(Cell::new(200))];
            let asked = [
                serve(one, Rc::clone(&statuses[0])),
                serve(two, Rc::clone(&statuses[1])),
            ];
            let connector = rig.connector(&config);
            let site = Site::new(upstream(port), 10);
            let found = [1, 2].map(|last| SocketAddr::from(([127, 0, 0, last], port)));
            let networks = Networks::parse("127.0.0.0/8").expect("a network");
            site.targets
                .take(found.into_iter(), &networks)
                .expect("allowed");
            let used = || {
                site.targets
                    .all()
                    .iter()
                    .map(|it| it.is_used())
                    .collect::<Vec<_>>()
            };
            let again = async |times: u32| {
                for _ in 0..times {
                    forget(&connector);
                    look(&connector, &site).await;
                }
            };
            again(1).await;
            look(&connector, &site).await; // not due again
            assert_eq!(asked.each_ref().map(|count| count.get()), [1, 1]);
            assert_eq!(used(), [true, true]);
            statuses[1].set(500);
            again(BAD_MAX - 1).await;
            assert_eq!(used(), [true, true], "one bad answer says nothing");
            again(1).await;
            assert_eq!(used(), [true, false]);
            for _ in 0..10 {
                let chosen = site.targets.choose(&[], Instant::now()).expect("one");
                assert_eq!(chosen.target.address, found[0]);
            }
            statuses[0].set(404);
            again(BAD_MAX).await;
            assert_eq!(used(), [true, true], "none is well: all are used");
            statuses[1].set(302);
            again(1).await;
            assert_eq!(
                used(),
                [false, true],
                "the first good answer brings it back"
            );
            // Also from a rest that calls have caused.
            statuses[0].set(200);
            let second = site.targets.all().pop().expect("two");
            for _ in 0..FAILURES_MAX {
                second.failed(Fault::Connect, Instant::now());
            }
            assert!(!second.is_used());
            again(1).await;
            assert_eq!(used(), [true, true]);
        })
        .await;
}

/// As if a period had passed since everybody was asked.
fn forget(connector: &Connector) {
    for check in connector.checks.0.lock().values_mut() {
        check.asked = check
            .asked
            .checked_sub(UPKEEP_PERIOD)
            .unwrap_or(check.asked);
    }
}

#[tokio::test]
async fn an_upstream_without_a_health_path_is_not_asked() {
    let (host, config) = rig::host(&[]).await;
    let rig = rig::Rig::new(&host, &config).await;
    let connector = rig.connector(&config);
    let site = Site::new(
        Upstream {
            health_path: None,
            ..upstream(1)
        },
        10,
    );
    let networks = Arc::new(Networks::parse("127.0.0.0/8").expect("a network"));
    let found = [SocketAddr::from(([127, 0, 0, 1], 1))];
    site.targets
        .take(found.into_iter(), &networks)
        .expect("allowed");
    look(&connector, &site).await;
    assert!(connector.checks.0.lock().is_empty());
}
