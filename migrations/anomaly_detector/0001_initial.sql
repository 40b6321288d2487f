create table anomaly_detector.anomalies (
    id            uuid primary key,
    org_id        uuid not null,
    key_id        uuid not null,
    kind          text not null check (kind in ('country_spread')),
    summary       text not null,
    details       jsonb not null default '{}',
    -- Event time at which the rule was met, and the window it covers.
    at            timestamptz not null,
    window_from   timestamptz not null,
    created_at    timestamptz not null,
    resolved_at   timestamptz,
    published_at  timestamptz
);
create index idx_anomalies_org on anomaly_detector.anomalies (org_id, id desc);
create index idx_anomalies_key on anomaly_detector.anomalies (key_id, kind, at);
create index idx_anomalies_unpublished on anomaly_detector.anomalies (id)
    where published_at is null;

-- The detector's state: for each key and country the minutes it was seen in. Kept for a day, so
-- that late events still find their neighbours.
create table anomaly_detector.sightings (
    key_id    uuid not null,
    org_id    uuid not null,
    country   text not null,
    at        timestamptz not null,
    primary key (key_id, at, country)
);
create index idx_sightings_at on anomaly_detector.sightings (at);

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
