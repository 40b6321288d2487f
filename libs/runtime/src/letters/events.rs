//! Letters with events of other services: published again, or taken away. There is no inbox.

use async_nats::HeaderMap;
use proto::letters::v1 as wire;
use tonic::{Status, async_trait};
use types::Code;

use super::{
    Decision, Keeper, RETRIED, decided, open, status, table::Letter, take_away_whole, to_wire,
    unknown,
};
use crate::host::Host;

/// The letters of a service that follows events and consumes no usage.
pub(crate) struct Events {
    host: Host,
    schema: &'static str,
}

impl Events {
    pub(crate) fn new(host: Host, schema: &'static str) -> Self {
        Self { host, schema }
    }
}

#[async_trait]
impl Keeper for Events {
    fn host(&self) -> &Host {
        &self.host
    }

    fn schema(&self) -> &'static str {
        self.schema
    }

    async fn look(&self, id: i64) -> Result<wire::GetLetterResponse, Status> {
        let (_, found) = open(self, id).await?;
        let (letter, _) = found.ok_or_else(|| unknown(id))?;
        Ok(show(&letter))
    }

    async fn retry(&self, id: i64) -> Result<wire::RetryLetterResponse, Status> {
        let (_, found) = open(self, id).await?;
        let (letter, payload) = found.ok_or_else(|| unknown(id))?;
        publish(&self.host, letter, payload).await
    }

    async fn discard(&self, decision: &Decision) -> Result<wire::DiscardLetterResponse, Status> {
        let (transaction, found) = open(self, decision.id).await?;
        match found {
            Some((letter, payload)) => {
                take_away_whole(self, transaction, (&letter, &payload), decision).await
            }
            None => decided(self, transaction, decision.id).await,
        }
    }
}

/// An event, of which nothing but its letter is shown: it may be about people.
pub(super) fn show(letter: &Letter) -> wire::GetLetterResponse {
    wire::GetLetterResponse {
        letter: Some(to_wire(letter)),
        records: Vec::new(),
        unreadable: String::new(),
    }
}

/// Publishes an event again. Everybody who follows it is used to repetitions.
pub(super) async fn publish(
    host: &Host,
    letter: Letter,
    payload: Vec<u8>,
) -> Result<wire::RetryLetterResponse, Status> {
    let mut headers = HeaderMap::new();
    headers.insert(RETRIED, letter.id.to_string().as_str());
    let streams = host.streams();
    let sent = streams.put(letter.subject, headers, payload.into());
    if let Err(error) = sent.await {
        tracing::warn!(
            error = format!("{error:#}"),
            "an event was not published again"
        );
        return Err(status(Code::Unavailable, "NATS did not take it, try again"));
    }
    Ok(wire::RetryLetterResponse {
        applied: 0,
        is_gone: false,
    })
}
