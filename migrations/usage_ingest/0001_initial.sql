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
    timeline           text not null
);
insert into usage_ingest.origin (system_identifier, timeline)
select system_identifier, left(pg_walfile_name(pg_current_wal_lsn()), 8) from pg_control_system();

-- Records that will never come, as the owner of their journal has declared. Append-only.
create table usage_ingest.gaps (
    journal_id  uuid not null,
    from_seq    bigint not null check (from_seq >= 0),
    -- The number after the last one.
    below_seq   bigint not null,
    cause       text not null check (cause in ('damaged', 'missing')),
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
    at           timestamptz not null
);
