//! Signing up and in, and what mails with links are for.

use jiff::{SignedDuration, Timestamp};
use proto::{convert::parse_id, keys::v1 as pb};
use runtime::Actor;
use serde_json::json;
use tonic::Status;
use types::{OrgId, Role, UserId, parse_email, parse_key_name};
use zeroize::Zeroizing;

use super::{Keys, operators_only, organisations, wire};
use crate::{
    domain::{
        mail::{self, Language, Letter, Reader},
        password,
        throttle::{self, Limit},
        token,
    },
    error::{Error, Result},
    store::{Purpose, Tx, User},
};

/// A link that verifies an address is good for so long.
const VERIFY: SignedDuration = SignedDuration::from_hours(24);
/// A link to a new password is good for so long.
const RESET: SignedDuration = SignedDuration::from_hours(1);

const SIGN_IN: &str = "act for people who are not signed in";

/// A user acts for himself only; to others he does not exist.
pub(super) fn oneself(actor: Actor, user: UserId) -> Result<()> {
    match actor {
        Actor::Operator => Ok(()),
        Actor::User(asking) if asking == user => Ok(()),
        Actor::User(_) => Err(Error::not_found("user", user)),
    }
}

impl Keys {
    /// Counts a try, and refuses it when there were too many.
    pub(super) async fn throttle(&self, limit: Limit, of: &str) -> Result<()> {
        let now = self.host.clock().now();
        if self.store.try_once(limit, of, now).await? {
            return Ok(());
        }
        let minutes = limit.within.as_mins();
        let text = format!(
            "too many tries: at most {} in {minutes} minutes",
            limit.tries
        );
        Err(Error::Exhausted(text))
    }

    /// A token for a link, and its hash.
    pub(super) fn new_token(&self) -> (String, [u8; 32]) {
        let text = token::token(&self.host.random());
        let hash = token::token_hash(&text).expect("what `token` makes has a hash");
        (text, hash)
    }

    /// Puts a mail into the outbox of a transaction.
    pub(super) async fn post(&self, tx: &mut Tx, mail: &mail::Mail) -> Result<()> {
        let id = self.host.ids().new_id::<mail::Posted>().uuid();
        tx.post(id, mail).await
    }

    async fn post_verification(&self, tx: &mut Tx, user: UserId, reader: Reader) -> Result<()> {
        let (text, hash) = self.new_token();
        let end = after(self.host.clock().now(), VERIFY);
        tx.insert_mail_token(user, Purpose::Verify, &hash, end)
            .await?;
        let letter = Letter::VerifyEmail { token: &text };
        self.write_to(tx, &[reader], &letter).await
    }

    pub(super) async fn sign_up_person(
        &self,
        actor: Actor,
        request: pb::SignUpRequest,
    ) -> std::result::Result<pb::SignUpResponse, Status> {
        operators_only(actor, SIGN_IN)?;
        let email = parse_email("email", &request.email).map_err(Error::from)?;
        let name = parse_key_name("name", &request.name).map_err(Error::from)?;
        let organisation = parse_key_name("organisation_name", &request.organisation_name);
        let organisation = organisation.map_err(Error::from)?;
        let language = match request.language.as_str() {
            "" => Language::default(),
            language => Language::parse(language)?,
        };
        let password = Zeroizing::new(request.password);
        password::check("password", &password)?;
        self.throttle(throttle::SIGN_UP_ADDRESS, &request.address)
            .await?;

        // Hashed for known addresses too: the answer takes as long.
        let password = self.passwords.hash(password).await?;
        let ids = self.host.ids();
        let (user, org): (UserId, OrgId) = (ids.new_id(), ids.new_id());
        let now = self.host.clock().now();
        let may_mail = self.store.try_once(throttle::MAIL, &email, now).await?;
        let mut tx = self.store.work(user, now).await?;
        if tx
            .insert_user(user, &email, &name, language, &password)
            .await?
        {
            let slug = organisations::insert(&mut tx, org, &organisation, None, user).await?;
            tx.insert_member(ids.new_id(), org, user, Role::Owner)
                .await?;
            let address = email;
            let reader = Reader { address, language };
            self.post_verification(&mut tx, user, reader).await?;
            let details = json!({ "address": request.address });
            tx.audit(None, "user.signed_up", user, details);
            let details = json!({ "after": {
                "name": organisation, "slug": slug.as_str(), "owner": user.to_string(),
            }});
            tx.audit(Some(org), "organisation.created", org, details);
        } else if let Some(known) = tx.reader_of(&email).await?.filter(|_| may_mail) {
            self.write_to(&mut tx, &[known], &Letter::AlreadyKnown)
                .await?;
        }
        tx.commit().await?;
        self.mail_nudge.notify_one();
        Ok(pb::SignUpResponse {})
    }

