create table wallet.wallets (
    id               uuid primary key,
    org_id           uuid not null constraint wallets_org_key unique,
    balance          bigint not null default 0 check (balance >= 0),
    reserved         bigint not null default 0,
    total_purchased  bigint not null default 0 check (total_purchased >= 0),
    total_granted    bigint not null default 0 check (total_granted >= 0),
    total_refunded   bigint not null default 0 check (total_refunded >= 0),
    total_expired    bigint not null default 0,
    total_used       bigint not null default 0 check (total_used >= 0),
    currency         text not null default 'EUR',
    -- The balance after credits came in last, and when; which share of it, in percent, the balance
    -- has fallen to since (100: none that is announced).
    reference_balance  bigint not null default 0 check (reference_balance >= 0),
    reference_at       timestamptz,
    low_percent        smallint not null default 100 check (low_percent in (100, 50, 20, 10)),
    created_at       timestamptz not null,
    updated_at       timestamptz not null,
    -- I2: what is lent is there.
    constraint wallets_reserved_check check (reserved between 0 and balance),
    -- I1: conservation.
    constraint wallets_conservation_check check (
        total_purchased + total_granted - total_refunded - total_expired - total_used = balance
    )
);

-- One per user; an epoch of 30 days. Totals run over all epochs.
create table wallet.test_wallets (
    id             uuid primary key,
    user_id        uuid not null constraint test_wallets_user_key unique,
    balance        bigint not null default 0 check (balance between 0 and 100),
    reserved       bigint not null default 0,
    epoch          bigint not null default 0,
    total_granted  bigint not null default 0 check (total_granted >= 0),
    total_expired  bigint not null default 0,
    total_used     bigint not null default 0 check (total_used >= 0),
    reset_at       timestamptz not null,
    created_at     timestamptz not null,
    updated_at     timestamptz not null,
    constraint test_wallets_reserved_check check (reserved between 0 and balance),
    constraint test_wallets_conservation_check check (
        total_granted - total_expired - total_used = balance
    )
);

-- One process life of a gateway. A retired journal never gets another credit.
create table wallet.journals (
    id            uuid primary key,
    gateway       text not null,
    heartbeat_at  timestamptz not null,
    -- When its owner told all its leases last.
    told_all_at   timestamptz,
    retired_at    timestamptz
);

-- The server that knows of everything lent. On another one, or on another timeline of the same one,
-- leases may be missing: nothing is lent until the living gateways have told theirs.
create table wallet.freeze (
    is_only            boolean primary key default true check (is_only),
    system_identifier  bigint not null,
    timeline           text not null,
    -- When the last change was noticed. Leases made before it may have been lost.
    failed_over_at     timestamptz,
    -- Journals heard of since then were alive before it.
    alive_since        timestamptz,
    thawed_at          timestamptz
);
insert into wallet.freeze (system_identifier, timeline)
select system_identifier, left(pg_walfile_name(pg_current_wal_lsn()), 8) from pg_control_system();

-- Permits of one key (or of a lineage of rotated keys, under its first) for one period: as many as its quota, each good for one call. The next period
-- has a row of its own, so nothing is ever reset.
create table wallet.quota_buckets (
    id            uuid primary key,
    key_id        uuid not null,
    org_id        uuid not null,
    kind          text not null check (kind in ('daily', 'monthly')),
    period_start  timestamptz not null,
    period_end    timestamptz not null,
    -- In force now: what the newest key of the lineage, in its newest version, says among those
    -- that anybody has asked with. The ids of keys grow with time.
    quota         bigint not null check (quota > 0),
    stated_by     uuid not null,
    key_version   bigint not null,
    -- The highest that was in force in this period.
    quota_max     bigint not null,
    used          bigint not null default 0 check (used >= 0),
    reserved      bigint not null default 0 check (reserved >= 0),
    created_at    timestamptz not null,
    updated_at    timestamptz not null,
    constraint quota_buckets_period_key unique (key_id, kind, period_start),
    constraint quota_buckets_period_check check (period_start < period_end),
    constraint quota_buckets_max_check check (quota <= quota_max),
    -- No permit is issued that the quota does not have. One that is lowered below what was
    -- issued already only issues no more.
    constraint quota_buckets_issued_check check (used + reserved <= quota_max)
);

create table wallet.leases (
    id            uuid primary key,
    -- Exactly one of the three: whose credits these are, or which permits.
    wallet_id        uuid references wallet.wallets (id),
    test_wallet_id   uuid references wallet.test_wallets (id),
    quota_bucket_id  uuid references wallet.quota_buckets (id),
    -- Epoch of the test wallet; 0 for everything else.
    epoch         bigint not null default 0,
    journal_id    uuid not null references wallet.journals (id),
    -- Lent now: everything granted less everything returned.
    granted       bigint not null check (granted >= 0),
    returned_cum  bigint not null default 0 check (returned_cum >= 0),
    settled_cum   bigint not null default 0 check (settled_cum >= 0),
    known_cum     bigint not null default 0 check (known_cum >= 0),
    final_cum     bigint,
    state         text not null default 'active'
                  check (state in ('active', 'draining', 'closed', 'orphaned', 'written_off')),
    -- When its journal was found silent. The write-off counts from here, not from the last
    -- heartbeat: after a long stop of this service every journal looks silent at first.
    orphaned_at   timestamptz,
    created_at    timestamptz not null,
    updated_at    timestamptz not null,
    constraint leases_owner_check check (
        num_nonnulls(wallet_id, test_wallet_id, quota_bucket_id) = 1
    ),
    -- I3: no overspend.
    constraint leases_spent_check check (greatest(settled_cum, known_cum) <= granted),
    constraint leases_orphaned_check check ((state = 'orphaned') = (orphaned_at is not null)),
    constraint leases_final_check check (
        state <> 'closed' or (final_cum is not null and settled_cum = final_cum)
    )
);
-- A journal holds at most one lease it can still spend of a wallet and epoch, or of a bucket.
create unique index leases_active_key
    on wallet.leases (journal_id, coalesce(wallet_id, test_wallet_id, quota_bucket_id), epoch)
    where state in ('active', 'orphaned');
