//! Mails that wait to be sent.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use sqlx::PgConnection;
use types::{OrgId, Role, UserId};
use uuid::Uuid;

use super::{Store, Tx};
use crate::{
    balances::Low,
    domain::mail::{Language, Mail, Reader},
    error::Result,
};

/// A mail from the outbox.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) id: Uuid,
    pub(crate) recipient: String,
    pub(crate) template: String,
    pub(crate) subject: String,
    pub(crate) body: String,
    pub(crate) html: String,
    pub(crate) attempts: i32,
}

struct ReaderRow {
    email: String,
    language: String,
}

impl TryFrom<ReaderRow> for Reader {
    type Error = crate::error::Error;

    fn try_from(row: ReaderRow) -> Result<Self> {
        Ok(Self {
            address: row.email,
            language: Language::parse(&row.language)?,
        })
    }
}

impl Store {
    /// Mails that were not sent yet.
    pub(crate) async fn mails_waiting(&self) -> Result<i64> {
        let select = sqlx::query_scalar!(
            r#"select count(*) as "count!" from keys.outbox_mail where sent_at is null"#,
        );
        Ok(select.fetch_one(&self.pool).await?)
    }

    /// Whoever has an address, if anybody; asked by the service: to who writes to a stranger it is
    /// not told.
    pub(crate) async fn reader_of(&self, email: &str) -> Result<Option<Reader>> {
        reader_of(&mut *self.pool.acquire().await?, email).await
    }
}

async fn reader_of(connection: &mut PgConnection, email: &str) -> Result<Option<Reader>> {
    let select = sqlx::query_as!(
        ReaderRow,
        "select email, language from keys.users where email = $1",
        email,
    );
    let row = select.fetch_optional(connection).await?;
    row.map(Reader::try_from).transpose()
}

impl Tx {
    /// Who reads mail about an organisation: its members of these roles, and one member more.
    pub(crate) async fn readers(
        &mut self,
        org: OrgId,
        roles: &[Role],
        and: Option<UserId>,
    ) -> Result<Vec<Reader>> {
        let roles: Vec<String> = roles.iter().map(|it| it.as_str().to_owned()).collect();
        let select = sqlx::query_as!(
            ReaderRow,
            r#"
            select u.email as "email!", u.language as "language!"
              from keys.organisation_members m
              join keys.people_of($1) u on u.id = m.user_id
             where m.org_id = $1 and (m.role = any($2) or m.user_id = $3)
             order by u.email"#,
            org.uuid(),
            &roles,
            and.map(UserId::uuid),
        );
        let rows = select.fetch_all(&mut *self.inner).await?;
        rows.into_iter().map(Reader::try_from).collect()
    }

    /// Whoever has an address, if anybody.
    pub(crate) async fn reader_of(&mut self, email: &str) -> Result<Option<Reader>> {
        reader_of(&mut self.inner, email).await
    }

    /// A user who is mailed, or whose name stands in a mail.
    pub(crate) async fn reader(&mut self, user: UserId) -> Result<Reader> {
        let select = sqlx::query_as!(
            ReaderRow,
            "select email, language from keys.users where id = $1",
            user.uuid(),
        );
        select.fetch_one(&mut *self.inner).await?.try_into()
    }

    /// Notes that a crossing of a low balance is told; false when it was before.
    pub(crate) async fn note_low_balance(&mut self, low: &Low) -> Result<bool> {
        let insert = sqlx::query!(
            r#"
            insert into keys.low_balances (org_id, reference_at, percent, mailed_at)
            values ($1, $2, $3, $4)
            on conflict (org_id, reference_at, percent) do nothing"#,
            low.org.uuid(),
            low.reference_at.to_sqlx(),
            low.percent,
            self.at.to_sqlx(),
        );
        Ok(insert.execute(&mut *self.inner).await?.rows_affected() == 1)
    }

    /// Puts a mail into the outbox: it is sent once this transaction has committed.
    pub(crate) async fn post(&mut self, id: Uuid, mail: &Mail) -> Result<()> {
        let insert = sqlx::query!(
            r#"
            insert into keys.outbox_mail
                (id, recipient, template, subject, body, html, created_at, due_at)
            values ($1, $2, $3, $4, $5, $6, $7, $7)"#,
            id,
            mail.recipient,
            mail.template,
            mail.subject,
            mail.body,
            mail.html,
            self.at.to_sqlx(),
        );
        insert.execute(&mut *self.inner).await?;
        Ok(())
    }

    /// Takes the mail that is due longest and that no other instance is sending.
    pub(crate) async fn claim_mail(&mut self) -> Result<Option<Waiting>> {
        let select = sqlx::query_as!(
            Waiting,
            r#"
            select id, recipient, template, subject, body, html, attempts
              from keys.outbox_mail
             where sent_at is null and due_at <= $1
             order by due_at
             limit 1
               for update skip locked"#,
            self.at.to_sqlx(),
        );
        Ok(select.fetch_optional(&mut *self.inner).await?)
    }

    /// Notes that a mail was sent, and forgets its text: it may hold a token.
    pub(crate) async fn mark_sent(&mut self, mail: Uuid) -> Result<()> {
        let update = sqlx::query!(
            r#"
            update keys.outbox_mail
               set sent_at = $2, attempts = attempts + 1, body = '', html = ''
             where id = $1"#,
            mail,
            self.at.to_sqlx() as _,
        );
        update.execute(&mut *self.inner).await?;
        Ok(())
    }

    /// Notes a failure; the mail is tried again at `due`.
    pub(crate) async fn put_off(&mut self, mail: Uuid, due: Timestamp) -> Result<()> {
        let update = sqlx::query!(
            "update keys.outbox_mail set attempts = attempts + 1, due_at = $2 where id = $1",
            mail,
            due.to_sqlx(),
        );
        update.execute(&mut *self.inner).await?;
        Ok(())
    }
}
