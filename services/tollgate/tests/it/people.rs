//! People: signing up and in with mails that arrive, second factors, invitations and roles.

use proto::keys::v1 as pb;
use testkit::eventually;
use tonic::Code;
use totp_rs::Totp;

use crate::world::{PASSWORD, SOON, World, by, by_two_factors, code_of};

#[tokio::test]
async fn somebody_signs_up_proves_the_address_and_signs_in_with_two_factors() {
    let mut world = World::start().await;
    let email = "ada@example.com";
    let user = world.sign_up(email).await;
    let places = world
        .people
        .list_organisations_of(pb::ListOrganisationsOfRequest {
            user_id: user.clone(),
        })
        .await
        .unwrap()
        .into_inner()
        .memberships;
    assert_eq!((places.len(), places[0].role.as_str()), (1, "owner"));
    verifies(&mut world, email, &user).await;
    answers_alike(&mut world, email).await;
    let codes = enrols(&mut world, email, &user).await;
    uses_recovery_codes(&mut world, &user, &codes).await;
    resets(&mut world, email, &user).await;
    let waiting = world
        .stack
        .count("select count(*) from keys.outbox_mail where sent_at is not null and body <> ''")
        .await;
    assert_eq!(waiting, 0, "what was sent keeps no text");
}

async fn verifies(world: &mut World, email: &str, user: &str) {
    let token = world.mailed(email, "/verify/").await;
    let verify = pb::VerifyEmailRequest { token };
    let verified = world.people.verify_email(verify.clone()).await.unwrap();
    assert_eq!(verified.into_inner().user_id, user);
    let again = world.people.verify_email(verify).await;
    assert_eq!(code_of(again), Code::InvalidArgument, "a link is good once");
    assert!(world.sign_in(email, PASSWORD).await.unwrap().email_verified);
}

async fn answers_alike(world: &mut World, email: &str) {
    let known = world
        .sign_in(email, "wrong horse battery")
        .await
        .unwrap_err();
    let unknown = world
        .sign_in("nobody@example.com", PASSWORD)
        .await
        .unwrap_err();
    assert_eq!(known.code(), Code::Unauthenticated);
    assert_eq!(
        (known.code(), known.message()),
        (unknown.code(), unknown.message())
    );
    // Signing up again answers as the first time; the mail says what is the matter.
    let again = pb::SignUpRequest {
        email: email.to_uppercase(),
        password: "another password".to_owned(),
        name: "Eve".to_owned(),
        organisation_name: "Evil".to_owned(),
        address: "192.0.2.9".to_owned(),
        language: String::new(),
    };
    world.people.sign_up(again).await.unwrap();
    world.mailed(email, "has an account").await;
    assert!(world.sign_in(email, "another password").await.is_err());
    // Ten failures, then nobody gets in as this address for a while: known or not.
    for _ in 0..20 {
        world
            .sign_in("mallory@example.com", "guess")
            .await
            .unwrap_err();
    }
    let refused = world.sign_in("mallory@example.com", "guess").await;
    assert_eq!(code_of(refused), Code::ResourceExhausted);
}

/// Turns the second factor on; the recovery codes.
async fn enrols(world: &mut World, email: &str, user: &str) -> Vec<String> {
    let start = pb::StartTotpRequest {
        user_id: user.to_owned(),
    };
    let stranger = by("usr_00000000000000000000000000000001", start.clone());
    assert_eq!(
        code_of(world.people.start_totp(stranger).await),
        Code::NotFound
    );
    let started = world
        .people
        .start_totp(by(user, start))
        .await
        .unwrap()
        .into_inner();
    let totp = Totp::from_url(&started.otpauth_url).unwrap();
    assert!(started.otpauth_url.contains(&started.secret));
    assert!(
        !world
            .sign_in(email, PASSWORD)
            .await
            .unwrap()
            .second_factor_required
    );

    let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap();
    let code = totp.generate(now).to_string();
    let confirm = pb::ConfirmTotpRequest {
        user_id: user.to_owned(),
        code: code.clone(),
    };
    let confirmed = world.people.confirm_totp(by(user, confirm)).await.unwrap();
    let codes = confirmed.into_inner().recovery_codes;
    assert_eq!(codes.len(), 10);
    assert!(
        world
            .sign_in(email, PASSWORD)
            .await
            .unwrap()
            .second_factor_required
    );
    let replayed = world.present(user, &code).await;
    assert_eq!(
        code_of(replayed),
        Code::Unauthenticated,
        "a step counts once"
    );
    let next = totp.generate(now + 30).to_string();
    let accepted = world.present(user, &next).await.unwrap();
    assert!(!accepted.recovery_code);
    codes
}

