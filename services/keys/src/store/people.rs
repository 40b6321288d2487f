//! Users: passwords, second factors, links in mails, counts of tries.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use runtime::Tenant;
use sqlx::PgConnection;
use types::UserId;
use uuid::Uuid;

use super::{Store, Tx, corrupt};
use crate::{
    domain::{
        mail::{Language, Reader},
        password::Stored,
        throttle::Limit,
    },
    error::{Error, Result},
};

/// What a link in a mail is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    Verify,
    Reset,
}

impl Purpose {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Verify => "verify",
            Self::Reset => "reset",
        }
    }
}

/// A stored user.
pub(crate) struct User {
    pub(crate) id: UserId,
    pub(crate) email: String,
    pub(crate) name: String,
    pub(crate) password: Option<Stored>,
    pub(crate) email_verified: bool,
    pub(crate) session_epoch: i64,
    pub(crate) totp_secret: Option<Vec<u8>>,
    pub(crate) totp_confirmed: bool,
    pub(crate) totp_last_step: i64,
    /// Recovery codes that are not used.
    pub(crate) recovery_codes: i64,
    pub(crate) created_at: Timestamp,
    pub(crate) language: Language,
}

impl User {
    /// As somebody who is written to.
    pub(crate) fn reader(&self) -> Reader {
        Reader {
            address: self.email.clone(),
            language: self.language,
        }
    }
}

struct UserRow {
    id: Uuid,
    email: String,
    name: String,
    password: Option<Vec<u8>>,
    email_verified_at: Option<jiff_sqlx::Timestamp>,
    session_epoch: i64,
    totp_secret: Option<Vec<u8>>,
    totp_confirmed_at: Option<jiff_sqlx::Timestamp>,
    totp_last_step: i64,
    recovery_codes: i64,
    created_at: jiff_sqlx::Timestamp,
    language: String,
}

impl TryFrom<UserRow> for User {
    type Error = Error;

    fn try_from(row: UserRow) -> Result<Self> {
        let password = row.password.map(|bytes| {
            Stored::from_slice(&bytes).ok_or_else(|| corrupt("password", "not 48 bytes"))
        });
        Ok(Self {
            id: UserId::new(row.id),
            email: row.email,
            name: row.name,
            password: password.transpose()?,
            email_verified: row.email_verified_at.is_some(),
            session_epoch: row.session_epoch,
            totp_secret: row.totp_secret,
            totp_confirmed: row.totp_confirmed_at.is_some(),
            totp_last_step: row.totp_last_step,
            recovery_codes: row.recovery_codes,
            created_at: row.created_at.to_jiff(),
            language: Language::parse(&row.language)?,
        })
    }
}

async fn find(
    connection: &mut PgConnection,
    user: Option<UserId>,
    email: Option<&str>,
) -> Result<Option<User>> {
    let select = sqlx::query_as!(
        UserRow,
        r#"
        select u.id, u.email, u.name, u.password, u.email_verified_at, u.session_epoch,
               u.totp_secret, u.totp_confirmed_at, u.totp_last_step,
               (select count(*) from keys.recovery_codes c
                 where c.user_id = u.id and c.used_at is null) as "recovery_codes!",
               u.created_at, u.language
          from keys.users u
         where u.id = $1 or u.email = $2"#,
        user.map(UserId::uuid),
        email,
    );
    let row = select.fetch_optional(connection).await?;
    row.map(User::try_from).transpose()
}

impl Store {
    /// One user.
    pub(crate) async fn user(&self, user: UserId) -> Result<User> {
        let found = find(
            &mut *self.tenants.begin(Tenant::User(user)).await?,
            Some(user),
            None,
        )
        .await?;
        found.ok_or_else(|| Error::not_found("user", user))
    }

    /// The user of an address.
    pub(crate) async fn user_by_email(&self, email: &str) -> Result<Option<User>> {
        find(&mut *self.pool.acquire().await?, None, Some(email)).await
    }

    /// Counts a try, and refuses it when there were too many. Counted before the outcome is known:
    /// tries that come at once are counted all the same.
    pub(crate) async fn try_once(&self, limit: Limit, of: &str, now: Timestamp) -> Result<bool> {
        let upsert = sqlx::query_scalar!(
            r#"
            insert into keys.throttles as t (bucket, tried, since)
            values ($1, 1, $2)
            on conflict (bucket) do update
               set tried = case when t.since <= $3 then 1 else t.tried + 1 end,
                   since = case when t.since <= $3 then $2 else t.since end
            returning tried"#,
            &limit.bucket(of)[..],
            now.to_sqlx(),
            limit.start(now).to_sqlx() as _,
        );
        Ok(upsert.fetch_one(&self.pool).await? <= limit.tries)
    }

