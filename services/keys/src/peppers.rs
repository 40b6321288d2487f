//! The peppers of this process: replaced when their files are, and known to the others.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use runtime::{Clock, Generation, Host};
use secrecy::ExposeSecret;
use serde_json::json;
use tracing::{info, warn};
use types::{Kind, Peppers};
use uuid::Uuid;

use crate::{
    SYSTEM,
    domain::pepper::{self, Ids, Standing},
    error::Result,
    metrics::Metrics,
    store::{Instance, Store},
};

/// Between two reports of what this process has.
const REPORT: Duration = Duration::from_secs(1);
/// Between two counts of keys by pepper: it reads an entry of an index for each.
const COUNT: Duration = Duration::from_secs(30);
/// A process that was seen within this time lives.
pub(crate) const LIVE_SECONDS: i64 = 5;

/// The kind of the id of a process of this service.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Process;

impl Kind for Process {
    const PREFIX: &'static str = "prc";
}

/// What keys are hashed with.
pub(crate) type Current = Arc<ArcSwap<Peppers>>;

/// Reads a generation of peppers.
pub(crate) fn read(generation: &Generation) -> anyhow::Result<Peppers> {
    let previous = generation.previous.as_ref();
    Peppers::new(
        generation.current.expose_secret(),
        previous.map(ExposeSecret::expose_secret),
    )
    .context("API_KEY_PEPPER or API_KEY_PEPPER_PREVIOUS")
}

/// Who seen since then lives at `now`.
pub(crate) fn live_since(now: Timestamp) -> Timestamp {
    now.saturating_sub(SignedDuration::from_secs(LIVE_SECONDS))
        .unwrap_or(Timestamp::MIN)
}

/// Says what this process hashes keys with, and how many keys wait for it.
pub(crate) struct Holder {
    store: Store,
    clock: Clock,
    peppers: Current,
    metrics: Metrics,
    id: Uuid,
    /// What the audit log has from us.
    noted: Mutex<Option<Ids>>,
}

/// Keeps the peppers current from here on.
pub(crate) fn keep(
    host: &Host,
    succession: runtime::Succession,
    store: Store,
    peppers: Current,
    metrics: Metrics,
) {
    let holder = Arc::new(Holder {
        store,
        clock: host.clock(),
        peppers: Arc::clone(&peppers),
        metrics,
        id: host.ids().new_id::<Process>().uuid(),
        noted: Mutex::new(None),
    });
    host.watch("reload-peppers", succession, move |generation| {
        let loaded = read(generation)?;
        if loaded.ids() != peppers.load().ids() {
            let (pepper, before) = loaded.ids();
            peppers.store(Arc::new(loaded));
            info!(pepper, before, "keys are hashed with other peppers");
        }
        Ok(())
    });
    let own = Arc::clone(&holder);
    host.every("report-peppers", REPORT, move || {
        let own = Arc::clone(&own);
        async move {
            if let Err(error) = own.report().await {
                warn!(%error, "what this process hashes keys with is not known to the others");
            }
        }
    });
    host.every("count-keys-by-pepper", COUNT, move || {
        let own = Arc::clone(&holder);
        async move {
            if let Err(error) = own.count().await {
                warn!(%error, "keys were not counted by pepper");
            }
        }
    });
}

impl Holder {
    async fn report(&self) -> Result<()> {
        let ids = self.peppers.load().ids();
        let now = self.clock.now();
        let instance = Instance {
            id: self.id,
            peppers: ids.clone(),
        };
        self.store.note_instance(&instance, now).await?;
        if self.noted.lock().as_ref() == Some(&ids) {
            return Ok(());
        }
        let mut tx = self.store.work(SYSTEM, now).await?;
        let before = tx.load_peppers(&ids).await?;
        let change = before
            .as_ref()
            .and_then(|before| pepper::change(before, &ids));
        if let (Some(before), Some(action)) = (before, change) {
            let facts = |(pepper, before): &Ids| json!({ "pepper": pepper, "previous": before });
            let details = json!({ "before": facts(&before), "after": facts(&ids) });
            tx.audit(None, action, &ids.0, details);
        }
        tx.commit().await?;
        *self.noted.lock() = Some(ids);
        Ok(())
    }

    async fn count(&self) -> Result<()> {
        let ids = self.peppers.load().ids();
        let standing = Standing::of(&self.store.pepper_counts().await?, &ids);
        self.metrics.peppers(standing);
        if standing.lost > 0 {
            warn!(
                keys.lost = standing.lost,
                "keys are hashed with a pepper that is not configured, they cannot be used"
            );
        }
        Ok(())
    }
}

/// Forgets processes that are gone, and, once the pepper before is gone everywhere, what was hashed
/// with it.
pub(crate) async fn keep_house(store: &Store, peppers: &Current, now: Timestamp) -> Result<()> {
    store.forget_instances(live_since(now)).await?;
    let ids = peppers.load().ids();
    let is_alone = ids.1.is_none();
    let gateways = store.gateways_since(live_since(now)).await?;
    let instances = store.instances_since(live_since(now)).await?;
    let mut all = gateways
        .iter()
        .map(|gateway| &gateway.peppers)
        .chain(instances.iter().map(|instance| &instance.peppers));
    if is_alone && all.all(|theirs| *theirs == ids) {
        store.forget_previous_hashes(&ids.0).await?;
    }
    Ok(())
}
