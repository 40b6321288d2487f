use hyper::StatusCode;
use serde_json::json;

use super::{get, send, upstreams};
use crate::mileage::{Point, haversine};

#[test]
fn distances_follow_the_great_circle() {
    let point = |latitude, longitude| Point {
        latitude,
        longitude,
    };
    let close = |kilometres: f64, expected: f64| {
        assert!(
            (kilometres - expected).abs() < 0.01,
            "{kilometres} is not {expected}"
        );
    };
    close(haversine(point(0.0, 0.0), point(0.0, 0.0)), 0.0);
    // A quarter and a half of the circumference.
    close(haversine(point(0.0, 0.0), point(90.0, 0.0)), 10_007.557);
    close(haversine(point(0.0, -90.0), point(0.0, 90.0)), 20_015.115);
    // The short way goes over the date line.
    close(haversine(point(0.0, 179.5), point(0.0, -179.5)), 111.195);
}

#[tokio::test]
async fn a_distance_is_answered_or_the_wrong_field_named() {
    let (running, _stop) = upstreams(None).await;
    let reply = send(
        running.mileage,
        get("/distance?from=48.85,2.35&to=43.29,5.37"),
    )
    .await;
    let body = reply.json();
    let kilometres = body["kilometres"].as_f64().expect("a number");
    assert!((kilometres - 660.544).abs() < 0.001, "{kilometres}");
    assert_eq!(
        body["from"],
        json!({ "latitude": 48.85, "longitude": 2.35 })
    );
    for (query, field) in [
        ("to=43.29,5.37", "from"),
        ("from=48.85,2.35&to=43.29", "to"),
        ("from=91,0&to=0,0", "from"),
        ("from=0,0&to=0,180.1", "to"),
        ("from=NaN,0&to=0,0", "from"),
    ] {
        let reply = send(running.mileage, get(&format!("/distance?{query}"))).await;
        assert_eq!(reply.status, StatusCode::UNPROCESSABLE_ENTITY, "{query}");
        assert_eq!(reply.json()["field"], field, "{query}");
    }
}
