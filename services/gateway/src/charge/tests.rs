use types::UnitPrice;

use super::*;

fn fixed(charge_on: ChargeOn, on_client_abort: OnAbort, on_server_abort: OnAbort) -> Terms {
    Terms {
        cost: 3,
        charge_on,
        on_client_abort,
        on_server_abort,
        price: None,
    }
}

#[test]
fn what_an_interrupted_call_costs_is_its_routes_to_say() {
    use Disposition as End;
    use OnAbort::{Answered, Forwarded, Free};
    let ok = Reached::Answer(200);
    let bad = Reached::Answer(500);
    let asked = Reached::Upstream;
    // On client's, on server's; how it ended, how far it came; what it costs.
    let cases = [
        (Answered, Free, End::Completed, ok, 3),
        (Free, Free, End::Completed, ok, 3),
        (Answered, Free, End::Completed, bad, 0),
        (Answered, Free, End::ClientAborted, ok, 3),
        (Answered, Free, End::ClientAborted, bad, 0),
        (Answered, Free, End::ClientAborted, asked, 0),
        (Free, Free, End::ClientAborted, ok, 0),
        (Forwarded, Free, End::ClientAborted, ok, 3),
        (Forwarded, Free, End::ClientAborted, bad, 0),
        (Forwarded, Free, End::ClientAborted, asked, 3),
        (Forwarded, Free, End::ClientAborted, Reached::Nothing, 0),
        (Answered, Free, End::UpstreamAborted, ok, 0),
        (Answered, Free, End::GatewayAborted, ok, 0),
        (Free, Answered, End::UpstreamAborted, ok, 3),
        (Free, Answered, End::GatewayAborted, ok, 3),
        (Free, Answered, End::GatewayAborted, asked, 0),
        (Forwarded, Answered, End::Refused, asked, 0),
        (Forwarded, Answered, End::UpstreamFailed, asked, 0),
    ];
    for (on_client, on_server, end, reached, cost) in cases {
        let terms = fixed(ChargeOn::Success, on_client, on_server);
        let charge = terms.charge(end, reached, &Units::default(), 0);
        assert_eq!(
            charge.cost, cost,
            "{on_client:?} {on_server:?} {end:?} {reached:?}"
        );
        assert_eq!((charge.overrun, charge.estimated), (0, false));
    }
    let always = fixed(ChargeOn::Always, Answered, Free);
    let charge = always.charge(Disposition::Completed, bad, &Units::default(), 0);
    assert_eq!(charge.cost, 3);
    let charge = Terms::NONE.charge(Disposition::Completed, ok, &Units::default(), 0);
    assert_eq!(charge, Charge::default());
}

#[test]
fn a_priced_call_holds_the_most_it_can_cost() {
    let route = |max_cost, cost| wire::Route {
        cost: Some(cost),
        unit_prices: vec![wire::UnitPrice {
            unit: "tokens".to_owned(),
            credits: 1,
            per: 10,
            bytes_per_unit: 2,
            ..wire::UnitPrice::default()
        }],
        max_cost,
        unreported: "estimate".to_owned(),
        ..wire::Route::default()
    };
    let terms = Terms::from_wire(&mut route(20, 2), 2).expect("terms");
    assert_eq!(terms.hold(), 20);
    let charge = |end, units: &Units, bytes| terms.charge(end, Reached::Answer(200), units, bytes);
    let mut units = Units::default();
    // 41 bytes stand for 21 tokens.
    let unknown = charge(Disposition::Completed, &units, 41);
    assert_eq!((unknown.cost, unknown.estimated), (2 + 3, true));
    units.read_fields(&http::HeaderMap::from_iter([(
        http::HeaderName::from_static(crate::units::USAGE),
        http::HeaderValue::from_static("tokens=300"),
    )]));
    let known = charge(Disposition::Completed, &units, 41);
    assert_eq!(
        (known.cost, known.overrun, known.estimated),
        (20, 12, false)
    );
    let gone = charge(Disposition::ClientAborted, &units, 41);
    assert_eq!(gone.cost, 20, "as far as it came");
    // A base that has grown above the route's maximum is what is held.
    let terms = Terms::from_wire(&mut route(20, 30), 30).expect("terms");
    assert_eq!(terms.hold(), 30);
    let mut nonsense = wire::Route {
        max_cost: 0,
        ..route(0, 0)
    };
    assert!(Terms::from_wire(&mut nonsense, 0).is_err());
    let price = UnitPrice::from(route(1, 1).unit_prices.remove(0));
    assert_eq!(price.per, 10);
}
