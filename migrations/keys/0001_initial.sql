create table keys.users (
    id          uuid primary key,
    email       text not null constraint users_email_key unique check (email = lower(email)),
    name        text not null default '',
    -- 16 bytes of salt and 32 of argon2id; null: signs in with a new password only.
    password            bytea check (octet_length(password) = 48),
    email_verified_at   timestamptz,
    -- Sessions of a smaller epoch have ended.
    session_epoch       bigint not null default 1,
    -- The authenticator's secret; required for signing in once confirmed.
    totp_secret         bytea check (octet_length(totp_secret) = 20),
    totp_confirmed_at   timestamptz check (totp_confirmed_at is null or totp_secret is not null),
    -- The last step a code was accepted for: none is accepted twice.
    totp_last_step      bigint not null default 0,
    -- Of pages and mails.
    language    text not null default 'en' check (language in ('en', 'fr')),
    created_at  timestamptz not null,
    updated_at  timestamptz not null
);

-- Each good once, in place of a code of the authenticator.
create table keys.recovery_codes (
    user_id     uuid not null references keys.users (id),
    code_hash   bytea not null check (octet_length(code_hash) = 32),
    used_at     timestamptz,
    primary key (user_id, code_hash)
);

-- Links in mails, by the hash of their token.
create table keys.mail_tokens (
    token_hash  bytea primary key check (octet_length(token_hash) = 32),
    user_id     uuid not null references keys.users (id),
    purpose     text not null check (purpose in ('verify', 'reset')),
    expires_at  timestamptz not null,
    used_at     timestamptz
);
create index idx_mail_tokens_user on keys.mail_tokens (user_id, purpose);

-- How often something was tried since `since`; a bucket names what and who, hashed.
create table keys.throttles (
    bucket      bytea primary key check (octet_length(bucket) = 32),
    tried       bigint not null,
    since       timestamptz not null
);
create index idx_throttles_since on keys.throttles (since);

-- Mails that wait to be sent. What was sent keeps no text: it may hold a token.
create table keys.outbox_mail (
    id          uuid primary key,
    recipient   text not null,
    template    text not null,
    subject     text not null,
    -- The same as text and as HTML.
    body        text not null,
    html        text not null,
    created_at  timestamptz not null,
    due_at      timestamptz not null,
    sent_at     timestamptz,
    attempts    integer not null default 0,
    constraint outbox_mail_sent_check check (sent_at is null or (body = '' and html = ''))
);
create index idx_outbox_mail_due on keys.outbox_mail (due_at) where sent_at is null;

create table keys.organisations (
    id          uuid primary key,
    name        text not null check (char_length(name) between 1 and 80),
    slug        text not null constraint organisations_slug_key unique
                check (slug ~ '^[a-z0-9-]{3,64}$'),
    owner_id    uuid not null references keys.users (id),
    -- The organisation's own rules.
    live_keys_need_second_factor    boolean not null default true,
    key_lifetime_seconds_max        bigint check (key_lifetime_seconds_max >= 3600),
    developers_may_create_live_keys boolean not null default false,
    leak_action text not null default 'suspend'
                check (leak_action in ('notify', 'suspend', 'revoke')),
    anomaly_action  text not null default 'notify'
                check (anomaly_action in ('notify', 'throttle', 'suspend')),
    -- Web pages that may call with the organisation's keys, and the last change of that.
    allowed_origins text[] not null default '{}' check (cardinality(allowed_origins) <= 20),
    origins_change  bigint,
    -- When the audit log last said that keys were refused because too many were made.
    creation_refused_at timestamptz,
    -- Grows with every change of the row.
    version     bigint not null default 1,
    created_at  timestamptz not null,
    updated_at  timestamptz not null
);
create index idx_organisations_origins on keys.organisations (origins_change)
    where origins_change is not null;

