//! Putting a message aside, whatever it takes.

use async_nats::jetstream::{AckKind, Message};

use super::{RETRY_MAX, RETRY_MIN};
use crate::{
    crash_point,
    host::{Host, Stop},
    letters::table::{self, Buried},
};

/// Keeps a message that breaks a rule, and terminates it; returns early only when asked to stop.
pub(super) async fn bury(
    host: &Host,
    schema: &'static str,
    message: &Message,
    reason: &str,
    stop: &Stop,
) -> anyhow::Result<()> {
    let info = message.info().map_err(|error| anyhow::anyhow!(error))?;
    let stream_seq = info.stream_sequence;
    let mut retry = RETRY_MIN;
    loop {
        let subject = message.subject.as_str();
        let attempt = async {
            let mut connection = host.postgres().acquire().await?;
            let buried = Buried {
                subject,
                stream_seq,
                reason,
                payload: &message.payload,
            };
            table::bury(&mut connection, schema, &buried).await
        };
        match attempt.await {
            Ok(new) => {
                crash_point!("consumer.dead_letter_committed");
                if new {
                    tracing::error!(
                        consumer = host.name(),
                        subject,
                        stream_seq,
                        reason,
                        "a usage batch breaks a rule and was put aside"
                    );
                    host.shared.usage.dead_letters(host.name());
                }
                message
                    .ack_with(AckKind::Term)
                    .await
                    .map_err(|error| anyhow::anyhow!(error))?;
                return Ok(());
            }
            Err(error) => {
                tracing::warn!(consumer = host.name(), %error, "a dead letter was not stored yet");
                tokio::select! {
                    () = tokio::time::sleep(retry) => {}
                    () = stop.requested() => return Ok(()),
                }
                retry = (retry * 2).min(RETRY_MAX);
            }
        }
    }
}
