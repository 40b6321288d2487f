//! Keys.

use ipnet::IpNet;
use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use sqlx::{PgConnection, types::Json};
use types::{Environment, KeyHash, KeyHashes, KeyId, OrgId, Rate, Scope, UserId};
use uuid::Uuid;

use super::{Store, Tx, corrupt};
use crate::{
    domain::{
        anomaly::{Restraints, Throttle},
        key::{ApiKey, Revoked, Settings},
        metadata::Metadata,
        rights::OrgScope,
    },
    error::{Error, Result},
};

/// A key that is about to be stored.
#[derive(Debug)]
pub(crate) struct NewKeyRow {
    pub(crate) id: KeyId,
    pub(crate) org: OrgId,
    pub(crate) created_by: UserId,
    pub(crate) hashes: KeyHashes,
    pub(crate) hint: String,
    pub(crate) environment: Environment,
    /// The key it replaces, and what quota and rate are counted under; absent: itself.
    pub(crate) rotated_from: Option<(KeyId, KeyId)>,
}

/// Which keys of an organisation; `None` does not limit.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeyFilter {
    /// Created before this one.
    pub(crate) before: Option<KeyId>,
    pub(crate) limit: i64,
    pub(crate) status: Option<String>,
    /// Part of the name.
    pub(crate) name: Option<String>,
    pub(crate) among: Option<Vec<KeyId>>,
}

/// A gateway saw a key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyUse {
    pub(crate) key: KeyId,
    pub(crate) at: Timestamp,
    pub(crate) ip: Option<IpNet>,
}

struct KeyRow {
    id: Uuid,
    org_id: Uuid,
    created_by: Uuid,
    key_name: String,
    key_hash: Vec<u8>,
    previous_key_hash: Option<Vec<u8>>,
    key_hint: String,
    scopes: Json<Vec<String>>,
    environment: String,
    daily_quota: Option<i64>,
    monthly_quota: Option<i64>,
    rate_per_second: Option<i32>,
    burst: Option<i32>,
    allow: Json<Vec<String>>,
    metadata: Json<Metadata>,
    is_active: bool,
    revoked_at: Option<jiff_sqlx::Timestamp>,
    revoked_reason: Option<String>,
    last_used_at: Option<jiff_sqlx::Timestamp>,
    last_used_ip: Option<IpNet>,
    expires_at: Option<jiff_sqlx::Timestamp>,
    version: i64,
    created_at: jiff_sqlx::Timestamp,
    rotated_from: Option<Uuid>,
    rotated_to: Option<Uuid>,
    limits_key_id: Uuid,
    suspended_reason: Option<String>,
    throttle_per_second: Option<i32>,
    throttle_reason: Option<String>,
}

impl TryFrom<KeyRow> for ApiKey {
    type Error = Error;

    fn try_from(row: KeyRow) -> Result<Self> {
        let scopes: std::result::Result<Vec<Scope>, _> =
            row.scopes.0.iter().map(|text| text.parse()).collect();
        let allow: std::result::Result<Vec<IpNet>, _> =
            row.allow.0.iter().map(|text| text.parse()).collect();
        let calls = |number: i32| u32::try_from(number).map_err(|error| corrupt("rate", error));
        let rate = match row.rate_per_second {
            Some(per_second) => Some(Rate {
                per_second: calls(per_second)?,
                burst: calls(row.burst.unwrap_or(per_second))?,
            }),
            None => None,
        };
        let throttle = match row.throttle_per_second {
            Some(per_second) => Some(Throttle {
                per_second: calls(per_second)?,
                reason: row.throttle_reason.unwrap_or_default(),
            }),
            None => None,
        };
        let settings = Settings {
            name: row.key_name,
            scopes: scopes.map_err(|error| corrupt("scopes", error))?,
            daily_quota: row.daily_quota,
            monthly_quota: row.monthly_quota,
            rate,
            expires_at: row.expires_at.map(jiff_sqlx::Timestamp::to_jiff),
            allow: allow.map_err(|error| corrupt("allow", error))?,
            metadata: row.metadata.0,
            active: row.is_active,
        };
        Ok(Self {
            id: KeyId::new(row.id),
            org: OrgId::new(row.org_id),
            created_by: UserId::new(row.created_by),
            hash: hash(&row.key_hash)?,
            previous_hash: row.previous_key_hash.as_deref().map(hash).transpose()?,
            hint: row.key_hint,
            environment: row
                .environment
                .parse()
                .map_err(|error| corrupt("environment", error))?,
            settings,
            restraints: Restraints {
                suspended_reason: row.suspended_reason,
                throttle,
            },
            revoked: row.revoked_at.map(|at| Revoked {
                at: at.to_jiff(),
                reason: row.revoked_reason.unwrap_or_default(),
            }),
            last_used_at: row.last_used_at.map(jiff_sqlx::Timestamp::to_jiff),
            last_used_ip: row.last_used_ip.map(|net| net.addr()),
            created_at: row.created_at.to_jiff(),
            version: row.version,
            rotated_from: row.rotated_from.map(KeyId::new),
            rotated_to: row.rotated_to.map(KeyId::new),
            limits_key: KeyId::new(row.limits_key_id),
        })
    }
}

