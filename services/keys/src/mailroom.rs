//! Sends the mails of the outbox.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use jiff::SignedDuration;
use lettre::{
    AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor,
    message::{
        Body, Mailbox, MultiPart, SinglePart,
        header::{ContentTransferEncoding, ContentType},
    },
};
use runtime::{Clock, Stop, crash_point};
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::store::{Store, Waiting};

/// Without a nudge the outbox is looked into this often.
const POLL: Duration = Duration::from_secs(2);
/// While the database cannot be reached, the pause is this.
const PAUSE: Duration = Duration::from_secs(5);
/// A mail server that takes longer has failed.
const SEND_MAX: Duration = Duration::from_secs(20);
/// After n failures a mail is tried again in 2ⁿ × 5 s, at most an hour.
const RETRY_SECONDS: i64 = 5;
const RETRY_SECONDS_MAX: i64 = 3600;

/// A way to a mail server.
pub(crate) struct Server {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
}

impl Server {
    /// Reads `smtp://…` or `smtps://…`; connects when there is something to send.
    pub(crate) fn new(url: &str, from: &str) -> anyhow::Result<Self> {
        Ok(Self {
            transport: AsyncSmtpTransport::<Tokio1Executor>::from_url(url)?
                .timeout(Some(SEND_MAX))
                .build(),
            from: from.parse().context("the sender is no mailbox")?,
        })
    }

    async fn send(&self, mail: &Waiting) -> anyhow::Result<()> {
        // The simplest part first: readers show the last that they understand.
        let parts = MultiPart::alternative()
            .singlepart(part(ContentType::TEXT_PLAIN, &mail.body)?)
            .singlepart(part(ContentType::TEXT_HTML, &mail.html)?);
        let message = Message::builder()
            .from(self.from.clone())
            .to(Mailbox::new(None, mail.recipient.parse()?))
            .subject(mail.subject.clone())
            // The same for every try: receivers can drop what they have.
            .message_id(Some(format!("<{}@tollgate>", mail.id)))
            .multipart(parts)?;
        self.transport.send(message).await?;
        Ok(())
    }
}

fn part(kind: ContentType, text: &str) -> anyhow::Result<SinglePart> {
    // Lines of any length arrive whole, whatever is in between.
    let encoding = ContentTransferEncoding::QuotedPrintable;
    let body = Body::new_with_encoding(text.to_owned(), encoding)
        .map_err(|_body| anyhow::anyhow!("the text cannot be encoded"))?;
    Ok(SinglePart::builder().header(kind).body(body))
}

/// Sends committed mails, at least once.
pub(crate) struct Mailroom {
    store: Store,
    clock: Clock,
    server: Option<Server>,
    nudge: Arc<Notify>,
}

impl Mailroom {
    pub(crate) fn new(
        store: Store,
        clock: Clock,
        server: Option<Server>,
        nudge: Arc<Notify>,
    ) -> Self {
        Self {
            store,
            clock,
            server,
            nudge,
        }
    }

    /// Runs until told to stop. Without a mail server the mails stay where they are.
    pub(crate) async fn run(self, stop: Stop) {
        let Some(server) = &self.server else {
            let waiting = self.store.mails_waiting().await.unwrap_or_default();
            warn!(
                mails.waiting = waiting,
                "no mail is sent: TOLLGATE_KEYS_SMTP_URL is not set, mails stay in the outbox"
            );
            return;
        };
        let mut is_failing = false;
        loop {
            let pause = tokio::select! {
                outcome = self.send_one(server) => match outcome {
                    Ok(true) => {
                        is_failing = false;
                        continue;
                    }
                    Ok(false) => POLL,
                    Err(error) => {
                        if !is_failing {
                            warn!(error = format!("{error:#}"), "the outbox cannot be read");
                        }
                        is_failing = true;
                        PAUSE
                    }
                },
                () = stop.requested() => return,
            };
            tokio::select! {
                () = stop.requested() => return,
                () = self.nudge.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Sends the mail that is due longest, then marks it: the other order would lose it if we die
    /// in between. False when none is due.
    async fn send_one(&self, server: &Server) -> anyhow::Result<bool> {
        let mut tx = self.store.work("mailroom", self.clock.now()).await?;
        let Some(mail) = tx.claim_mail().await? else {
            return Ok(false);
        };
        let sent = tokio::time::timeout(SEND_MAX, server.send(&mail)).await;
        match sent.context("the mail server takes too long").flatten() {
            Ok(()) => {
                crash_point!("keys.mail_sent");
                tx.mark_sent(mail.id).await?;
                info!(mail.id = %mail.id, mail.template = mail.template, "a mail was sent");
            }
            Err(error) => {
                let due = self
                    .clock
                    .now()
                    .saturating_add(retry_after(mail.attempts))?;
                tx.put_off(mail.id, due).await?;
                warn!(
                    mail.id = %mail.id,
                    mail.template = mail.template,
                    error = format!("{error:#}"),
                    "a mail could not be sent and is tried again"
                );
            }
        }
        tx.commit().await?;
        Ok(true)
    }
}

fn retry_after(attempts: i32) -> SignedDuration {
    let doublings = u32::try_from(attempts.clamp(0, 20)).unwrap_or_default();
    let seconds = RETRY_SECONDS.saturating_mul(1_i64 << doublings);
    SignedDuration::from_secs(seconds.min(RETRY_SECONDS_MAX))
}