create table keys.organisation_members (
    id          uuid primary key,
    org_id      uuid not null references keys.organisations (id),
    user_id     uuid not null references keys.users (id),
    role        text not null check (role in ('owner', 'admin', 'developer', 'billing')),
    joined_at   timestamptz not null,
    version     bigint not null default 1,
    constraint organisation_members_org_user_key unique (org_id, user_id)
);
create index idx_members_user on keys.organisation_members (user_id);

create table keys.invitations (
    id          uuid primary key,
    org_id      uuid not null references keys.organisations (id),
    email       text not null check (email = lower(email)),
    role        text not null check (role in ('owner', 'admin', 'developer', 'billing')),
    token_hash  bytea not null constraint invitations_token_hash_key unique
                check (octet_length(token_hash) = 32),
    invited_by  text not null,
    created_at  timestamptz not null,
    expires_at  timestamptz not null,
    accepted_at timestamptz,
    accepted_by uuid references keys.users (id),
    revoked_at  timestamptz,
    constraint invitations_end_check check (accepted_at is null or revoked_at is null),
    constraint invitations_accepted_check check ((accepted_at is null) = (accepted_by is null))
);
create index idx_invitations_org on keys.invitations (org_id, id desc);
-- One open invitation an address and organisation.
create unique index invitations_open_key on keys.invitations (org_id, email)
    where accepted_at is null and revoked_at is null;

-- An organisation always has at least one owner, and owner_id names one (checked at commit, so
-- that creation and transfer can pass through states in between).
create function keys.check_owner() returns trigger language plpgsql as $$
begin
    if not exists (
        select 1
          from keys.organisations o
          join keys.organisation_members m
            on m.org_id = o.id and m.user_id = o.owner_id and m.role = 'owner'
         where o.id = coalesce(new.org_id, old.org_id)
    ) then
        raise exception 'an organisation keeps at least one owner'
            using errcode = '23514', constraint = 'organisation_has_owner';
    end if;
    return null;
end $$;
create constraint trigger organisation_has_owner
    after insert or update or delete on keys.organisation_members
    deferrable initially deferred
    for each row execute function keys.check_owner();

create table keys.services (
    id                  uuid primary key,
    name                text not null constraint services_name_key unique
                        check (name ~ '^[a-z][a-z0-9-]{0,62}$'),
    display_name        text not null,
    description         text not null default '',
    upstream_url        text not null,
    base_cost_per_call  bigint not null default 1
                        check (base_cost_per_call between 0 and 1000000),
    icon                text not null default 'box',
    category            text not null default 'general',
    is_active           boolean not null default true,
    price_version       bigint not null default 1,
    -- Grows with every change of the service or of one of its routes.
    version             bigint not null default 1,
    protocol            text not null default 'http1' check (protocol in ('http1', 'h2', 'auto')),
    connections_max     bigint not null default 4096
                        check (connections_max between 1 and 65536),
    connect_timeout_ms  bigint not null default 5000
                        check (connect_timeout_ms between 1 and 60000),
    -- Empty: gateways do not ask.
    health_path         text not null default ''
                        check (health_path ~ '^(/|$)' and octet_length(health_path) <= 256),
    created_at          timestamptz not null,
    updated_at          timestamptz not null
);

-- The catalogue of scopes: a key can only have what stands here.
create table keys.scopes (
    name        text primary key check (name ~ '^[a-z][a-z0-9-]*:[a-z][a-z0-9-]*$'),
    service_id  uuid not null references keys.services (id)
);