fn hash(bytes: &[u8]) -> Result<KeyHash> {
    KeyHash::from_slice(bytes).ok_or_else(|| corrupt("key_hash", "not 32 bytes"))
}

fn texts<T: ToString>(values: &[T]) -> Json<Vec<String>> {
    Json(values.iter().map(ToString::to_string).collect())
}

/// The table has `integer`; the domain allows no rate that does not fit.
fn calls(number: Option<u32>) -> Result<Option<i32>> {
    number
        .map(i32::try_from)
        .transpose()
        .map_err(|error| corrupt("rate", error))
}

async fn read(connection: &mut PgConnection, scope: OrgScope, key: KeyId) -> Result<ApiKey> {
    let select = sqlx::query_as!(
        KeyRow,
        r#"
        select k.id, k.org_id, k.created_by, k.key_name, k.key_hash,
               k.previous_key_hash, k.key_hint,
               k.scopes as "scopes: Json<Vec<String>>", k.environment,
               k.daily_quota, k.monthly_quota, k.rate_per_second, k.burst,
               k.allow as "allow: Json<Vec<String>>", k.metadata as "metadata: Json<Metadata>",
               k.is_active, k.revoked_at,
               k.revoked_reason, k.last_used_at, k.last_used_ip as "last_used_ip: IpNet",
               k.expires_at, k.version, k.created_at, k.rotated_from,
               (select n.id from keys.api_keys n where n.rotated_from = k.id) as rotated_to,
               k.limits_key_id, k.suspended_reason, k.throttle_per_second,
               k.throttle_reason
          from keys.api_keys k
         where k.id = $1 and k.deleted_at is null
           and ($2::uuid is null or exists (
               select 1 from keys.organisation_members m
                where m.org_id = k.org_id and m.user_id = $2))"#,
        key.uuid(),
        scope.member(),
    );
    let row = select.fetch_optional(connection).await?;
    row.ok_or_else(|| Error::not_found("key", key))?.try_into()
}

impl Store {
    /// One key.
    pub(crate) async fn key(&self, scope: OrgScope, key: KeyId) -> Result<ApiKey> {
        read(&mut *self.seen(scope).await?, scope, key).await
    }

    /// Keys of an organisation, newest first. A status is told as `ApiKey::status` tells it.
    pub(crate) async fn keys(
        &self,
        scope: OrgScope,
        org: OrgId,
        filter: &KeyFilter,
        now: Timestamp,
    ) -> Result<Vec<ApiKey>> {
        let ids: Option<Vec<Uuid>> = filter
            .among
            .as_ref()
            .map(|keys| keys.iter().map(|key| key.uuid()).collect());
        let select = sqlx::query_as!(
            KeyRow,
            r#"
            select k.id, k.org_id, k.created_by, k.key_name, k.key_hash,
                   k.previous_key_hash, k.key_hint,
                   k.scopes as "scopes: Json<Vec<String>>", k.environment,
                   k.daily_quota, k.monthly_quota, k.rate_per_second, k.burst,
                   k.allow as "allow: Json<Vec<String>>", k.metadata as "metadata: Json<Metadata>",
                   k.is_active, k.revoked_at,
                   k.revoked_reason, k.last_used_at, k.last_used_ip as "last_used_ip: IpNet",
                   k.expires_at, k.version, k.created_at, k.rotated_from,
                   (select n.id from keys.api_keys n where n.rotated_from = k.id) as rotated_to,
                   k.limits_key_id, k.suspended_reason, k.throttle_per_second,
                   k.throttle_reason
              from keys.api_keys k
             where k.org_id = $1 and k.deleted_at is null
               and ($2::uuid is null or exists (
                   select 1 from keys.organisation_members m
                    where m.org_id = k.org_id and m.user_id = $2))
               and ($3::uuid is null or k.id < $3)
               and ($5::text is null or strpos(lower(k.key_name), lower($5)) > 0)
               and ($6::uuid[] is null or k.id = any($6))
               and ($7::text is null or $7 = case
                   when k.revoked_at is not null then 'revoked'
                   when not k.is_active then 'suspended'
                   when k.expires_at <= $8 then 'expired'
                   when k.throttle_per_second is not null then 'throttled'
                   else 'active' end)
             order by k.id desc
             limit $4"#,
            org.uuid(),
            scope.member(),
            filter.before.map(KeyId::uuid),
            filter.limit,
            filter.name,
            ids.as_deref(),
            filter.status,
            now.to_sqlx() as _,
        );
        let rows = select.fetch_all(&mut *self.seen(scope).await?).await?;
        rows.into_iter().map(ApiKey::try_from).collect()
    }

