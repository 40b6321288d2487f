//! Reading the audit log.

use proto::{
    convert::{page, parse_id},
    keys::v1 as pb,
};
use runtime::Actor;
use tonic::Status;

use super::{Keys, operators_only, page_of, scope, wire};
use crate::{domain::rights::AuditView, error::Error, store::AuditFilter};

impl Keys {
    pub(super) async fn audit_log(
        &self,
        actor: Actor,
        request: pb::ListAuditLogRequest,
    ) -> Result<pb::ListAuditLogResponse, Status> {
        let mut filter = AuditFilter::default();
        if request.org_id.is_empty() {
            operators_only(actor, "read the whole audit log: name an organisation")?;
        } else {
            let org = parse_id("org_id", &request.org_id)?;
            filter.org = Some(org);
            match self.authority(actor, org).await?.audit_view() {
                AuditView::All => {}
                AuditView::ActionsOf(user) => filter.actor = Some(user.to_string()),
                AuditView::Billing => filter.action = Some("billing.%"),
            }
        }
        let before: Option<i64> = match (request.page_token.as_str(), request.page_token.parse()) {
            ("", _) => None,
            (_, Ok(before)) => Some(before),
            (_, Err(_)) => {
                let problem = "must be the `next_page_token` of a page before";
                return Err(Error::invalid("page_token", problem).into());
            }
        };
        let size = page(request.page_size);
        let entries = self
            .store
            .audit_log(scope(actor), &filter, before, size + 1)
            .await?;
        let (entries, next_page_token) = page_of(entries, size, |entry| entry.id.to_string());
        let entries = entries.iter().map(wire::audit_entry).collect();
        Ok(pb::ListAuditLogResponse {
            entries,
            next_page_token,
        })
    }

    pub(super) async fn check_audit_log(
        &self,
        actor: Actor,
    ) -> Result<pb::VerifyAuditLogResponse, Status> {
        operators_only(actor, "verify the audit log")?;
        // The whole chain, whoever asks: a part proves nothing.
        let mut tx = self.store.work(actor, self.host.clock().now()).await?;
        let (verifier, head) = tx.walk_audit_log().await?;
        let (rows, problems) = verifier.finish(&head);
        let problems = problems.into_iter().map(|(id, problem)| pb::AuditProblem {
            id,
            kind: problem.as_str().to_owned(),
        });
        Ok(pb::VerifyAuditLogResponse {
            rows,
            problems: problems.collect(),
            head: head.hash.to_vec(),
        })
    }
}