create table keys.routes (
    id              uuid primary key,
    service_id      uuid not null references keys.services (id),
    method          text not null check (method ~ '^(\*|[A-Z]{1,16})$'),
    path_prefix     text not null check (path_prefix ~ '^/' and length(path_prefix) <= 512),
    scope           text not null references keys.scopes (name),
    cost            bigint check (cost between 0 and 1000000),
    charge_on       text not null default '2xx' check (charge_on in ('2xx', 'always')),
    durability      text not null default 'process'
                    check (durability in ('process', 'disk', 'replicated')),
    body_bytes_max  bigint not null default 10485760 check (body_bytes_max >= 0),
    timeout_ms      bigint not null default 60000 check (timeout_ms between 1 and 3600000),
    idle_timeout_ms bigint not null default 300000
                    check (idle_timeout_ms between 1 and 3600000),
    total_timeout_ms bigint not null default 86400000
                    check (total_timeout_ms between 1 and 86400000),
    -- Prices of units on top of the cost: [{"unit", "credits", "per", "pointer", "bytes_per_unit"}].
    unit_prices     jsonb not null default '[]' check (jsonb_typeof(unit_prices) = 'array'),
    max_cost        bigint not null default 0 check (max_cost between 0 and 1000000),
    unreported      text not null default 'max_cost'
                    check (unreported in ('max_cost', 'estimate', 'base')),
    on_client_abort text not null default 'answered'
                    check (on_client_abort in ('free', 'answered', 'forwarded')),
    on_server_abort text not null default 'free' check (on_server_abort in ('free', 'answered')),
    constraint routes_priced_check check ((unit_prices = '[]') = (max_cost = 0)),
    constraint routes_place_key unique (service_id, method, path_prefix)
);

create table keys.api_keys (
    id              uuid primary key,
    org_id          uuid not null references keys.organisations (id),
    created_by      uuid not null references keys.users (id),
    key_name        text not null check (char_length(key_name) between 1 and 80),
    key_hash        bytea not null constraint api_keys_key_hash_key unique
                    check (octet_length(key_hash) = 32),
    -- The hash with the pepper before: gateways that still use that one find and hold the key by it,
    -- so every change of the key is announced under both.
    previous_key_hash bytea constraint api_keys_previous_key_hash_key unique
                    check (octet_length(previous_key_hash) = 32),
    -- Names the pepper of key_hash without telling it.
    pepper_id       text not null,
    -- sha256 of the key's own sha256 with the pepper of key_hash: finds the key of a report that
    -- names it by its plain hash, which is stored nowhere.
    report_hash     bytea not null constraint api_keys_report_hash_key unique
                    check (octet_length(report_hash) = 32),
    previous_report_hash bytea constraint api_keys_previous_report_hash_key unique
                    check (octet_length(previous_report_hash) = 32),
    key_prefix      text not null,
    key_hint        text not null check (char_length(key_hint) = 4),
    scopes          jsonb not null check (jsonb_array_length(scopes) > 0),
    environment     text not null,
    daily_quota     bigint check (daily_quota > 0),
    monthly_quota   bigint check (monthly_quota > 0),
    rate_per_second integer check (rate_per_second > 0),
    burst           integer check (burst > 0),
    allow           jsonb not null default '[]',
    -- What owners note of the key: names and texts, which no gateway sees.
    metadata        jsonb not null default '{}' check (jsonb_typeof(metadata) = 'object'),
    is_active       boolean not null default true,
    revoked_at      timestamptz,
    revoked_reason  text,
    -- Null for a key that is active, and for one that somebody suspended by hand.
    suspended_reason    text check (suspended_reason is null or not is_active),
    -- Set by anomalies: calls a second, whatever rate the key has itself.
    throttle_per_second integer check (throttle_per_second > 0),
    throttle_reason     text,
    last_used_at    timestamptz,
    last_used_ip    inet,
    expires_at      timestamptz,
    version         bigint not null default 1,
    -- The lineage of rotations: each key has at most one before and one after it.
    rotated_from    uuid constraint api_keys_rotated_from_key unique references keys.api_keys (id),
    -- Under which key quota and rate are counted: one for a whole lineage.
    limits_key_id   uuid not null references keys.api_keys (id),
    -- A deleted key is a tombstone: hidden and unusable, its usage stays.
    deleted_at      timestamptz check (deleted_at is null or revoked_at is not null),
    created_at      timestamptz not null,
    updated_at      timestamptz not null,
    -- The environment and the prefix state one fact.
    constraint api_keys_environment_check check (
        (environment, key_prefix) in (('production', 'sk_live'), ('test', 'sk_test'))
    ),
    -- Revoked is for ever, and never without a reason.
    constraint api_keys_revoked_check check (
        revoked_at is null or (not is_active and revoked_reason is not null)
    ),
    constraint api_keys_burst_rate_check check (burst is null or rate_per_second is not null),
    constraint api_keys_throttle_check check (
        (throttle_per_second is null) = (throttle_reason is null)
    )
);
create index idx_apikeys_org on keys.api_keys (org_id, id desc);
-- How many keys wait for their first use under another pepper.
create index idx_apikeys_pepper on keys.api_keys (pepper_id) where revoked_at is null;

