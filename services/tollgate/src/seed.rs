//! `tollgate seed`: the three demo services, and an organisation to call them. Idempotent.

use std::collections::BTreeMap;

use clap::Subcommand;
use proto::{keys::v1 as wire, wallet::v1 as wallet_wire};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::connect::{Keys, System, Wallet};
use crate::failure::{Failure, Result};
use crate::output::Output;
use crate::{key, org};

/// Credits that the demo organisation is given, once.
const DEMO_CREDITS: i64 = 10_000;
const DEMO_NAME: &str = "Demo";
const DEMO_SLUG: &str = "demo";
const DEMO_OWNER: &str = "demo@example.com";
const ORGANISATIONS_MAX: u32 = 100_000;
const KEYS_MAX: u32 = 1_000;

/// A service that every installation can show.
struct DemoService {
    name: &'static str,
    display_name: &'static str,
    description: &'static str,
    cost: i64,
    /// Scope of everything that has no route of its own.
    scope: &'static str,
    /// Scope of GET, where it needs less.
    read_scope: Option<&'static str>,
}

const DEMO_SERVICES: [DemoService; 3] = [
    DemoService {
        name: "pdf",
        display_name: "PDF",
        description: "Renders text as a PDF document",
        cost: 1,
        scope: "pdf:write",
        read_scope: Some("pdf:read"),
    },
    DemoService {
        name: "ai",
        display_name: "AI",
        description: "Answers questions from the text they come with",
        cost: 3,
        scope: "ai:write",
        read_scope: Some("ai:read"),
    },
    DemoService {
        name: "mileage",
        display_name: "Mileage",
        description: "Computes distances between two places",
        cost: 1,
        scope: "mileage:calculate",
        read_scope: None,
    },
];

/// Where services send their calls, by name.
pub(crate) type Upstreams = BTreeMap<String, String>;

/// Seeds.
#[derive(Subcommand)]
pub(crate) enum Seed {
    /// Create pdf (1 credit), ai (3) and mileage (1) where they are missing
    Services {
        /// Where calls to pdf go; the sample of a running `tollgate dev` if absent
        #[arg(long, value_name = "URL")]
        pdf: Option<String>,
        /// Where calls to ai go
        #[arg(long, value_name = "URL")]
        ai: Option<String>,
        /// Where calls to mileage go
        #[arg(long, value_name = "URL")]
        mileage: Option<String>,
    },
    /// Create the organisation Demo with 10000 credits and two keys
    Demo,
}

pub(crate) async fn run(command: Seed, system: &System, output: &Output) -> Result {
    let mut keys = system.keys()?;
    match command {
        Seed::Services { pdf, ai, mileage } => {
            let samples = system.dev.as_ref().map(|dev| dev.samples.clone());
            let mut upstreams = samples.unwrap_or_default();
            let given = [("pdf", pdf), ("ai", ai), ("mileage", mileage)];
            let given = given
                .into_iter()
                .filter_map(|(name, url)| Some((name.to_owned(), url?)));
            upstreams.extend(given);
            let created = services(&mut keys, &upstreams, &Upstreams::new()).await?;
            output.record(&json!({ "created": created }));
        }
        Seed::Demo => {
            let known = system.dev.as_ref().map(|dev| DemoKeys {
                live: Some(dev.demo.live_key.clone()),
                test: Some(dev.demo.test_key.clone()),
                ..DemoKeys::default()
            });
            let demo = demo(&mut keys, &mut system.wallet()?, known.is_none()).await?;
            let known = known.unwrap_or_default();
            output.record(&json!({
                "org_id": demo.org_id,
                "user_id": demo.user_id,
                "live_balance": demo.live_balance,
                "live_key": demo.keys.live.or(known.live),
                "test_key": demo.keys.test.or(known.test),
            }));
        }
    }
    Ok(())
}

/// Creates missing services. One that still points to where it was `seeded` to follows its sample.
/// Whatever else was changed since stays. Returns the names of the new ones.
pub(crate) async fn services(
    keys: &mut Keys,
    upstreams: &Upstreams,
    seeded: &Upstreams,
) -> Result<Vec<&'static str>> {
    let listed = keys
        .list_services(wire::ListServicesRequest {})
        .await?
        .into_inner()
        .services;
    let mut created = Vec::new();
    for service in &DEMO_SERVICES {
        let upstream = upstreams.get(service.name);
        match listed.iter().find(|it| it.name == service.name) {
            Some(known) => {
                let is_ours = seeded.get(service.name) == Some(&known.upstream_url);
                if is_ours && upstream.is_some_and(|url| *url != known.upstream_url) {
                    let request = wire::SetServiceRequest {
                        name: service.name.to_owned(),
                        upstream_url: upstream.cloned(),
                        ..Default::default()
                    };
                    keys.set_service(request).await?;
                }
            }
            None => {
                service.create(keys, upstream).await?;
                created.push(service.name);
            }
        }
    }
    Ok(created)
}

