//! Every variable of the service.

use runtime::Variables;

/// What the service needs to know.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Hours of event time for which sightings are kept.
    pub sightings_hours: u32,
}

impl Config {
    /// Reads the variables; problems are collected in `variables`.
    pub fn read(variables: &mut Variables) -> Self {
        Self {
            sightings_hours: variables.number(
                "TOLLGATE_ANOMALY_DETECTOR_SIGHTINGS_HOURS",
                24,
                4..=720,
                "Hours for which a late event still finds its neighbours",
            ),
        }
    }
}