async fn uses_recovery_codes(world: &mut World, user: &str, codes: &[String]) {
    let used = world.present(user, &codes[0].to_uppercase()).await.unwrap();
    assert_eq!((used.recovery_code, used.recovery_codes), (true, 9));
    assert_eq!(
        code_of(world.present(user, &codes[0]).await),
        Code::Unauthenticated
    );
    for _ in 0..4 {
        assert_eq!(
            code_of(world.present(user, "000000").await),
            Code::Unauthenticated
        );
    }
    let throttled = world.present(user, &codes[1]).await;
    assert_eq!(
        code_of(throttled),
        Code::ResourceExhausted,
        "five wrong codes"
    );
}

async fn resets(world: &mut World, email: &str, user: &str) {
    let epoch = world.sign_in(email, PASSWORD).await.unwrap().session_epoch;
    for address in [email, "nobody@example.com"] {
        let request = pb::RequestPasswordResetRequest {
            email: address.to_owned(),
            address: "192.0.2.1".to_owned(),
        };
        world.people.request_password_reset(request).await.unwrap();
    }
    let reset = pb::ResetPasswordRequest {
        token: world.mailed(email, "/reset/").await,
        new_password: "a better password".to_owned(),
    };
    let done = world
        .people
        .reset_password(reset.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (done.user_id.as_str(), done.session_epoch),
        (user, epoch + 1)
    );
    assert!(
        world.people.reset_password(reset).await.is_err(),
        "good once"
    );
    assert!(world.sign_in(email, PASSWORD).await.is_err());
    let again = world.sign_in(email, "a better password").await.unwrap();
    assert_eq!(again.session_epoch, epoch + 1);
    let change = pb::ChangePasswordRequest {
        user_id: user.to_owned(),
        old_password: "a better password".to_owned(),
        new_password: PASSWORD.to_owned(),
    };
    let changed = world
        .people
        .change_password(by(user, change))
        .await
        .unwrap();
    assert_eq!(changed.into_inner().session_epoch, epoch + 2);
    let mails = world.messages().await;
    let to_nobody = mails
        .iter()
        .filter(|mail| mail["to"][0] == "nobody@example.com");
    assert_eq!(to_nobody.count(), 0);
}