impl DemoService {
    async fn create(&self, keys: &mut Keys, upstream: Option<&String>) -> Result {
        let Some(upstream) = upstream else {
            let name = self.name;
            return Err(Failure::usage(format!(
                "{name} is new: say where it is by --{name} URL"
            )));
        };
        let request = wire::SetServiceRequest {
            name: self.name.to_owned(),
            upstream_url: Some(upstream.clone()),
            base_cost_per_call: Some(self.cost),
            active: Some(true),
            display_name: Some(self.display_name.to_owned()),
            description: Some(self.description.to_owned()),
            default_scope: Some(self.scope.to_owned()),
            ..Default::default()
        };
        keys.set_service(request).await?;
        if let Some(scope) = self.read_scope {
            let route = wire::Route {
                method: "GET".to_owned(),
                path_prefix: "/".to_owned(),
                scope: scope.to_owned(),
                ..Default::default()
            };
            let request = wire::SetRouteRequest {
                service: self.name.to_owned(),
                route: Some(route),
                expected_version: None,
            };
            keys.set_route(request).await?;
        }
        Ok(())
    }
}

/// Keys of the demo organisation, as far as their text is known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DemoKeys {
    pub(crate) live_id: Option<String>,
    pub(crate) live: Option<String>,
    pub(crate) test_id: Option<String>,
    pub(crate) test: Option<String>,
}

/// The demo organisation as it is.
pub(crate) struct Demo {
    pub(crate) org_id: String,
    pub(crate) user_id: String,
    pub(crate) live_balance: i64,
    /// Those that were made just now.
    pub(crate) keys: DemoKeys,
}

/// Creates the organisation, gives it credits once and, if wanted, keys where it has none in use.
pub(crate) async fn demo(keys: &mut Keys, wallet: &mut Wallet, with_keys: bool) -> Result<Demo> {
    let (org_id, user_id) = organisation(keys).await?;
    let request = wallet_wire::GrantCreditsRequest {
        org_id: org_id.clone(),
        credits: DEMO_CREDITS,
        reason: "demo".to_owned(),
        idempotency_key: "demo".to_owned(),
    };
    wallet.grant_credits(request).await?;
    let request = wallet_wire::GetWalletRequest {
        org_id: org_id.clone(),
    };
    let live_balance = wallet.get_wallet(request).await?.into_inner().balance;
    let mut demo = Demo {
        org_id,
        user_id,
        live_balance,
        keys: DemoKeys::default(),
    };
    if with_keys {
        let wish = wire::ListKeysRequest {
            org_id: demo.org_id.clone(),
            ..Default::default()
        };
        let listed = key::list(keys, &wish, KEYS_MAX).await?;
        let lacks = |environment: &str| {
            !listed
                .iter()
                .any(|it| it.environment == environment && it.status == "active")
        };
        if lacks("production") {
            let made = demo.create_key(keys, "production").await?;
            (demo.keys.live_id, demo.keys.live) = (Some(made.key_id), Some(made.key));
        }
        if lacks("test") {
            let made = demo.create_key(keys, "test").await?;
            (demo.keys.test_id, demo.keys.test) = (Some(made.key_id), Some(made.key));
        }
    }
    Ok(demo)
}

/// Replaces keys whose text is not known or that are not in use any more.
pub(crate) async fn renew(keys: &mut Keys, demo: &Demo, known: &mut DemoKeys) -> Result {
    if known.live.is_none() || !is_active(keys, known.live_id.as_ref()).await? {
        let made = demo.create_key(keys, "production").await?;
        (known.live_id, known.live) = (Some(made.key_id), Some(made.key));
    }
    if known.test.is_none() || !is_active(keys, known.test_id.as_ref()).await? {
        let made = demo.create_key(keys, "test").await?;
        (known.test_id, known.test) = (Some(made.key_id), Some(made.key));
    }
    Ok(())
}

async fn is_active(keys: &mut Keys, key_id: Option<&String>) -> Result<bool> {
    let Some(key_id) = key_id else {
        return Ok(false);
    };
    match keys
        .get_key(wire::GetKeyRequest {
            key_id: key_id.clone(),
        })
        .await
    {
        Ok(found) => Ok(found
            .into_inner()
            .key
            .is_some_and(|key| key.status == "active")),
        Err(status) if status.code() == tonic::Code::NotFound => Ok(false),
        Err(status) => Err(status.into()),
    }
}

impl Demo {
    async fn create_key(
        &self,
        keys: &mut Keys,
        environment: &str,
    ) -> Result<wire::CreateKeyResponse> {
        let scopes = DEMO_SERVICES
            .iter()
            .flat_map(|it| [Some(it.scope), it.read_scope]);
        let request = wire::CreateKeyRequest {
            org_id: self.org_id.clone(),
            user_id: self.user_id.clone(),
            name: format!("Demo ({environment})"),
            environment: environment.to_owned(),
            scopes: scopes.flatten().map(str::to_owned).collect(),
            ..Default::default()
        };
        Ok(keys.create_key(request).await?.into_inner())
    }
}

/// Organisation and owner, created if they are not there.
async fn organisation(keys: &mut Keys) -> Result<(String, String)> {
    let listed = org::list(keys, ORGANISATIONS_MAX).await?;
    if let Some(known) = listed.into_iter().find(|org| org.slug == DEMO_SLUG) {
        return Ok((known.org_id, known.owner_id));
    }
    let request = wire::CreateOrganisationRequest {
        name: DEMO_NAME.to_owned(),
        slug: DEMO_SLUG.to_owned(),
        owner_email: DEMO_OWNER.to_owned(),
    };
    let made = keys.create_organisation(request).await?.into_inner();
    Ok((made.org_id, made.user_id))
}