-- Live keys whose creator has left: owners and admins decide whether they go on.
create table keys.key_reviews (
    key_id      uuid primary key references keys.api_keys (id),
    org_id      uuid not null references keys.organisations (id),
    left_at     timestamptz not null,
    kept_at     timestamptz,
    -- `operator` or `usr_…`
    kept_by     text,
    constraint key_reviews_kept_check check ((kept_at is null) = (kept_by is null))
);
create index idx_key_reviews_org on keys.key_reviews (org_id, key_id desc) where kept_at is null;

-- New keys nobody has announced yet.
create table keys.outbox_created (
    key_id      uuid primary key references keys.api_keys (id)
);

-- Anomalies this service was told of, so that none is acted on twice. One that somebody lifts before
-- it is heard of waits here with its end: it does nothing any more.
create table keys.anomalies (
    id          uuid primary key,
    -- Null: it concerns the whole platform.
    org_id      uuid references keys.organisations (id),
    kind        text,
    flagged_at  timestamptz,
    lifted_at   timestamptz,
    lifted_by   text,
    constraint anomalies_flagged_check check ((flagged_at is null) = (kind is null)),
    constraint anomalies_lifted_check check ((lifted_at is null) = (lifted_by is null)),
    constraint anomalies_state_check check (flagged_at is not null or lifted_at is not null)
);
create index idx_anomalies_unheard on keys.anomalies (lifted_at) where flagged_at is null;

-- The keys of anomalies, and what is imposed on each. A row without an end holds: its key is
-- suspended, or throttled. `none`: by the policy, or because the key had ended or was suspended.
create table keys.anomaly_actions (
    anomaly_id  uuid not null references keys.anomalies (id),
    key_id      uuid not null references keys.api_keys (id),
    org_id      uuid not null references keys.organisations (id),
    action      text not null check (action in ('none', 'throttle', 'suspend')),
    taken_at    timestamptz not null,
    lifted_at   timestamptz,
    -- Who lifted the anomaly, restored the key, or suspended it for a reason of its own.
    lifted_by   text,
    primary key (anomaly_id, key_id),
    constraint anomaly_actions_lifted_check check ((lifted_at is null) = (lifted_by is null)),
    constraint anomaly_actions_none_check check (action <> 'none' or lifted_at is null)
);
create index idx_anomaly_actions_held on keys.anomaly_actions (key_id)
    where action <> 'none' and lifted_at is null;

create table keys.dead_letters (
    id           bigint generated always as identity primary key,
    subject      text not null,
    stream_seq   bigint not null,
    reason       text not null,
    payload      bytea not null,
    -- An event that comes again is one dead letter.
    payload_sha256  bytea not null generated always as (sha256(payload)) stored
                    constraint dead_letters_payload_key unique,
    -- When it came first and last, and how often.
    at           timestamptz not null,
    last_at      timestamptz not null default now(),
    times        bigint not null default 1,
    -- Of no journal, for letters here are events; one implementation reads those of all schemas.
    journal_id   uuid,
    from_seq     bigint,
    below_seq    bigint
);

