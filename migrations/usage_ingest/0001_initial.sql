-- One row a call. The primary key is a second lock on the inbox's door.
create table usage_ingest.api_usage_logs (
    day               date not null,
    journal_id        uuid not null,
    seq               bigint not null,
    request_id        uuid not null,
    api_key_id        uuid,
    org_id            uuid not null,
    user_id           uuid,
    service_id        uuid,
    service           text not null,
    endpoint          text not null,
    method            text not null,
    status_code       integer not null,
    response_time_ms  bigint not null,
    upstream_time_ms  bigint not null,
    credits_used      bigint not null check (credits_used >= 0),
    details           jsonb not null default '{}',
    ip_address        inet,
    country           text not null default 'ZZ',
    user_agent        text not null default '',
    environment       text not null check (environment in ('production', 'test')),
    disposition       text not null,
    code              text not null default '',
    lease_id          uuid,
    lease_cum         bigint,
    -- Leases of permits this call used one of each: those of its key's quotas.
    permit_lease_ids  uuid[] not null default '{}',
    price_version     bigint not null default 0,
    trace_id          text not null default '',
    request_bytes     bigint not null default 0,
    response_bytes    bigint not null default 0,
    -- The call whose kept answer this one was given, by its idempotency key.
    replay_of         uuid,
    timestamp         timestamptz not null,
    ingested_at       timestamptz not null default now(),
    primary key (day, journal_id, seq)
) partition by range (day);
create index idx_usage_org_time on usage_ingest.api_usage_logs (org_id, timestamp desc);
create index idx_usage_key_time on usage_ingest.api_usage_logs (api_key_id, timestamp desc);
create index idx_usage_request on usage_ingest.api_usage_logs (request_id);
-- Days without a partition of their own (a journal that turns up late) land here and are watched.
create table usage_ingest.api_usage_logs_default partition of usage_ingest.api_usage_logs default;

-- Days whose addresses and agents are erased. A row of such a day that comes later has none.
create table usage_ingest.erasures (
    day        date primary key,
    rows       bigint not null check (rows >= 0),
    erased_at  timestamptz not null
);

-- Who has which idempotency key: one call at a time, and for a day the one that counts. An answer is
-- as secret as what the upstream says in it; it is erased with its row when that expires.
create table usage_ingest.idempotency_keys (
    org_id               uuid not null,
    environment          text not null check (environment in ('production', 'test')),
    -- Of the key's value, which is kept nowhere.
    key_sha256           bytea not null check (octet_length(key_sha256) = 32),
    -- The call that has the key, and where its record is to be.
    request_id           uuid not null,
    journal_id           uuid not null,
    -- Of method, path, query and content type.
    head_sha256          bytea not null check (octet_length(head_sha256) = 32),
    -- open: whether the call counts is told by its row, or by the end of its journal without one.
    state                text not null default 'open'
                         check (state in ('open', 'answered', 'not_kept')),
    -- The answer, and the body of the request that it answers.
    request_body_sha256  bytea check (octet_length(request_body_sha256) = 32),
    status               integer,
    header_names         text[],
    header_values        bytea[],
    body                 bytea check (octet_length(body) <= 262144),
    begun_at             timestamptz not null,
    expires_at           timestamptz not null,
    primary key (org_id, environment, key_sha256),
    constraint idempotency_keys_answer_check check (
        num_nulls(request_body_sha256, status, header_names, header_values, body) in (0, 5)
    ),
    constraint idempotency_keys_answered_check check (state <> 'answered' or status is not null)
);
create index idx_idempotency_keys_expiry on usage_ingest.idempotency_keys (expires_at);

-- Organisations with too many keys in store, as counted last. They begin no further ones.
create table usage_ingest.idempotency_full (
    org_id  uuid primary key,
    keys    bigint not null,
    bytes   bigint not null
);

-- Journals without a further record, all of whose records are applied. Kept longer than any key:
-- what a dead gateway asked may arrive late.
create table usage_ingest.ended_journals (
    journal_id  uuid primary key,
    next_seq    bigint not null check (next_seq >= 0),
    ended_at    timestamptz not null
);

create table usage_ingest.inbox (
    journal_id  uuid primary key,
    applied     int8multirange not null,
    updated_at  timestamptz not null
);

-- The server whose transactions the inbox has followed so far. Another one, or another timeline of
-- the same one, may have lost the last of them: the stream is read again.
create table usage_ingest.origin (
    is_only            boolean primary key default true check (is_only),
    system_identifier  bigint not null,
    -- The first eight digits of the names of its WAL files.
    timeline           text not null,
    -- When the last change was noticed, and when what the stream had then was read again.
    moved_at           timestamptz,
    caught_up_at       timestamptz
);
insert into usage_ingest.origin (system_identifier, timeline)
select system_identifier, left(pg_walfile_name(pg_current_wal_lsn()), 8) from pg_control_system();

-- Records that will never come, as the owner of their journal has declared, or
-- an operator: see `discards`. Append-only.
create table usage_ingest.gaps (
    journal_id  uuid not null,
    from_seq    bigint not null check (from_seq >= 0),
    -- The number after the last one.
    below_seq   bigint not null,
    cause       text not null check (cause in ('damaged', 'missing', 'discarded')),
    at          timestamptz not null,
    primary key (journal_id, from_seq),
    constraint gaps_range_check check (from_seq < below_seq)
);

create table usage_ingest.dead_letters (
    id           bigint generated always as identity primary key,
    subject      text not null,
    stream_seq   bigint not null,
    reason       text not null,
    payload      bytea not null,
    -- A batch that is shipped again is one dead letter.
    payload_sha256  bytea not null generated always as (sha256(payload)) stored
                    constraint dead_letters_payload_key unique,
    -- When it came first and last, and how often.
    at           timestamptz not null,
    last_at      timestamptz not null default now(),
    times        bigint not null default 1,
    -- What its records lie between, where it can be read; where it has none, what its gaps do.
    journal_id   uuid,
    from_seq     bigint,
    below_seq    bigint
);

-- Letters that an operator has decided never to apply, or what was left of them. Append-only.
create table usage_ingest.discards (
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
