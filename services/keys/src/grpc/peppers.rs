//! The state of the peppers, for operators.

use proto::keys::v1 as pb;
use runtime::Actor;
use tonic::Status;
use types::Id;

use super::{Keys, operators_only};
use crate::{
    domain::pepper::Ids,
    peppers::{Process, live_since},
};

fn holder(service: &str, name: String, (pepper, previous): Ids) -> pb::PepperHolder {
    pb::PepperHolder {
        service: service.to_owned(),
        name,
        pepper_id: pepper,
        previous_pepper_id: previous.unwrap_or_default(),
    }
}

impl Keys {
    pub(super) async fn pepper_state(
        &self,
        actor: Actor,
    ) -> std::result::Result<pb::GetPeppersResponse, Status> {
        operators_only(actor, "see who has which pepper")?;
        let since = live_since(self.host.clock().now());
        let instances = self.store.instances_since(since).await?.into_iter();
        let mut holders: Vec<_> = instances
            .map(|it| holder("keys", Id::<Process>::new(it.id).to_string(), it.peppers))
            .collect();
        let gateways = self.store.gateways_since(since).await?.into_iter();
        holders.extend(gateways.map(|it| holder("gateway", it.name, it.peppers)));
        let counts = self.store.pepper_counts().await?.into_iter();
        let counts = counts.map(|(pepper_id, keys)| pb::PepperCount { pepper_id, keys });
        let (pepper_id, previous) = self.peppers.load().ids();
        Ok(pb::GetPeppersResponse {
            pepper_id,
            previous_pepper_id: previous.unwrap_or_default(),
            counts: counts.collect(),
            holders,
        })
    }
}