    /// Takes one try back: it was no failure.
    pub(crate) async fn untry(&self, limit: Limit, of: &str) -> Result<()> {
        let update = sqlx::query!(
            "update keys.throttles set tried = tried - 1 where bucket = $1 and tried > 0",
            &limit.bucket(of)[..],
        );
        update.execute(&self.pool).await?;
        Ok(())
    }

    /// Forgets what was tried.
    pub(crate) async fn forgive(&self, limit: Limit, of: &str) -> Result<()> {
        let delete = sqlx::query!(
            "delete from keys.throttles where bucket = $1",
            &limit.bucket(of)[..],
        );
        delete.execute(&self.pool).await?;
        Ok(())
    }

    /// Forgets counts and links that have no meaning any more.
    pub(crate) async fn forget_tries(&self, before: Timestamp) -> Result<()> {
        let delete = sqlx::query!(
            "delete from keys.throttles where since < $1",
            before.to_sqlx()
        );
        delete.execute(&self.pool).await?;
        let delete = sqlx::query!(
            "delete from keys.mail_tokens where expires_at < $1",
            before.to_sqlx(),
        );
        delete.execute(&self.pool).await?;
        Ok(())
    }
}

impl Tx {
    /// Locks a user until the transaction ends, and reads it.
    pub(crate) async fn lock_user(&mut self, user: UserId) -> Result<User> {
        let lock = sqlx::query_scalar!(
            "select id from keys.users where id = $1 for no key update",
            user.uuid(),
        );
        lock.fetch_optional(&mut *self.inner).await?;
        let found = find(&mut self.inner, Some(user), None).await?;
        found.ok_or_else(|| Error::not_found("user", user))
    }

    /// Creates a user; false when the address has one.
    pub(crate) async fn insert_user(
        &mut self,
        user: UserId,
        email: &str,
        name: &str,
        language: Language,
        password: &Stored,
    ) -> Result<bool> {
        let insert = sqlx::query!(
            r#"
            insert into keys.users (id, email, name, language, password, created_at, updated_at)
            values ($1, $2, $3, $4, $5, $6, $6)
            on conflict (email) do nothing"#,
            user.uuid(),
            email,
            name,
            language.as_str(),
            password.bytes(),
            self.at.to_sqlx(),
        );
        Ok(insert.execute(&mut *self.inner).await?.rows_affected() == 1)
    }

    /// Stores a password and ends every session; the new epoch. The user is locked.
    pub(crate) async fn set_password(&mut self, user: UserId, password: &Stored) -> Result<i64> {
        let update = sqlx::query_scalar!(
            r#"
            update keys.users
               set password = $2, session_epoch = session_epoch + 1, updated_at = $3
             where id = $1
            returning session_epoch"#,
            user.uuid(),
            password.bytes(),
            self.at.to_sqlx(),
        );
        Ok(update.fetch_one(&mut *self.inner).await?)
    }

    /// Changes name and language. The user is locked.
    pub(crate) async fn save_user(
        &mut self,
        user: UserId,
        name: &str,
        language: Language,
    ) -> Result<()> {
        let update = sqlx::query!(
            "update keys.users set name = $2, language = $3, updated_at = $4 where id = $1",
            user.uuid(),
            name,
            language.as_str(),
            self.at.to_sqlx(),
        );
        update.execute(&mut *self.inner).await?;
        Ok(())
    }

    /// Ends every session; the new epoch. The user is locked.
    pub(crate) async fn end_sessions(&mut self, user: UserId) -> Result<i64> {
        let update = sqlx::query_scalar!(
            r#"
            update keys.users
               set session_epoch = session_epoch + 1, updated_at = $2
             where id = $1
            returning session_epoch"#,
            user.uuid(),
            self.at.to_sqlx(),
        );
        Ok(update.fetch_one(&mut *self.inner).await?)
    }

    /// Notes that the address is the user's.
    pub(crate) async fn verify_user(&mut self, user: UserId) -> Result<()> {
        let update = sqlx::query!(
            r#"
            update keys.users
               set email_verified_at = coalesce(email_verified_at, $2), updated_at = $2
             where id = $1"#,
            user.uuid(),
            self.at.to_sqlx() as _,
        );
        update.execute(&mut *self.inner).await?;
        Ok(())
    }

