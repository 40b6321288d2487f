//! Stored things as messages.

use std::net::IpAddr;

use jiff::Timestamp;
use proto::{convert::timestamp, keys::v1 as pb};
use types::Scope;

use crate::{
    domain::{
        catalogue::{Route, Service},
        invitation::Invitation,
        key::ApiKey,
        policy::Policy,
    },
    store::{AuditEntry, Member, MemberOf, Organisation, User},
};

fn texts<T: ToString>(values: &[T]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

/// A key as people see it: never its hash.
pub(super) fn key(key: &ApiKey, now: Timestamp) -> pb::Key {
    let settings = &key.settings;
    let revoked = key.revoked.as_ref();
    pb::Key {
        key_id: key.id.to_string(),
        org_id: key.org.to_string(),
        created_by: key.created_by.to_string(),
        name: settings.name.clone(),
        prefix: key.environment.key_prefix().to_owned(),
        hint: key.hint.clone(),
        scopes: texts(&settings.scopes),
        environment: key.environment.as_str().to_owned(),
        daily_quota: settings.daily_quota,
        monthly_quota: settings.monthly_quota,
        rate_per_second: settings.rate.map(|rate| rate.per_second),
        burst: settings.rate.map_or(0, |rate| rate.burst),
        allow: texts(&settings.allow),
        metadata: settings.metadata.clone().into_iter().collect(),
        status: key.status(now).to_owned(),
        revoked_reason: revoked
            .map(|revoked| revoked.reason.clone())
            .unwrap_or_default(),
        revoked_at: revoked.map(|revoked| timestamp(revoked.at)),
        expires_at: settings.expires_at.map(timestamp),
        last_used_at: key.last_used_at.map(timestamp),
        last_used_ip: key
            .last_used_ip
            .as_ref()
            .map(IpAddr::to_string)
            .unwrap_or_default(),
        created_at: Some(timestamp(key.created_at)),
        version: key.version,
        rotated_from: key
            .rotated_from
            .map(|key| key.to_string())
            .unwrap_or_default(),
        rotated_to: key
            .rotated_to
            .map(|key| key.to_string())
            .unwrap_or_default(),
        limits_key_id: key.limits_key.to_string(),
        suspended_reason: key.held_reason().unwrap_or_default().to_owned(),
        throttled: key.restraints.throttle.is_some(),
    }
}

/// A key as a gateway needs it.
pub(super) fn record(key: &ApiKey) -> pb::KeyRecord {
    let settings = &key.settings;
    pb::KeyRecord {
        key_id: key.id.to_string(),
        org_id: key.org.to_string(),
        created_by: key.created_by.to_string(),
        test: key.environment == types::Environment::Test,
        scopes: texts(&settings.scopes),
        active: settings.active,
        revoked: key.revoked.is_some(),
        expires_at: settings.expires_at.map(timestamp),
        daily_quota: settings.daily_quota,
        monthly_quota: settings.monthly_quota,
        rate_per_second: settings.rate.map(|rate| rate.per_second),
        burst: settings.rate.map_or(0, |rate| rate.burst),
        allow: texts(&settings.allow),
        version: key.version,
        limits_key_id: key.limits_key.to_string(),
        throttle_per_second: key
            .restraints
            .throttle
            .as_ref()
            .map(|throttle| throttle.per_second),
    }
}

fn route(route: &Route) -> pb::Route {
    pb::Route {
        route_id: route.id.to_string(),
        method: route.place.method.clone(),
        path_prefix: route.place.path_prefix.clone(),
        scope: route.settings.scope.to_string(),
        cost: route.settings.cost,
        charge_on: route.settings.charge_on.clone(),
        durability: route.settings.durability.clone(),
        body_bytes_max: route.settings.body_bytes_max,
        timeout_ms: route.settings.timeout_ms,
        idle_timeout_ms: route.settings.idle_timeout_ms,
        total_timeout_ms: route.settings.total_timeout_ms,
        unit_prices: route
            .settings
            .pricing
            .unit_prices
            .iter()
            .map(Into::into)
            .collect(),
        max_cost: route.settings.pricing.max_cost,
        unreported: match route.settings.pricing.max_cost {
            0 => String::new(),
            _ => route.settings.pricing.unreported.clone(),
        },
        on_client_abort: route.settings.pricing.on_client_abort.clone(),
        on_server_abort: route.settings.pricing.on_server_abort.clone(),
    }
}

pub(super) fn service(service: &Service) -> pb::Service {
    pb::Service {
        service_id: service.id.to_string(),
        name: service.name.to_string(),
        display_name: service.settings.display_name.clone(),
        description: service.settings.description.clone(),
        upstream_url: service.settings.upstream_url.clone(),
        base_cost_per_call: service.settings.base_cost,
        icon: service.icon.clone(),
        category: service.category.clone(),
        active: service.settings.active,
        routes: service.routes.iter().map(route).collect(),
        price_version: service.price_version,
        version: service.version,
        protocol: service.settings.manner.protocol.clone(),
        connections_max: service.settings.manner.connections_max,
        connect_timeout_ms: service.settings.manner.connect_timeout_ms,
        health_path: service.settings.manner.health_path.clone(),
    }
}

pub(super) fn scopes(scopes: &[Scope]) -> Vec<String> {
    texts(scopes)
}

pub(super) fn organisation(organisation: &Organisation) -> pb::Organisation {
    pb::Organisation {
        org_id: organisation.id.to_string(),
        name: organisation.name.clone(),
        slug: organisation.slug.clone(),
        owner_id: organisation.owner.to_string(),
        created_at: Some(timestamp(organisation.created_at)),
        version: organisation.version,
    }
}

pub(super) fn member(member: &Member) -> pb::Member {
    pb::Member {
        user_id: member.user.to_string(),
        email: member.email.clone(),
        role: member.role.as_str().to_owned(),
        joined_at: Some(timestamp(member.joined_at)),
        version: member.version,
    }
}

pub(super) fn audit_entry(entry: &AuditEntry) -> pb::AuditEntry {
    pb::AuditEntry {
        id: entry.id,
        actor: entry.actor.clone(),
        action: entry.action.clone(),
        target: entry.target.clone(),
        details: entry.details.to_string(),
        at: Some(timestamp(entry.at)),
        address: entry
            .address
            .as_ref()
            .map(IpAddr::to_string)
            .unwrap_or_default(),
    }
}

pub(super) fn user(user: &User) -> pb::User {
    pb::User {
        user_id: user.id.to_string(),
        email: user.email.clone(),
        name: user.name.clone(),
        email_verified: user.email_verified,
        second_factor: user.totp_confirmed,
        recovery_codes: u32::try_from(user.recovery_codes).unwrap_or_default(),
        session_epoch: user.session_epoch,
        created_at: Some(timestamp(user.created_at)),
        language: user.language.as_str().to_owned(),
    }
}

pub(super) fn place(membership: &MemberOf) -> pb::MembershipOf {
    pb::MembershipOf {
        org_id: membership.org.to_string(),
        name: membership.name.clone(),
        slug: membership.slug.clone(),
        role: membership.role.as_str().to_owned(),
        joined_at: Some(timestamp(membership.joined_at)),
    }
}

pub(super) fn invitation(invitation: &Invitation, now: Timestamp) -> pb::Invitation {
    pb::Invitation {
        invitation_id: invitation.id.to_string(),
        org_id: invitation.org.to_string(),
        email: invitation.email.clone(),
        role: invitation.role.as_str().to_owned(),
        status: invitation.status(now).to_owned(),
        invited_by: invitation.invited_by.clone(),
        created_at: Some(timestamp(invitation.created_at)),
        expires_at: Some(timestamp(invitation.expires_at)),
    }
}

pub(super) fn policy(policy: &Policy, version: i64) -> pb::Policy {
    pb::Policy {
        live_keys_need_second_factor: policy.live_keys_need_second_factor,
        key_lifetime_seconds_max: policy.key_lifetime_seconds_max,
        developers_may_create_live_keys: policy.developers_may_create_live_keys,
        leak_action: policy.leak_action.as_str().to_owned(),
        anomaly_action: policy.anomaly_action.as_str().to_owned(),
        version,
        allowed_origins: policy.origin_texts(),
    }
}
