//! Mails that wait to be sent.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use uuid::Uuid;

use super::{Store, Tx};
use crate::{domain::mail::Mail, error::Result};

/// A mail from the outbox.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) id: Uuid,
    pub(crate) recipient: String,
    pub(crate) template: String,
    pub(crate) subject: String,
    pub(crate) body: String,
    pub(crate) attempts: i32,
}

impl Store {
    /// Mails that were not sent yet.
    pub(crate) async fn mails_waiting(&self) -> Result<i64> {
        let select = sqlx::query_scalar!(
            r#"select count(*) as "count!" from keys.outbox_mail where sent_at is null"#,
        );
        Ok(select.fetch_one(&self.pool).await?)
    }
}

impl Tx {
    /// Puts a mail into the outbox: it is sent once this transaction has committed.
    pub(crate) async fn post(&mut self, id: Uuid, mail: &Mail) -> Result<()> {
        let insert = sqlx::query!(
            r#"
            insert into keys.outbox_mail
                (id, recipient, template, subject, body, created_at, due_at)
            values ($1, $2, $3, $4, $5, $6, $6)"#,
            id,
            mail.recipient,
            mail.template,
            mail.subject,
            mail.body,
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
            select id, recipient, template, subject, body, attempts
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
               set sent_at = $2, attempts = attempts + 1, body = ''
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
