//! Who may do what, and sees what.

use types::{Environment, Role};

use super::user;
use crate::domain::rights::{Action, AuditView, Authority, Concerned, permits};

/// Makes an action of the key it concerns.
type OnKey = fn(Concerned) -> Action;

/// The table of the portal's page, row by row. Columns: owner, admin, developer, billing.
fn matrix_of_keys() -> Vec<(Action, &'static str)> {
    use Environment::{Production, Test};
    let key = |environment, own, open| Concerned {
        environment,
        own,
        open,
    };
    let mut matrix = vec![
        (Action::ViewOrganisation, "yyyy"),
        (Action::ViewMembers, "yyyy"),
        (Action::Leave, "yyyy"),
        (Action::ViewKeys, "yyy-"),
        (Action::DeleteKey, "yy--"),
        (Action::RestoreKey, "yy--"),
        (Action::SetPolicy, "yy--"),
        (Action::UpdateOrganisation, "yy--"),
        (Action::ReviewKeys, "yy--"),
        (Action::TransferOwnership, "y---"),
    ];
    // Test keys are made by whose credits they spend; all ways to have a live key are one row.
    let actions: [(OnKey, &str); 4] = [
        (Action::CreateKey, "----"),
        (Action::RotateKey, "----"),
        (Action::RevokeKey, "yy--"),
        (Action::ChangeKey, "yy--"),
    ];
    for (action, others_test_key) in actions {
        for open in [false, true] {
            let own_live_key = if open { "yyy-" } else { "yy--" };
            matrix.push((action(key(Test, true, open)), "yyy-"));
            matrix.push((action(key(Test, false, open)), others_test_key));
            matrix.push((action(key(Production, true, open)), own_live_key));
            matrix.push((action(key(Production, false, open)), "yy--"));
        }
    }
    matrix
}

fn matrix_of_members() -> Vec<(Action, &'static str)> {
    let mut matrix = Vec::new();
    // Invite, remove, change roles: all, up to admin, –, –.
    for role in Role::ALL {
        let row = if role == Role::Owner { "y---" } else { "yy--" };
        matrix.push((Action::Invite { role }, row));
        matrix.push((Action::RemoveMember { role }, row));
        for to in Role::ALL {
            let owner = role == Role::Owner || to == Role::Owner;
            let row = if owner { "y---" } else { "yy--" };
            matrix.push((Action::ChangeRole { from: role, to }, row));
        }
    }
    matrix
}

#[test]
fn the_permission_matrix_holds_for_every_role() {
    let matrix = matrix_of_keys().into_iter().chain(matrix_of_members());
    for (action, row) in matrix {
        for (role, cell) in Role::ALL.into_iter().zip(row.chars()) {
            let expected = cell == 'y';
            assert_eq!(permits(role, action), expected, "{role:?} {action:?}");
            let user = user(1);
            let required = Authority::Member { user, role }.require(action);
            assert_eq!(required.is_ok(), expected, "{role:?} {action:?}");
        }
        assert!(Authority::Operator.require(action).is_ok());
    }
}

#[test]
fn everybody_sees_their_part_of_the_audit_log() {
    let view = |role| {
        Authority::Member {
            user: user(1),
            role,
        }
        .audit_view()
    };
    assert_eq!(view(Role::Owner), AuditView::All);
    assert_eq!(view(Role::Admin), AuditView::All);
    assert_eq!(view(Role::Developer), AuditView::ActionsOf(user(1)));
    assert_eq!(view(Role::Billing), AuditView::Billing);
}