#[tokio::test]
async fn members_come_by_invitation_and_keep_to_their_roles() {
    let mut world = World::start().await;
    let acme = world.stack.customer("Acme", 0);
    let bob = world.sign_up("bob@example.com").await;
    let eve = world.sign_up("eve@example.com").await;
    let org = acme.org.as_str();
    let cli = |arguments: &[&str]| world.stack.cli(arguments);
    let create = [
        "invitation",
        "create",
        "--org",
        org,
        "--email",
        "bob@example.com",
    ];
    let made = cli(&[&create[..], &["--role", "admin"]].concat());
    let (code, _, text) = world.stack.try_cli(&create);
    assert_eq!(code, Some(1), "invited twice: {text}");
    let old = world.mailed("bob@example.com", "/invite/").await;
    let id = made["invitation_id"].as_str().unwrap();
    cli(&["invitation", "resend", id]);
    let token = eventually(SOON, "the second mail arrives", || async {
        let token = world.mailed("bob@example.com", "/invite/").await;
        if token == old { Err(token) } else { Ok(token) }
    });
    let token = token.await.unwrap();
    let accept = |token: &str, user: &str| pb::AcceptInvitationRequest {
        token: token.to_owned(),
        user_id: user.to_owned(),
    };
    let mut people = world.people.clone();
    let by_old = people.accept_invitation(accept(&old, &bob)).await;
    assert_eq!(
        code_of(by_old),
        Code::InvalidArgument,
        "the old link has ended"
    );
    let by_eve = people
        .accept_invitation(by(&eve, accept(&token, &eve)))
        .await;
    assert_eq!(code_of(by_eve), Code::PermissionDenied, "another address");
    let tries = (0..10).map(|_| {
        let mut people = world.people.clone();
        let request = by(&bob, accept(&token, &bob));
        async move { people.accept_invitation(request).await.is_ok() }
    });
    let accepted = futures_util::future::join_all(tries).await;
    assert_eq!(accepted.iter().filter(|ok| **ok).count(), 1, "{accepted:?}");
    assert_eq!(
        cli(&["invitation", "list", "--org", org])["invitations"][0]["status"],
        "accepted"
    );
    keeps_to_roles(&world, org, &acme.user, &bob, &eve).await;
}

async fn keeps_to_roles(world: &World, org: &str, owner: &str, bob: &str, eve: &str) {
    let role = |user: &str, role: &str| pb::UpdateMemberRoleRequest {
        org_id: org.to_owned(),
        user_id: user.to_owned(),
        role: role.to_owned(),
        expected_version: None,
    };
    let mut people = world.people.clone();
    // Bob is an admin: he touches no owner and makes none.
    let demotes = people
        .update_member_role(by(bob, role(owner, "billing")))
        .await;
    assert_eq!(code_of(demotes), Code::PermissionDenied);
    let promotes = people.update_member_role(by(bob, role(bob, "owner"))).await;
    assert_eq!(code_of(promotes), Code::PermissionDenied);
    let stranger = people
        .update_member_role(by(eve, role(bob, "billing")))
        .await;
    assert_eq!(code_of(stranger), Code::NotFound);
    let last = people
        .update_member_role(by(owner, role(owner, "admin")))
        .await;
    assert_eq!(code_of(last), Code::AlreadyExists, "the last owner stays");
    let transfer = pb::TransferOwnershipRequest {
        org_id: org.to_owned(),
        user_id: bob.to_owned(),
    };
    let needs = people.transfer_ownership(by(owner, transfer.clone())).await;
    assert_eq!(
        code_of(needs),
        Code::PermissionDenied,
        "without a second factor"
    );
    let theft = people
        .transfer_ownership(by_two_factors(bob, transfer.clone()))
        .await;
    assert_eq!(code_of(theft), Code::PermissionDenied);
    people
        .transfer_ownership(by_two_factors(owner, transfer))
        .await
        .unwrap();
    let members = world.stack.cli(&["member", "list", "--org", org]);
    let role_of = |user: &str| {
        let members = members["members"].as_array().unwrap();
        let found = members.iter().find(|member| member["user_id"] == user);
        found.unwrap()["role"].as_str().unwrap().to_owned()
    };
    assert_eq!(
        (role_of(bob).as_str(), role_of(owner).as_str()),
        ("owner", "admin")
    );
    // Two owners leave at once: one stays.
    let cli = [
        "member", "role", "--org", org, "--user", owner, "--role", "owner",
    ];
    world.stack.cli(&cli);
    let leave = |user: &str| {
        let mut keys = world.keys.clone();
        let request = pb::RemoveMemberRequest {
            org_id: org.to_owned(),
            user_id: user.to_owned(),
        };
        let request = by(user, request);
        async move { keys.remove_member(request).await.is_ok() }
    };
    let left = futures_util::future::join_all([leave(bob), leave(owner)]).await;
    assert_eq!(left.iter().filter(|ok| **ok).count(), 1, "{left:?}");
}