    /// The key of a hash, or of its hash with another pepper, whatever its state. One that another
    /// gateway has moved to a pepper which this one has not is found by its hash before.
    pub(crate) async fn key_of(
        &self,
        hash: &KeyHash,
        previous: Option<&KeyHash>,
    ) -> Result<Option<ApiKey>> {
        let hashes: Vec<_> = [Some(hash), previous]
            .into_iter()
            .flatten()
            .map(|hash| hash.bytes().to_vec())
            .collect();
        let select = sqlx::query_as!(
            KeyRow,
            r#"
            select k.id, k.org_id, k.created_by, k.key_name, k.key_hash,
                   k.previous_key_hash, k.key_hint,
                   k.scopes as "scopes: Json<Vec<String>>", k.environment,
                   k.daily_quota, k.monthly_quota, k.rate_per_second, k.burst,
                   k.allow as "allow: Json<Vec<String>>", k.metadata as "metadata: Json<Metadata>",
                   k.is_active, k.revoked_at,
                   k.revoked_reason, k.last_used_at, k.last_used_ip as "last_used_ip: IpNet",
                   k.expires_at, k.version, k.created_at, k.rotated_from,
                   (select n.id from keys.api_keys n where n.rotated_from = k.id) as rotated_to,
                   k.limits_key_id, k.suspended_reason, k.throttle_per_second,
                   k.throttle_reason
              from keys.api_keys k
             where k.key_hash = any($1) or k.previous_key_hash = any($1)"#,
            &hashes,
        );
        let found: Option<ApiKey> = select
            .fetch_optional(&self.pool)
            .await?
            .map(ApiKey::try_from)
            .transpose()?;
        if let Some(key) = &found {
            let is_asked = |held: KeyHash| held == *hash || previous.is_some_and(|it| held == *it);
            assert!(
                is_asked(key.hash) || key.previous_hash.is_some_and(is_asked),
                "the look-up is by the whole hash"
            );
        }
        Ok(found)
    }

    /// Notes the last use of keys, at most once a minute and key. A key that is being changed is
    /// skipped: its next use is noted.
    pub(crate) async fn touch(&self, uses: &[KeyUse]) -> Result<u64> {
        let ids: Vec<_> = uses.iter().map(|used| used.key.uuid()).collect();
        let times: Vec<_> = uses.iter().map(|used| used.at.to_sqlx()).collect();
        let addresses: Vec<_> = uses.iter().map(|used| used.ip).collect();
        let update = sqlx::query!(
            r#"
            with used as (
                select distinct on (id) id, at, ip
                  from unnest($1::uuid[], $2::timestamptz[], $3::inet[]) u (id, at, ip)
                 order by id, at desc),
            due as (
                select k.id, used.at, used.ip
                  from keys.api_keys k
                  join used on used.id = k.id
                 where k.last_used_at is null
                    or k.last_used_at <= used.at - interval '1 minute'
                 order by k.id
                   for no key update of k skip locked)
            update keys.api_keys k
               set last_used_at = due.at, last_used_ip = coalesce(due.ip, k.last_used_ip)
              from due
             where k.id = due.id"#,
            &ids,
            &times as _,
            &addresses as _,
        );
        Ok(update.execute(&self.pool).await?.rows_affected())
    }
}

impl Tx {
    /// Locks a key until the transaction ends, and reads it.
    pub(crate) async fn lock_key(&mut self, scope: OrgScope, key: KeyId) -> Result<ApiKey> {
        let lock = sqlx::query_scalar!(
            "select id from keys.api_keys where id = $1 for no key update",
            key.uuid(),
        );
        lock.fetch_optional(&mut *self.inner).await?;
        read(&mut self.inner, scope, key).await
    }

