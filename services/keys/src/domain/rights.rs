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

/// The key that somebody wants to act on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Concerned {
    pub(crate) environment: Environment,
    /// It is, or would be, the member's own.
    pub(crate) own: bool,
    /// The organisation lets developers have live keys.
    pub(crate) open: bool,
}

/// Something a member may want to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    ViewOrganisation,
    ViewKeys,
    CreateKey(Concerned),
    RotateKey(Concerned),
    ChangeKey(Concerned),
    RevokeKey(Concerned),
    DeleteKey,
    RestoreKey,
    ViewMembers,
    Invite { role: Role },
    ChangeRole { from: Role, to: Role },
    RemoveMember { role: Role },
    Leave,
    SetPolicy,
    UpdateOrganisation,
    ReviewKeys,
    TransferOwnership,
}

impl Action {
    /// As in "the role billing may not …".
    fn words(self) -> &'static str {
        match self {
            Self::ViewOrganisation => "view the organisation",
            Self::ViewKeys => "view keys",
            Self::CreateKey(Concerned {
                environment: Environment::Production,
                ..
            }) => "create live keys",
            Self::CreateKey(Concerned { own: false, .. }) => "create test keys for others",
            Self::CreateKey(_) => "create test keys",
            Self::RotateKey(_) => "rotate this key",
            Self::ChangeKey(_) => "change this key",
            Self::RevokeKey(_) => "revoke this key",
            Self::DeleteKey => "delete keys",
            Self::RestoreKey => "restore suspended keys",
            Self::ViewMembers => "view the members",
            Self::Invite { .. } => "invite members of this role",
            Self::ChangeRole { .. } => "change this role",
            Self::RemoveMember { .. } => "remove members of this role",
            Self::Leave => "leave",
            Self::SetPolicy => "change the organisation's policy",
            Self::UpdateOrganisation => "change the organisation",
            Self::ReviewKeys => "review the keys of who has left",
            Self::TransferOwnership => "transfer the ownership",
        }
    }
}

/// The matrix. Anything not granted is denied.
pub(crate) fn permits(role: Role, action: Action) -> bool {
    let manages = matches!(role, Role::Owner | Role::Admin);
    let develops = manages || role == Role::Developer;
    // A developer has test keys, and live ones where the organisation says so.
    let own_of_developer = |key: Concerned| {
        role == Role::Developer && key.own && (key.environment == Environment::Test || key.open)
    };
    // An admin cannot touch an owner.
    let governs =
        |other: Role| role == Role::Owner || (role == Role::Admin && other != Role::Owner);
    match action {
        Action::ViewOrganisation | Action::ViewMembers | Action::Leave => true,
        Action::ViewKeys => develops,
        Action::CreateKey(key) | Action::RotateKey(key) => match key.environment {
            // A test key spends its creator's test credits: nobody makes one for another.
            Environment::Test => develops && key.own,
            Environment::Production => manages || own_of_developer(key),
        },
        Action::ChangeKey(key) | Action::RevokeKey(key) => manages || own_of_developer(key),
        Action::DeleteKey
        | Action::RestoreKey
        | Action::SetPolicy
        | Action::UpdateOrganisation
        | Action::ReviewKeys => manages,
        Action::Invite { role: other } | Action::RemoveMember { role: other } => governs(other),
        Action::ChangeRole { from, to } => governs(from) && governs(to),
        Action::TransferOwnership => role == Role::Owner,
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
