//! Typed ids: a kind and a UUIDv7, on the wire `org_` and 32 hex digits.

use std::{fmt, hash::Hash, marker::PhantomData, str::FromStr};

use uuid::Uuid;

/// What an id names; its prefix on the wire.
pub trait Kind: Copy + Eq + Ord + Hash + Send + Sync + 'static {
    /// Without the underscore, e.g. `org`.
    const PREFIX: &'static str;
}

/// An id of one kind. Ordered by creation, because a UUIDv7 is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id<K: Kind>(Uuid, PhantomData<K>);

/// Why a text is not an id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{given}` is not an id of the form `{prefix}_` and 32 hex digits")]
pub struct IdError {
    given: String,
    prefix: &'static str,
}

impl<K: Kind> Id<K> {
    /// Wraps a UUID that is known to be of this kind.
    #[must_use]
    pub const fn new(uuid: Uuid) -> Self {
        Self(uuid, PhantomData)
    }

    /// The UUID, as tables hold it.
    #[must_use]
    pub const fn uuid(self) -> Uuid {
        self.0
    }

    /// The 16 bytes, as journal records hold it.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// Appends what `Display` shows, without a formatter: for texts made for every call.
    pub fn push_to(&self, text: &mut String) {
        text.push_str(K::PREFIX);
        text.push('_');
        text.push_str(self.0.simple().encode_lower(&mut [0; 32]));
    }

    /// What `Display` shows, in place: `N` is the length of the prefix, and 33.
    ///
    /// # Panics
    /// With another `N`.
    #[must_use]
    pub fn to_ascii<const N: usize>(&self) -> [u8; N] {
        let mut text = [b'_'; N];
        let behind = K::PREFIX.len().saturating_add(1);
        let (prefix, digits) = text.split_at_mut(behind);
        for (to, from) in prefix.iter_mut().zip(K::PREFIX.bytes()) {
            *to = from;
        }
        assert!(digits.len() == 32, "two digits a byte");
        self.0.simple().encode_lower(digits);
        text
    }

    /// Reads the 16 bytes of a record.
    ///
    /// # Errors
    /// Any other length.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, IdError> {
        match Uuid::from_slice(bytes) {
            Ok(uuid) => Ok(Self::new(uuid)),
            Err(_) => Err(IdError {
                given: format!("{} bytes", bytes.len()),
                prefix: K::PREFIX,
            }),
        }
    }
}

impl<K: Kind> fmt::Display for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", K::PREFIX, self.0.simple())
    }
}

impl<K: Kind> fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<K: Kind> FromStr for Id<K> {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        // A quoted value is cut, so that an error message has a bound too.
        let wrong = || IdError {
            given: text.chars().take(48).collect(),
            prefix: K::PREFIX,
        };
        let digits = text
            .strip_prefix(K::PREFIX)
            .and_then(|rest| rest.strip_prefix('_'))
            .filter(|digits| digits.len() == 32)
            .ok_or_else(wrong)?;
        let uuid = Uuid::try_parse(digits).map_err(|_malformed| wrong())?;
        Ok(Self::new(uuid))
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident, $alias:ident, $prefix:literal;)+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $kind;
        impl Kind for $kind {
            const PREFIX: &'static str = $prefix;
        }
        $(#[$doc])*
        pub type $alias = Id<$kind>;
    )+};
}

kinds! {
    /// An organisation.
    Org, OrgId, "org";
    /// A person.
    User, UserId, "usr";
    /// An API key (its record, never the key).
    Key, KeyId, "key";
    /// A service for sale.
    Service, ServiceId, "svc";
    /// A route of a service.
    Route, RouteId, "rte";
    /// One call.
    Request, RequestId, "req";
    /// One process life of a gateway.
    Journal, JournalId, "jrn";
    /// Credits lent to a journal.
    Lease, LeaseId, "lse";
    /// A detected anomaly.
    Anomaly, AnomalyId, "ano";
}
