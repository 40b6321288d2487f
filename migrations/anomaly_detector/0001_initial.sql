create table anomaly_detector.anomalies (
    id            uuid primary key,
    org_id        uuid not null,
    key_id        uuid not null,
    kind          text not null check (kind in ('country_spread')),
    summary       text not null,
    details       jsonb not null default '{}',
    -- The window that met the rule, both ends included, in event time.
    window_from   timestamptz not null,
    at            timestamptz not null check (window_from <= at),
    created_at    timestamptz not null,
    resolved_at   timestamptz,
    -- `operator` or the user.
    resolved_by   text,
    published_at  timestamptz,
    constraint anomalies_resolved_check check (num_nulls(resolved_at, resolved_by) in (0, 2)),
    -- A second lock: windows of a key never overlap, so none ends where another does.
    constraint anomalies_window_key unique (key_id, kind, at)
);
create index idx_anomalies_org on anomaly_detector.anomalies (org_id, id desc);
create index idx_anomalies_unpublished on anomaly_detector.anomalies (id)
    where published_at is null;

-- The detector's state: for each key, country and hour of event time the first and the last call.
-- What lies between them cannot change the rule's answer. Updates touch no indexed column.
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

create table anomaly_detector.inbox (
    journal_id  uuid primary key,
    applied     int8multirange not null,
    updated_at  timestamptz not null
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
    at           timestamptz not null
);
