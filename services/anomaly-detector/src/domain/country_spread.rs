//! A key is used from more than ten countries within an hour; [`windows`](super::windows) says what
//! that means exactly.

use std::collections::BTreeMap;

use serde_json::json;
use types::{KeyId, OrgId};

use super::{
    Call, Finding, HOUR, Micros, Rule, begin,
    windows::{Flag, Seen, WINDOW},
};

/// An ISO 3166 alpha-2 code that stands for a country.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Country([u8; 2]);

impl Country {
    /// Nothing for `ZZ` and for whatever is no code: an unknown place is no further country.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let code: [u8; 2] = text.as_bytes().try_into().ok()?;
        let known = code.iter().all(u8::is_ascii_uppercase) && &code != b"ZZ";
        known.then_some(Self(code))
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("two ASCII letters")
    }
}

impl std::fmt::Debug for Country {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a batch has seen, by the keys of its rows.
pub(crate) type Sightings = BTreeMap<(KeyId, Micros, Country), (OrgId, Seen<Country>)>;

/// Reduces calls to the first and last one per key, country and hour.
pub(crate) fn sightings<'a>(calls: impl IntoIterator<Item = &'a Call>) -> Sightings {
    let mut sightings = Sightings::new();
    for call in calls {
        let Some(country) = call.country else {
            continue;
        };
        let at = call.at;
        let (_, seen) = sightings
            .entry((call.key, begin(at, HOUR), country))
            .or_insert((
                call.org,
                Seen {
                    what: country,
                    first: at,
                    last: at,
                },
            ));
        seen.first = seen.first.min(at);
        seen.last = seen.last.max(at);
    }
    sightings
}

/// What a flag of a key means.
pub(crate) fn finding(org: OrgId, key: KeyId, flag: &Flag<Country>, usual: usize) -> Finding {
    let countries: Vec<&str> = flag.present.iter().map(Country::as_str).collect();
    Finding {
        rule: Rule::CountrySpread,
        identity: format!("{key}@{}", flag.at),
        org: Some(org),
        keys: vec![key],
        summary: format!(
            "The key was used from {} countries within an hour",
            countries.len()
        ),
        evidence: json!({ "countries": countries, "countries_max": usual }),
        from: (flag.at - WINDOW).max(0),
        at: flag.at,
    }
}
