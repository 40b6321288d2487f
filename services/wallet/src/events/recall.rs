//! Asking the holders of a wallet's credits to give back what they can spare.

use std::time::Duration;

use async_nats::{Client, Request};
use futures_util::future::join_all;
use prost::Message;
use proto::events::v1::{RecallRequest, RecallResponse};
use types::{Credits, JournalId, LeaseId};

use crate::domain::Report;

/// A holder that has not answered by then is passed over; it will tell by heartbeat.
const ANSWER_MILLIS_MAX: Duration = Duration::from_millis(50);

/// Sends recalls.
#[derive(Clone)]
pub(crate) struct Recall {
    nats: Client,
}

impl Recall {
    pub(crate) fn new(nats: Client) -> Self {
        Self { nats }
    }

    /// Asks all holders at once. What does not answer, or not sensibly, is left out.
    pub(crate) async fn ask(&self, holders: &[(JournalId, LeaseId)]) -> Vec<Report> {
        let answers = holders
            .iter()
            .map(|(journal, lease)| self.ask_one(*journal, *lease));
        join_all(answers).await.into_iter().flatten().collect()
    }

    async fn ask_one(&self, journal: JournalId, lease: LeaseId) -> Option<Report> {
        let subject = format!("wallet.v1.recall.{journal}");
        let question = RecallRequest {
            lease_id: lease.bytes().to_vec(),
        };
        let request = Request::new()
            .payload(question.encode_to_vec().into())
            .timeout(Some(ANSWER_MILLIS_MAX));
        let message = match self.nats.send_request(subject, request).await {
            Ok(message) => message,
            Err(error) => {
                tracing::debug!(journal.id = %journal, lease.id = %lease, %error, "no answer");
                return None;
            }
        };
        match RecallResponse::decode(message.payload) {
            Ok(answer) if answer.lease_id == lease.bytes() => Some(Report {
                journal,
                lease,
                cum: Credits::ZERO,
                returned_cum: Credits::new(answer.returned_cum),
            }),
            _ => {
                tracing::warn!(journal.id = %journal, lease.id = %lease, "senseless answer");
                None
            }
        }
    }
}