    /// Stores a new key.
    pub(crate) async fn insert_key(&mut self, key: &NewKeyRow, settings: &Settings) -> Result<()> {
        let hashes = &key.hashes;
        let bytes = |hash: Option<KeyHash>| hash.map(|hash| hash.bytes().to_vec());
        let insert = sqlx::query!(
            r#"
            insert into keys.api_keys (
                id, org_id, created_by, key_name, key_hash, pepper_id, key_prefix, key_hint,
                scopes, environment, daily_quota, monthly_quota, rate_per_second, burst, allow,
                is_active, expires_at, created_at, updated_at, rotated_from, limits_key_id,
                metadata, previous_key_hash, report_hash, previous_report_hash)
            values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17,
                $18, $18, $19, $20, $21, $22, $23, $24)"#,
            key.id.uuid(),
            key.org.uuid(),
            key.created_by.uuid(),
            settings.name,
            &hashes.hash.bytes()[..],
            hashes.pepper_id,
            key.environment.key_prefix(),
            key.hint,
            texts(&settings.scopes) as _,
            key.environment.as_str(),
            settings.daily_quota,
            settings.monthly_quota,
            calls(settings.rate.map(|rate| rate.per_second))?,
            calls(settings.rate.map(|rate| rate.burst))?,
            texts(&settings.allow) as _,
            settings.active,
            settings.expires_at.map(ToSqlx::to_sqlx) as _,
            self.at.to_sqlx(),
            key.rotated_from.map(|(source, _)| source.uuid()),
            key.rotated_from.map_or(key.id, |(_, limits)| limits).uuid(),
            Json(&settings.metadata) as _,
            bytes(hashes.previous_hash),
            &hashes.report_hash.bytes()[..],
            bytes(hashes.previous_report_hash),
        );
        insert.execute(&mut *self.inner).await?;
        Ok(())
    }

    /// Hides a key for good. The key is locked and revoked.
    pub(crate) async fn bury_key(&mut self, key: KeyId) -> Result<()> {
        let update = sqlx::query!(
            r#"
            update keys.api_keys
               set deleted_at = $2, updated_at = $2, version = version + 1
             where id = $1 and revoked_at is not null and deleted_at is null"#,
            key.uuid(),
            self.at.to_sqlx() as _,
        );
        let buried = update.execute(&mut *self.inner).await?.rows_affected();
        assert_eq!(buried, 1, "the key is locked, revoked and not deleted");
        Ok(())
    }

    /// Changes a key. The key is locked.
    pub(crate) async fn save_key(
        &mut self,
        key: KeyId,
        settings: &Settings,
        restraints: &Restraints,
    ) -> Result<()> {
        let throttle = restraints.throttle.as_ref();
        let update = sqlx::query!(
            r#"
            update keys.api_keys
               set key_name = $2, scopes = $3, daily_quota = $4, monthly_quota = $5,
                   rate_per_second = $6, burst = $7, allow = $8, is_active = $9,
                   expires_at = $10, updated_at = $11, suspended_reason = $12,
                   throttle_per_second = $13, throttle_reason = $14, metadata = $15,
                   version = version + 1
             where id = $1 and revoked_at is null"#,
            key.uuid(),
            settings.name,
            texts(&settings.scopes) as _,
            settings.daily_quota,
            settings.monthly_quota,
            calls(settings.rate.map(|rate| rate.per_second))?,
            calls(settings.rate.map(|rate| rate.burst))?,
            texts(&settings.allow) as _,
            settings.active,
            settings.expires_at.map(ToSqlx::to_sqlx) as _,
            self.at.to_sqlx(),
            restraints.suspended_reason,
            calls(throttle.map(|throttle| throttle.per_second))?,
            throttle.map(|throttle| throttle.reason.as_str()),
            Json(&settings.metadata) as _,
        );
        let saved = update.execute(&mut *self.inner).await?.rows_affected();
        assert_eq!(saved, 1, "the key is locked and was not revoked");
        Ok(())
    }

    /// Revokes a key for good. The key is locked.
    pub(crate) async fn revoke_key(&mut self, key: KeyId, reason: &str) -> Result<()> {
        let update = sqlx::query!(
            r#"
            update keys.api_keys
               set is_active = false, revoked_at = $2, revoked_reason = $3,
                   updated_at = $2, version = version + 1
             where id = $1 and revoked_at is null"#,
            key.uuid(),
            self.at.to_sqlx() as _,
            reason,
        );
        let revoked = update.execute(&mut *self.inner).await?.rows_affected();
        assert_eq!(revoked, 1, "the key is locked and was not revoked");
        Ok(())
    }

    /// Locks the test keys a member has made and not revoked, in the order of their ids.
    pub(crate) async fn lock_test_keys(&mut self, org: OrgId, user: UserId) -> Result<Vec<KeyId>> {
        let lock = sqlx::query_scalar!(
            r#"
            select id
              from keys.api_keys
             where org_id = $1 and created_by = $2
               and environment = 'test' and revoked_at is null
             order by id
               for no key update"#,
            org.uuid(),
            user.uuid(),
        );
        let ids = lock.fetch_all(&mut *self.inner).await?;
        Ok(ids.into_iter().map(KeyId::new).collect())
    }
}
