create table stats_aggregator.daily_stats (
    org_id               uuid not null,
    date                 date not null,
    environment          text not null check (environment in ('production', 'test')),
    total_requests       bigint not null check (total_requests >= 0),
    total_credits        bigint not null check (total_credits >= 0),
    successful_requests  bigint not null
                         check (successful_requests between 0 and total_requests),
    success_rate         numeric(5, 2) generated always as (
                             case when total_requests = 0 then 0
                                  else round(100.0 * successful_requests / total_requests, 2)
                             end
                         ) stored,
    -- Calls per service, e.g. {"pdf": 150, "ai": 50}.
    services_breakdown   jsonb not null default '{}',
    created_at           timestamptz not null,
    updated_at           timestamptz not null,
    primary key (org_id, date, environment)
);

create table stats_aggregator.hourly_stats (
    org_id               uuid not null,
    hour                 timestamptz not null,
    environment          text not null check (environment in ('production', 'test')),
    service              text not null,
    total_requests       bigint not null,
    total_credits        bigint not null,
    successful_requests  bigint not null,
    primary key (org_id, hour, environment, service)
);

create table stats_aggregator.inbox (
    journal_id  uuid primary key,
    applied     int8multirange not null,
    updated_at  timestamptz not null
);

-- The server whose transactions the inbox has followed so far. Another one, or another timeline of
-- the same one, may have lost the last of them: the stream is read again.
create table stats_aggregator.origin (
    is_only            boolean primary key default true check (is_only),
    system_identifier  bigint not null,
    -- The first eight digits of the names of its WAL files.
    timeline           text not null,
    -- When the last change was noticed, and when what the stream had then was read again.
    moved_at           timestamptz,
    caught_up_at       timestamptz
);
insert into stats_aggregator.origin (system_identifier, timeline)
select system_identifier, left(pg_walfile_name(pg_current_wal_lsn()), 8) from pg_control_system();

-- Records that will never come, as the owner of their journal has declared, or
-- an operator: see `discards`. Append-only.
create table stats_aggregator.gaps (
    journal_id  uuid not null,
    from_seq    bigint not null check (from_seq >= 0),
    -- The number after the last one.
    below_seq   bigint not null,
    cause       text not null check (cause in ('damaged', 'missing', 'discarded')),
    at          timestamptz not null,
    primary key (journal_id, from_seq),
    constraint gaps_range_check check (from_seq < below_seq)
);

create table stats_aggregator.dead_letters (
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
create table stats_aggregator.discards (
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

-- Adds two objects of counts, e.g. {"pdf": 150} and {"pdf": 1, "ai": 2} to {"ai": 2, "pdf": 151}.
create function stats_aggregator.add_counts(a jsonb, b jsonb) returns jsonb
language sql immutable parallel safe as $$
    select coalesce(jsonb_object_agg(name, total), '{}')
      from (select name, sum(count::bigint) as total
              from (select key as name, value as count from jsonb_each_text(a)
                    union all
                    select key, value from jsonb_each_text(b)) counts
             group by name) sums
$$;