-- Letters that an operator has decided never to apply, or what was left of them. Append-only.
create table keys.discards (
    -- Of the letter that is gone.
    letter_id       bigint primary key,
    subject         text not null,
    -- The rule it broke.
    reason          text not null,
    payload_sha256  bytea not null,
    -- Numbers of its journal that count as applied by it; none where it says no number.
    journal_id      uuid,
    records         int8multirange not null,
    -- Those records, as a batch, without addresses and agents of clients.
    batch           bytea not null,
    -- Other records of the letter, which were applied.
    applied         bigint not null,
    -- Why the operator decided so, and who and where that was.
    why             text not null,
    discarded_by    text not null,
    address         text not null,
    at              timestamptz not null
);

create table keys.audit_log (
    id          bigint primary key,
    org_id      uuid,
    actor       text not null,
    action      text not null,
    target      text not null,
    details     jsonb not null default '{}',
    at          timestamptz not null,
    -- Where whoever acted was; null: the system by itself.
    address     inet,
    -- sha256 over every field and the hash of the row before.
    prev_hash   bytea not null check (octet_length(prev_hash) = 32),
    hash        bytea not null check (octet_length(hash) = 32)
);
create index idx_audit_org on keys.audit_log (org_id, id desc);

-- The end of the chain. Writers hold the row until they commit, so the chain has one order.
create table keys.audit_head (
    one         boolean primary key default true check (one),
    id          bigint not null,
    entries     bigint not null,
    hash        bytea not null check (octet_length(hash) = 32)
);
insert into keys.audit_head (id, entries, hash)
values (0, 0, decode(repeat('00', 32), 'hex'));

create function keys.refuse_change() returns trigger language plpgsql as $$
begin
    raise exception 'the audit log is append-only';
end $$;
create trigger audit_log_is_append_only
    before update or delete on keys.audit_log
    for each row execute function keys.refuse_change();

-- The change log and outbox. Writers hold the end of the audit log, so ids become visible in order
-- and "everything after n" misses nothing.
create table keys.changes (
    id            bigint generated always as identity primary key,
    -- The key's hash at the time; null for a change of the catalogue or of an organisation's origins.
    key_hash      bytea,
    key_id        uuid,
    version       bigint,
    at            timestamptz not null,
    published_at  timestamptz,
    constraint changes_subject_check check (
        (key_hash is null) = (key_id is null) and (key_hash is null) = (version is null)
    )
);
create index idx_changes_unpublished on keys.changes (id) where published_at is null;
create index idx_changes_catalogue on keys.changes (id) where key_hash is null;

-- Gateways and how far each has applied the change log.
create table keys.gateways (
    journal_id      uuid primary key,
    gateway         text not null,
    applied_change  bigint not null,
    -- What it hashes keys with, and did before.
    pepper_id           text not null,
    previous_pepper_id  text,
    seen_at         timestamptz not null
);

-- Processes of this service, and what they hash keys with.
create table keys.instances (
    id                  uuid primary key,
    pepper_id           text not null,
    previous_pepper_id  text,
    seen_at             timestamptz not null
);

-- The peppers that were loaded last, by whichever process: a rotation is audited once.
create table keys.peppers (
    one                 boolean primary key default true check (one),
    pepper_id           text not null,
    previous_pepper_id  text
);

-- Reports of leaked keys: a key is acted upon once for each place it was found at.
create table keys.leak_reports (
    key_id      uuid not null references keys.api_keys (id),
    url         text not null check (char_length(url) <= 500),
    org_id      uuid not null references keys.organisations (id),
    source      text not null,
    -- What was done.
    action      text not null check (action in ('notified', 'suspended', 'revoked')),
    reported_at timestamptz not null,
    primary key (key_id, url)
);

-- Which crossings of a low balance were mailed about.
create table keys.low_balances (
    org_id      uuid not null references keys.organisations (id),
    -- When the credits came in that the percentage is of.
    reference_at    timestamptz not null,
    percent     integer not null,
    mailed_at   timestamptz not null,
    primary key (org_id, reference_at, percent)
);