    pub(super) async fn verify_again(
        &self,
        actor: Actor,
        request: pb::ResendVerificationRequest,
    ) -> std::result::Result<pb::ResendVerificationResponse, Status> {
        let id = parse_id("user_id", &request.user_id)?;
        oneself(actor, id)?;
        let user = self.store.user(id).await?;
        if !user.email_verified {
            self.throttle(throttle::MAIL, &user.email).await?;
            let mut tx = self.store.begin(actor, self.host.clock().now()).await?;
            self.post_verification(&mut tx, id, user.reader()).await?;
            tx.commit().await?;
            self.mail_nudge.notify_one();
        }
        Ok(pb::ResendVerificationResponse {})
    }

    pub(super) async fn verify_address(
        &self,
        actor: Actor,
        request: pb::VerifyEmailRequest,
    ) -> std::result::Result<pb::VerifyEmailResponse, Status> {
        operators_only(actor, SIGN_IN)?;
        let (mut tx, user) = self.use_link(&request.token, Purpose::Verify).await?;
        tx.verify_user(user).await?;
        tx.audit(None, "user.email_verified", user, json!({}));
        tx.commit().await?;
        let user_id = user.to_string();
        Ok(pb::VerifyEmailResponse { user_id })
    }

    /// Uses a link up in a transaction of its user.
    async fn use_link(&self, text: &str, purpose: Purpose) -> Result<(Tx, UserId)> {
        let unknown = || Error::invalid("token", "is unknown, was used or has expired");
        let hash = token::token_hash(text).ok_or_else(unknown)?;
        let mut tx = self.store.work("link", self.host.clock().now()).await?;
        let user = tx
            .use_mail_token(&hash, purpose)
            .await?
            .ok_or_else(unknown)?;
        tx.act_as(user);
        Ok((tx, user))
    }

    /// Checks a password, and counts failures against the e-mail and the client's address.
    async fn check_password(
        &self,
        email: &str,
        user: Option<&User>,
        password: Zeroizing<String>,
    ) -> Result<bool> {
        self.throttle(throttle::SIGN_IN_EMAIL, email).await?;
        let stored = user.and_then(|user| user.password.as_ref());
        let right = self.passwords.is(stored, password).await?;
        if right {
            self.store.forgive(throttle::SIGN_IN_EMAIL, email).await?;
        }
        Ok(right)
    }

    pub(super) async fn sign_in(
        &self,
        actor: Actor,
        request: pb::AuthenticateRequest,
    ) -> std::result::Result<pb::AuthenticateResponse, Status> {
        operators_only(actor, SIGN_IN)?;
        let email = parse_email("email", &request.email).map_err(Error::from)?;
        let password = Zeroizing::new(request.password);
        self.throttle(throttle::SIGN_IN_ADDRESS, &request.address)
            .await?;
        let user = self.store.user_by_email(&email).await?;
        let right = self.check_password(&email, user.as_ref(), password).await?;
        let Some(user) = user.filter(|_| right) else {
            return Err(
                Error::Unauthenticated("the e-mail address or the password is wrong").into(),
            );
        };
        self.store
            .untry(throttle::SIGN_IN_ADDRESS, &request.address)
            .await?;
        let mut tx = self.store.begin(user.id, self.host.clock().now()).await?;
        let details = json!({ "address": request.address });
        tx.audit(None, "user.password_accepted", user.id, details);
        tx.commit().await?;
        Ok(pb::AuthenticateResponse {
            user_id: user.id.to_string(),
            second_factor_required: user.totp_confirmed,
            session_epoch: user.session_epoch,
            email_verified: user.email_verified,
        })
    }