create index idx_leases_wallet on wallet.leases (wallet_id) where state <> 'closed';
create index idx_leases_test_wallet on wallet.leases (test_wallet_id) where state <> 'closed';
create index idx_leases_quota_bucket
    on wallet.leases (quota_bucket_id) where state <> 'closed';
-- The other open leases of a journal. An index on all of them would be taken for the one above, as
-- long as nothing is known of the table: each ask would read all leases of its journal.
create index idx_leases_draining on wallet.leases (journal_id) where state = 'draining';

-- Every Acquire by its nonce: a lost reply strands nothing.
create table wallet.acquisitions (
    journal_id   uuid not null,
    nonce        bytea not null check (octet_length(nonce) = 16),
    lease_id     uuid not null references wallet.leases (id),
    credits      bigint not null check (credits > 0),
    at           timestamptz not null,
    primary key (journal_id, nonce)
);
-- Forgotten after a day; by then nobody waits for the reply.
create index idx_acquisitions_at on wallet.acquisitions (at);

-- Append-only. Σ credits of a wallet = its balance.
create table wallet.ledger_entries (
    id               bigint generated always as identity primary key,
    wallet_id        uuid references wallet.wallets (id),
    test_wallet_id   uuid references wallet.test_wallets (id),
    epoch            bigint not null default 0,
    kind             text not null
                     check (kind in ('purchase', 'grant', 'usage', 'refund', 'expiry')),
    credits          bigint not null,
    balance_after    bigint not null check (balance_after >= 0),
    lease_id         uuid references wallet.leases (id),
    -- usage: the lease's settled total after this entry.
    cum_to           bigint,
    reason           text not null default '',
    actor            text not null default 'system',
    idempotency_key  text,
    at               timestamptz not null,
    constraint ledger_entries_owner_check check (num_nonnulls(wallet_id, test_wallet_id) = 1),
    constraint ledger_entries_lease_key unique (lease_id, cum_to),
    constraint ledger_entries_idempotency_key unique (wallet_id, kind, idempotency_key)
);
create index idx_ledger_wallet on wallet.ledger_entries (wallet_id, id desc);
create index idx_ledger_test_wallet on wallet.ledger_entries (test_wallet_id, id desc);
-- Grants and expiries of test credits happen once per epoch.
create unique index ledger_entries_epoch_key
    on wallet.ledger_entries (test_wallet_id, epoch, kind)
    where test_wallet_id is not null and kind = 'grant';

create function wallet.refuse_change() returns trigger language plpgsql as $$
begin
    raise exception 'the ledger is append-only';
end $$;
create trigger ledger_is_append_only
    before update or delete on wallet.ledger_entries
    for each row execute function wallet.refuse_change();

-- Wallets that fell to a share of what they held, once for each share and each time that credits
-- came in. What is not published yet waits here.
create table wallet.lows (
    wallet_id     uuid not null references wallet.wallets (id),
    reference_at  timestamptz not null,
    percent       smallint not null check (percent in (50, 20, 10)),
    reference     bigint not null,
    balance       bigint not null,
    at            timestamptz not null,
    published_at  timestamptz,
    primary key (wallet_id, reference_at, percent)
);
create index idx_lows_unpublished on wallet.lows (at) where published_at is null;
create index idx_lows_published on wallet.lows (published_at) where published_at is not null;

-- Spend that turned up after its lease had been written off: the provider's loss.
create table wallet.write_offs (
    lease_id    uuid primary key references wallet.leases (id),
    released    bigint not null check (released >= 0),
    late_spend  bigint not null default 0 check (late_spend >= 0),
    at          timestamptz not null
);

create table wallet.inbox (
    journal_id  uuid primary key,
    applied     int8multirange not null,
    updated_at  timestamptz not null
);

-- The server whose transactions the inbox has followed so far. Another one, or another timeline of
-- the same one, may have lost the last of them: the stream is read again.
create table wallet.origin (
    is_only            boolean primary key default true check (is_only),
    system_identifier  bigint not null,
    -- The first eight digits of the names of its WAL files.
    timeline           text not null,
    -- When the last change was noticed, and when what the stream had then was read again.
    moved_at           timestamptz,
    caught_up_at       timestamptz
);
insert into wallet.origin (system_identifier, timeline)
select system_identifier, left(pg_walfile_name(pg_current_wal_lsn()), 8) from pg_control_system();

-- Records that will never come, as the owner of their journal has declared, or
-- an operator: see `discards`. Append-only.
create table wallet.gaps (
    journal_id  uuid not null,
    from_seq    bigint not null check (from_seq >= 0),
    -- The number after the last one.
    below_seq   bigint not null,
    cause       text not null check (cause in ('damaged', 'missing', 'discarded')),
    at          timestamptz not null,
    primary key (journal_id, from_seq),
    constraint gaps_range_check check (from_seq < below_seq)
);

create table wallet.dead_letters (
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
create table wallet.discards (
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
