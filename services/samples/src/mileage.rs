//! `GET /distance?from=LATITUDE,LONGITUDE&to=LATITUDE,LONGITUDE`: the great-circle distance.

use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use crate::problem::{Problem, delay, fallbacks};

/// Mean radius of the earth (IUGG R1), in kilometres.
const EARTH_RADIUS_KILOMETRES: f64 = 6371.0088;

pub(crate) fn routes() -> Router {
    fallbacks(Router::new().route("/distance", get(distance)))
}

#[derive(Debug, Deserialize)]
struct DistanceQuery {
    from: Option<String>,
    to: Option<String>,
    delay_ms: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Distance {
    kilometres: f64,
    from: Point,
    to: Point,
}

async fn distance(
    query: Result<Query<DistanceQuery>, QueryRejection>,
) -> Result<Json<Distance>, Problem> {
    let Query(query) =
        query.map_err(|error| Problem::new(StatusCode::BAD_REQUEST, error.body_text()))?;
    let from = Point::parse("from", query.from.as_deref())?;
    let to = Point::parse("to", query.to.as_deref())?;
    tokio::time::sleep(delay(query.delay_ms)?).await;
    // A metre is what four digits after a coordinate's point can carry.
    let kilometres = (haversine(from, to) * 1000.0).round() / 1000.0;
    Ok(Json(Distance {
        kilometres,
        from,
        to,
    }))
}

/// A place on the globe, in degrees.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Point {
    pub(crate) latitude: f64,
    pub(crate) longitude: f64,
}

impl Point {
    /// Reads `latitude,longitude`; an error names the field.
    pub(crate) fn parse(field: &'static str, text: Option<&str>) -> Result<Point, Problem> {
        let Some(text) = text else {
            return Err(Problem::field(
                field,
                "is missing; give latitude,longitude in degrees",
            ));
        };
        let Some((latitude, longitude)) = text.split_once(',') else {
            return Err(Problem::field(
                field,
                "must be latitude,longitude in degrees",
            ));
        };
        let latitude = degrees(latitude, 90.0)
            .ok_or_else(|| Problem::field(field, "latitude must be a number from -90 to 90"))?;
        let longitude = degrees(longitude, 180.0)
            .ok_or_else(|| Problem::field(field, "longitude must be a number from -180 to 180"))?;
        Ok(Point {
            latitude,
            longitude,
        })
    }
}

/// A finite number within `±limit`.
fn degrees(text: &str, limit: f64) -> Option<f64> {
    // A comparison with NaN is false, so NaN is refused here too.
    text.trim()
        .parse::<f64>()
        .ok()
        .filter(|degrees| degrees.abs() <= limit)
}

/// Great-circle distance in kilometres.
pub(crate) fn haversine(from: Point, to: Point) -> f64 {
    let (from_latitude, to_latitude) = (from.latitude.to_radians(), to.latitude.to_radians());
    let half_latitude = (to_latitude - from_latitude) / 2.0;
    let half_longitude = (to.longitude - from.longitude).to_radians() / 2.0;
    let chord = half_latitude.sin().powi(2)
        + from_latitude.cos() * to_latitude.cos() * half_longitude.sin().powi(2);
    // Rounding can push the chord of antipodes over 1, where asin is not a number.
    2.0 * EARTH_RADIUS_KILOMETRES * chord.min(1.0).sqrt().asin()
}