    pub(super) async fn forgot_password(
        &self,
        actor: Actor,
        request: pb::RequestPasswordResetRequest,
    ) -> std::result::Result<pb::RequestPasswordResetResponse, Status> {
        operators_only(actor, SIGN_IN)?;
        let email = parse_email("email", &request.email).map_err(Error::from)?;
        self.throttle(throttle::MAIL_ADDRESS, &request.address)
            .await?;
        let now = self.host.clock().now();
        // Who asks too often is not told: it would say that there is such an address.
        let may_mail = self.store.try_once(throttle::MAIL, &email, now).await?;
        let user = self.store.user_by_email(&email).await?;
        if let Some(user) = user.filter(|_| may_mail) {
            let (text, hash) = self.new_token();
            let mut tx = self.store.begin(user.id, now).await?;
            tx.insert_mail_token(user.id, Purpose::Reset, &hash, after(now, RESET))
                .await?;
            let letter = Letter::ResetPassword { token: &text };
            self.write_to(&mut tx, &[user.reader()], &letter).await?;
            tx.commit().await?;
            self.mail_nudge.notify_one();
        }
        Ok(pb::RequestPasswordResetResponse {})
    }

    pub(super) async fn choose_password(
        &self,
        actor: Actor,
        request: pb::ResetPasswordRequest,
    ) -> std::result::Result<pb::ResetPasswordResponse, Status> {
        operators_only(actor, SIGN_IN)?;
        let password = Zeroizing::new(request.new_password);
        password::check("new_password", &password)?;
        let password = self.passwords.hash(password).await?;
        let (mut tx, id) = self.use_link(&request.token, Purpose::Reset).await?;
        let user = tx.lock_user(id).await?;
        let session_epoch = tx.set_password(id, &password).await?;
        // The link went to the address.
        tx.verify_user(id).await?;
        tx.end_mail_tokens(id, Purpose::Reset).await?;
        self.write_to(&mut tx, &[user.reader()], &Letter::PasswordChanged)
            .await?;
        tx.audit(None, "user.password_reset", id, json!({}));
        tx.commit().await?;
        self.store
            .forgive(throttle::SIGN_IN_EMAIL, &user.email)
            .await?;
        self.mail_nudge.notify_one();
        Ok(pb::ResetPasswordResponse {
            user_id: id.to_string(),
            session_epoch,
        })
    }

    pub(super) async fn change_password_of(
        &self,
        actor: Actor,
        request: pb::ChangePasswordRequest,
    ) -> std::result::Result<pb::ChangePasswordResponse, Status> {
        let id = parse_id("user_id", &request.user_id)?;
        oneself(actor, id)?;
        let old = Zeroizing::new(request.old_password);
        let new = Zeroizing::new(request.new_password);
        password::check("new_password", &new)?;
        let user = self.store.user(id).await?;
        if !self.check_password(&user.email, Some(&user), old).await? {
            return Err(Error::Unauthenticated("the old password is wrong").into());
        }
        let password = self.passwords.hash(new).await?;
        let mut tx = self.store.begin(actor, self.host.clock().now()).await?;
        tx.lock_user(id).await?;
        let session_epoch = tx.set_password(id, &password).await?;
        tx.end_mail_tokens(id, Purpose::Reset).await?;
        self.write_to(&mut tx, &[user.reader()], &Letter::PasswordChanged)
            .await?;
        tx.audit(None, "user.password_changed", id, json!({}));
        tx.commit().await?;
        self.mail_nudge.notify_one();
        Ok(pb::ChangePasswordResponse { session_epoch })
    }

    pub(super) async fn person(
        &self,
        actor: Actor,
        request: pb::GetUserRequest,
    ) -> std::result::Result<pb::GetUserResponse, Status> {
        let id = parse_id("user_id", &request.user_id)?;
        oneself(actor, id)?;
        let user = self.store.user(id).await?;
        Ok(pb::GetUserResponse {
            user: Some(wire::user(&user)),
        })
    }

    pub(super) async fn places(
        &self,
        actor: Actor,
        request: pb::ListOrganisationsOfRequest,
    ) -> std::result::Result<pb::ListOrganisationsOfResponse, Status> {
        let id = parse_id("user_id", &request.user_id)?;
        oneself(actor, id)?;
        let memberships = self.store.organisations_of(id).await?;
        Ok(pb::ListOrganisationsOfResponse {
            memberships: memberships.iter().map(wire::place).collect(),
        })
    }
}

fn after(now: Timestamp, life: SignedDuration) -> Timestamp {
    now.saturating_add(life).unwrap_or(Timestamp::MAX)
}
