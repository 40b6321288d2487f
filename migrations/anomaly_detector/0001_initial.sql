create table anomaly_detector.anomalies (
    id            uuid primary key,
    -- Null: it concerns the whole platform.
    org_id        uuid,
    -- Null: it concerns no key, or several.
    key_id        uuid,
    -- Every key it concerns.
    key_ids       uuid[] not null default '{}' check (cardinality(key_ids) <= 100),
    kind          text not null check (kind in (
                      'country_spread', 'key_burst', 'service_after_silence', 'wallet_drain',
                      'key_mass_creation', 'unknown_key_spray')),
    -- Made of the facts: what is found again, by whomever, is the same anomaly.
    identity      text not null,
    summary       text not null,
    details       jsonb not null default '{}',
    -- The window that met the rule, both ends included, in event time.
    window_from   timestamptz not null,
    at            timestamptz not null check (window_from <= at),
    created_at    timestamptz not null,
    resolved_at   timestamptz,
    -- `operator` or the user.
    resolved_by   text,
    -- The first time.
    published_at  timestamptz,
    -- Number of keys it was announced with; one that grows is announced again.
    published_keys  integer,
    -- Of the call that met the rule, when that was sampled; or empty.
    traceparent   text not null default '',
    constraint anomalies_resolved_check check (num_nulls(resolved_at, resolved_by) in (0, 2)),
    constraint anomalies_published_check check (num_nulls(published_at, published_keys) in (0, 2)),
    -- A second lock: what is repeated finds its anomaly here.
    constraint anomalies_identity_key unique (kind, identity)
);
create index idx_anomalies_org on anomaly_detector.anomalies (org_id, id desc);
create index idx_anomalies_key on anomaly_detector.anomalies (key_id, kind, at);
create index idx_anomalies_open on anomaly_detector.anomalies (org_id, kind)
    where resolved_at is null;
create index idx_anomalies_unpublished on anomaly_detector.anomalies (id)
    where published_keys is distinct from cardinality(key_ids);

-- The state of country_spread: for each key, country and hour of event time the first and the last
-- call. What lies between them cannot change the rule's answer. Updates touch no indexed column.
create table anomaly_detector.sightings (
    key_id    uuid not null,
    hour      timestamptz not null,
    country   text not null,
    org_id    uuid not null,
    first_at  timestamptz not null,
    last_at   timestamptz not null,
    primary key (key_id, hour, country),
    constraint sightings_hour_check check (
        hour <= first_at and first_at <= last_at and last_at < hour + interval '1 hour'
    )
) with (fillfactor = 70);
create index idx_sightings_hour on anomaly_detector.sightings (hour);

-- The state of key_burst, and who spent what for wallet_drain: calls and credits of the
-- organisation by key and five minutes of event time. Updates touch no indexed column.
create table anomaly_detector.loads (
    key_id   uuid not null,
    bucket   timestamptz not null,
    org_id   uuid not null,
    calls    bigint not null check (calls > 0),
    credits  bigint not null check (credits >= 0),
    primary key (key_id, bucket)
) with (fillfactor = 70);
create index idx_loads_bucket on anomaly_detector.loads (bucket, org_id);

-- The state of service_after_silence: for each key and service the first and the last use, and
-- between them the latest long silence. The service is empty for calls of what does not exist.
create table anomaly_detector.uses (
    key_id        uuid not null,
    service       text not null,
    first_at      timestamptz not null,
    silent_from   timestamptz,
    silent_until  timestamptz,
    last_at       timestamptz not null,
    primary key (key_id, service),
    constraint uses_order_check check (first_at <= last_at),
    constraint uses_silence_check check (
        num_nulls(silent_from, silent_until) = 2
        or (first_at <= silent_from and silent_from < silent_until and silent_until <= last_at)
    )
) with (fillfactor = 70);

-- The state of key_mass_creation: keys and when they were made.
create table anomaly_detector.created_keys (
    key_id      uuid primary key,
    org_id      uuid not null,
    created_at  timestamptz not null
);
create index idx_created_keys_org on anomaly_detector.created_keys (org_id, created_at);
create index idx_created_keys_created on anomaly_detector.created_keys (created_at);

-- The state of wallet_drain: shares of what a wallet held that it has fallen to, for each time that
-- credits came in.
create table anomaly_detector.crossings (
    org_id        uuid not null,
    reference_at  timestamptz not null,
    percent       integer not null,
    reference     bigint not null,
    balance       bigint not null,
    at            timestamptz not null,
    primary key (org_id, reference_at, percent)
);
create index idx_crossings_at on anomaly_detector.crossings (at);

-- The state of unknown_key_spray: calls with unknown keys by address, minute and gateway.
create table anomaly_detector.sprays (
    address     text not null,
    minute      timestamptz not null,
    journal_id  uuid not null,
    calls       bigint not null check (calls > 0),
    primary key (address, minute, journal_id)
);
create index idx_sprays_minute on anomaly_detector.sprays (minute);

create table anomaly_detector.inbox (
    journal_id  uuid primary key,
    applied     int8multirange not null,
    updated_at  timestamptz not null
);

-- The server whose transactions the inbox has followed so far. Another one, or another timeline of
-- the same one, may have lost the last of them: the stream is read again.
create table anomaly_detector.origin (
    is_only            boolean primary key default true check (is_only),
    system_identifier  bigint not null,
    -- The first eight digits of the names of its WAL files.
    timeline           text not null,
    -- When the last change was noticed, and when what the stream had then was read again.
    moved_at           timestamptz,
    caught_up_at       timestamptz
);
insert into anomaly_detector.origin (system_identifier, timeline)
select system_identifier, left(pg_walfile_name(pg_current_wal_lsn()), 8) from pg_control_system();

-- Records that will never come, as the owner of their journal has declared, or
-- an operator: see `discards`. Append-only.
create table anomaly_detector.gaps (
    journal_id  uuid not null,
    from_seq    bigint not null check (from_seq >= 0),
    -- The number after the last one.
    below_seq   bigint not null,
    cause       text not null check (cause in ('damaged', 'missing', 'discarded')),
    at          timestamptz not null,
    primary key (journal_id, from_seq),
    constraint gaps_range_check check (from_seq < below_seq)
);

create table anomaly_detector.dead_letters (
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
create table anomaly_detector.discards (
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
