//! `wallet_drain`.

use prost::Message as _;
use proto::events::v1::WalletLow;
use serde_json::json;
use testkit::eventually;

use super::{
    LIVE, TEST,
    bus::fallen,
    look::{calls, of_kind, one},
};
use crate::stack::{Customer, SETTLE_LIMIT, Stack};

pub(super) async fn a_wallet_that_falls_fast_names_who_has_spent_it(stack: &Stack) {
    let customer = stack.customer("Drained", 200);
    let (heavy_id, heavy) = stack.key(&customer, &LIVE);
    let (_, light) = stack.key(&customer, &LIVE);
    let (_, test) = stack.key(&customer, &TEST);
    assert_eq!(calls(stack, &test, 50).await, 50, "of another wallet");
    assert_eq!(calls(stack, &light, 10).await, 10);
    assert_eq!(calls(stack, &heavy, 160).await, 160);
    let lows = eventually(SETTLE_LIMIT, "two shares are reached", async || {
        let lows = fallen(stack, &customer.org).await;
        (lows == [50, 20])
            .then_some(())
            .ok_or_else(|| format!("{lows:?}"))
    });
    lows.await.expect("announced");
    assert!(of_kind(stack, &customer.org, "wallet_drain").is_empty());
    assert_eq!(calls(stack, &heavy, 10).await, 10);
    let anomaly = one(stack, &customer.org, "wallet_drain").await;
    assert_eq!(anomaly["key_ids"], json!([heavy_id]), "{anomaly}");
    assert_eq!(anomaly["details"]["reference"], 200, "{anomaly}");
    // Credits that come in begin anew, and are no crossing.
    let grant = [
        "wallet",
        "grant",
        "--org",
        &customer.org,
        "--credits",
        "100",
    ];
    stack.cli(&[&grant[..], &["--reason", "more"]].concat());
    assert_eq!(calls(stack, &heavy, 60).await, 60);
    let armed = eventually(SETTLE_LIMIT, "half of it is reached again", async || {
        let lows = fallen(stack, &customer.org).await;
        (lows == [50, 20, 10, 50])
            .then_some(())
            .ok_or_else(|| format!("{lows:?}"))
    });
    armed.await.expect("armed again");
    one(stack, &customer.org, "wallet_drain").await;
}

/// The wallet says so, and no call is ever heard of: the journal is lost, or late.
pub(super) async fn a_wallet_falls_without_any_call(stack: &Stack) -> Customer {
    let customer = stack.customer("Uncalled", 0);
    let now = jiff::Timestamp::now().as_microsecond();
    let low = WalletLow {
        org_id: customer.org.clone(),
        percent: 10,
        balance: 50,
        reference: 500,
        reference_at_unix_micros: now,
        at_unix_micros: now,
    };
    let (bus, subject) = (
        stack.jetstream().await,
        format!("wallet.v1.low.{}", customer.org),
    );
    let stream = eventually(SETTLE_LIMIT, "the stream is there", async || {
        let stream = bus.get_stream("WALLET").await;
        stream.map(drop).map_err(|error| error.to_string())
    });
    stream.await.expect("made by who follows it");
    let sent = bus.publish(subject, low.encode_to_vec().into()).await;
    sent.expect("sent").await.expect("stored");
    customer
}

pub(super) async fn what_is_not_known_is_not_waited_for_longer(stack: &Stack, uncalled: &Customer) {
    let anomaly = one(stack, &uncalled.org, "wallet_drain").await;
    assert_eq!(anomaly["key_ids"], json!([]), "{anomaly}");
    assert_eq!(anomaly["details"]["balance"], 50, "{anomaly}");
}
