//! Who asks.

/// Whom a cell is about. The first four are members of the organisation that is asked about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Who {
    Owner,
    Admin,
    Developer,
    Billing,
    /// Owner of another organisation.
    Stranger,
    /// A user id that nobody has.
    Unknown,
    /// The operator token and `operator`.
    Operator,
    /// The operator token alone.
    Unnamed,
    /// The operator token and an actor that is none.
    Malformed,
    /// The token of services.
    Services,
    Nobody,
    Garbage,
    /// A session of the owner that has come to its end.
    Expired,
    /// One that nobody used for too long.
    Idle,
    /// One from before the last change of the password.
    Outdated,
}

impl Who {
    pub(super) const AT_ROUTES: [Self; 11] = [
        Self::Owner,
        Self::Admin,
        Self::Developer,
        Self::Billing,
        Self::Stranger,
        Self::Operator,
        Self::Nobody,
        Self::Garbage,
        Self::Expired,
        Self::Idle,
        Self::Outdated,
    ];
    pub(super) const AT_RPCS: [Self; 12] = [
        Self::Owner,
        Self::Admin,
        Self::Developer,
        Self::Billing,
        Self::Stranger,
        Self::Unknown,
        Self::Operator,
        Self::Unnamed,
        Self::Malformed,
        Self::Services,
        Self::Nobody,
        Self::Garbage,
    ];

    /// Is refused for want of an identity, before anything is looked at.
    pub(super) fn is_nobody(self) -> bool {
        let nobodies = [Self::Nobody, Self::Garbage, Self::Malformed];
        let ended = [Self::Expired, Self::Idle, Self::Outdated];
        nobodies.contains(&self) || ended.contains(&self)
    }

    /// The role of another member.
    pub(super) fn another(self) -> &'static str {
        match self {
            Self::Developer => "admin",
            _ => "developer",
        }
    }

    pub(super) fn role(self) -> Option<&'static str> {
        Some(match self {
            Self::Owner => "owner",
            Self::Admin => "admin",
            Self::Developer => "developer",
            Self::Billing => "billing",
            _ => return None,
        })
    }
}