    /// Stores the token of a link; the links before it end.
    pub(crate) async fn insert_mail_token(
        &mut self,
        user: UserId,
        purpose: Purpose,
        hash: &[u8; 32],
        expires_at: Timestamp,
    ) -> Result<()> {
        self.end_mail_tokens(user, purpose).await?;
        let insert = sqlx::query!(
            r#"
            insert into keys.mail_tokens (token_hash, user_id, purpose, expires_at)
            values ($1, $2, $3, $4)"#,
            &hash[..],
            user.uuid(),
            purpose.as_str(),
            expires_at.to_sqlx(),
        );
        insert.execute(&mut *self.inner).await?;
        Ok(())
    }

    /// Ends the links of a user.
    pub(crate) async fn end_mail_tokens(&mut self, user: UserId, purpose: Purpose) -> Result<()> {
        let delete = sqlx::query!(
            "delete from keys.mail_tokens where user_id = $1 and purpose = $2",
            user.uuid(),
            purpose.as_str(),
        );
        delete.execute(&mut *self.inner).await?;
        Ok(())
    }

    /// Uses a link up: whose it is, unless it was used or has expired.
    pub(crate) async fn use_mail_token(
        &mut self,
        hash: &[u8; 32],
        purpose: Purpose,
    ) -> Result<Option<UserId>> {
        let update = sqlx::query_scalar!(
            r#"
            update keys.mail_tokens
               set used_at = $3
             where token_hash = $1 and purpose = $2 and used_at is null and expires_at > $3
            returning user_id"#,
            &hash[..],
            purpose.as_str(),
            self.at.to_sqlx() as _,
        );
        let user = update.fetch_optional(&mut *self.inner).await?;
        Ok(user.map(UserId::new))
    }

    /// Stores the secret of an authenticator that is not confirmed yet. The user is locked.
    pub(crate) async fn begin_totp(&mut self, user: UserId, secret: &[u8]) -> Result<()> {
        let update = sqlx::query!(
            r#"
            update keys.users
               set totp_secret = $2, totp_confirmed_at = null, totp_last_step = 0, updated_at = $3
             where id = $1"#,
            user.uuid(),
            secret,
            self.at.to_sqlx(),
        );
        update.execute(&mut *self.inner).await?;
        Ok(())
    }

    /// Notes the step of an accepted code; from the first on, the second factor is required. The
    /// user is locked.
    pub(crate) async fn use_totp_step(&mut self, user: UserId, step: i64) -> Result<()> {
        let update = sqlx::query!(
            r#"
            update keys.users
               set totp_last_step = $2, totp_confirmed_at = coalesce(totp_confirmed_at, $3)
             where id = $1 and totp_last_step < $2"#,
            user.uuid(),
            step,
            self.at.to_sqlx() as _,
        );
        let used = update.execute(&mut *self.inner).await?.rows_affected();
        assert_eq!(used, 1, "the user is locked and the step is new");
        Ok(())
    }

    /// Takes the second factor away. The user is locked.
    pub(crate) async fn end_totp(&mut self, user: UserId) -> Result<()> {
        let update = sqlx::query!(
            r#"
            update keys.users
               set totp_secret = null, totp_confirmed_at = null, updated_at = $2
             where id = $1"#,
            user.uuid(),
            self.at.to_sqlx(),
        );
        update.execute(&mut *self.inner).await?;
        self.set_recovery_codes(user, &[]).await
    }

    /// Replaces the recovery codes. The user is locked.
    pub(crate) async fn set_recovery_codes(
        &mut self,
        user: UserId,
        hashes: &[[u8; 32]],
    ) -> Result<()> {
        let delete = sqlx::query!(
            "delete from keys.recovery_codes where user_id = $1",
            user.uuid(),
        );
        delete.execute(&mut *self.inner).await?;
        let hashes: Vec<Vec<u8>> = hashes.iter().map(|hash| hash.to_vec()).collect();
        let insert = sqlx::query!(
            r#"
            insert into keys.recovery_codes (user_id, code_hash)
            select $1, hash from unnest($2::bytea[]) h (hash)"#,
            user.uuid(),
            &hashes,
        );
        insert.execute(&mut *self.inner).await?;
        Ok(())
    }

    /// Uses a recovery code up; false when it is wrong or was used.
    pub(crate) async fn use_recovery_code(
        &mut self,
        user: UserId,
        hash: &[u8; 32],
    ) -> Result<bool> {
        let update = sqlx::query!(
            r#"
            update keys.recovery_codes
               set used_at = $3
             where user_id = $1 and code_hash = $2 and used_at is null"#,
            user.uuid(),
            &hash[..],
            self.at.to_sqlx() as _,
        );
        Ok(update.execute(&mut *self.inner).await?.rows_affected() == 1)
    }
}
