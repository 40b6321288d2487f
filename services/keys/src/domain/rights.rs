//! Who may do what: the permission matrix of the portal, for keys and members.

use types::{Environment, Role, UserId};

use crate::error::{Error, Result};

/// Whose rows a statement may see.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OrgScope {
    /// An operator's: all.
    Every,
    /// A user's: those of the organisations the user is a member of.
    MemberOf(UserId),
}

impl OrgScope {
    /// The member to look for; `None` for everything.
    pub(crate) fn member(self) -> Option<uuid::Uuid> {
        match self {
            Self::Every => None,
            Self::MemberOf(user) => Some(user.uuid()),
        }
    }
}

/// Something a member may want to do. `own` means that it concerns the member's own key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    ViewOrganisation,
    ViewKeys,
    CreateKey { environment: Environment, own: bool },
    ChangeKey { environment: Environment, own: bool },
    RestoreKey,
    RevokeKey { environment: Environment, own: bool },
    AddMember { role: Role },
    RemoveMember { role: Role },
    Leave,
}

impl Action {
    /// As in "the role billing may not …".
    fn words(self) -> &'static str {
        match self {
            Self::ViewOrganisation => "view the organisation",
            Self::ViewKeys => "view keys",
            Self::CreateKey {
                environment: Environment::Production,
                ..
            } => "create live keys",
            Self::CreateKey { own: false, .. } => "create test keys for others",
            Self::CreateKey { .. } => "create test keys",
            Self::ChangeKey { .. } => "change this key",
            Self::RestoreKey => "restore suspended keys",
            Self::RevokeKey { .. } => "revoke this key",
            Self::AddMember { .. } => "add members of this role",
            Self::RemoveMember { .. } => "remove members of this role",
            Self::Leave => "leave",
        }
    }
}

/// The matrix. Anything not granted is denied.
pub(crate) fn permits(role: Role, action: Action) -> bool {
    let manages = matches!(role, Role::Owner | Role::Admin);
    let own_test = |environment, own| own && environment == Environment::Test;
    let develops = manages || role == Role::Developer;
    match action {
        Action::ViewOrganisation | Action::Leave => true,
        Action::ViewKeys => develops,
        // A test key spends its creator's test credits: nobody makes one for another.
        Action::CreateKey {
            environment: Environment::Test,
            own,
        } => develops && own,
        // Developers make live keys only where the organisation allows it; none can say so yet.
        Action::CreateKey {
            environment: Environment::Production,
            ..
        } => manages,
        Action::ChangeKey { environment, own } | Action::RevokeKey { environment, own } => {
            manages || (role == Role::Developer && own_test(environment, own))
        }
        Action::RestoreKey => manages,
        // An admin cannot touch an owner.
        Action::AddMember { role: other } | Action::RemoveMember { role: other } => match role {
            Role::Owner => true,
            Role::Admin => other != Role::Owner,
            Role::Developer | Role::Billing => false,
        },
    }
}

/// Whom a request to one organisation comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Authority {
    Operator,
    Member { user: UserId, role: Role },
}

impl Authority {
    /// Whether `user` is who is asking.
    pub(crate) fn is(self, user: UserId) -> bool {
        matches!(self, Self::Member { user: asking, .. } if asking == user)
    }

    /// Refuses what the matrix does not grant.
    pub(crate) fn require(self, action: Action) -> Result<()> {
        match self {
            Self::Member { role, .. } if !permits(role, action) => Err(Error::Forbidden {
                role,
                what: action.words(),
            }),
            Self::Member { .. } | Self::Operator => Ok(()),
        }
    }
}

/// The part of an organisation's audit log somebody sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum AuditView {
    All,
    /// What this user did.
    ActionsOf(UserId),
    /// Entries about payment.
    Billing,
}

impl Authority {
    pub(crate) fn audit_view(self) -> AuditView {
        match self {
            Self::Operator
            | Self::Member {
                role: Role::Owner | Role::Admin,
                ..
            } => AuditView::All,
            Self::Member {
                user,
                role: Role::Developer,
            } => AuditView::ActionsOf(user),
            Self::Member {
                role: Role::Billing,
                ..
            } => AuditView::Billing,
        }
    }
}
