-- Sessions of people at the management API and the pages.
create table portal.sessions (
    id                uuid primary key,
    -- sha256 of the token; the token itself is stored nowhere.
    token_hash        bytea not null constraint sessions_token_hash_key unique
                      check (octet_length(token_hash) = 32),
    user_id           uuid not null,
    -- The session ends when the user's epoch is another.
    session_epoch     bigint not null,
    created_at        timestamptz not null,
    last_seen_at      timestamptz not null,
    -- The absolute end, whatever the use.
    expires_at        timestamptz not null check (expires_at > created_at),
    -- When a second factor was presented in this session.
    second_factor_at  timestamptz,
    address           inet not null,
    user_agent        text not null default ''
) with (fillfactor = 80);
create index idx_sessions_user on portal.sessions (user_id);
create index idx_sessions_expiry on portal.sessions (expires_at);

-- What was answered to a request with an `Idempotency-Key`. The row is there before the request is
-- carried out; without an answer it says that the outcome is not known (yet).
create table portal.idempotency_keys (
    -- Who asked: `every` for operators, or `user:<id>`.
    scope         text not null,
    key           text not null check (length(key) between 1 and 64),
    -- Method and path.
    target        text not null,
    -- sha256 of target and body.
    request_hash  bytea not null check (octet_length(request_hash) = 32),
    status        smallint,
    -- The answer without secrets.
    body          bytea,
    created_at    timestamptz not null,
    primary key (scope, key),
    constraint idempotency_keys_answer_check check (num_nulls(status, body) in (0, 2))
);
create index idx_idempotency_keys_created on portal.idempotency_keys (created_at);
