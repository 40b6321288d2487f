insert into usage_ingest.idempotency_keys as k (
    org_id, environment, key_sha256, request_id, journal_id, head_sha256, state, begun_at,
    expires_at)
select distinct on (org_id, environment, key_sha256)
       org_id, environment, key_sha256, request_id, journal_id, head_sha256, state, had_at,
       expires_at
  from unnest(
           $1::uuid[], $2::text[], $3::bytea[], $4::uuid[], $5::uuid[], $6::bytea[], $7::text[],
           $8::timestamptz[], $9::timestamptz[]
       ) call (
           org_id, environment, key_sha256, request_id, journal_id, head_sha256, state, had_at,
           expires_at)
 -- As it is nearly always: known, and left alone without a lock.
 where not exists (
           select
             from usage_ingest.idempotency_keys known
            where known.org_id = call.org_id
              and known.environment = call.environment
              and known.key_sha256 = call.key_sha256
              and known.request_id = call.request_id)
 -- What was noted has ended: its row says all there is to say. Clocks differ, so a day more.
   and (call.state <> 'open'
        or not exists (
           select
             from usage_ingest.api_usage_logs ended
            where ended.request_id = call.request_id
              and ended.day >= (call.had_at at time zone 'utc')::date - 1))
 order by org_id, environment, key_sha256, had_at desc
    on conflict (org_id, environment, key_sha256) do update
   set request_id = excluded.request_id, journal_id = excluded.journal_id,
       head_sha256 = excluded.head_sha256, state = excluded.state, request_body_sha256 = null,
       status = null, header_names = null, header_values = null, body = null,
       begun_at = excluded.begun_at, expires_at = excluded.expires_at
 -- Who began before this one had it had the key before it. Who counts, or is under way, keeps it
 -- for its time: he who was noted had it before, whatever the clocks say.
 where k.request_id <> excluded.request_id
   and k.begun_at < excluded.begun_at
   and (excluded.state <> 'open'
        or k.expires_at <= excluded.begun_at
        or (k.state = 'open'
            and (exists (
                    select
                      from usage_ingest.ended_journals ended
                     where ended.journal_id = k.journal_id)
                 or exists (
                    select
                      from usage_ingest.api_usage_logs ended
                     where ended.request_id = k.request_id
                       and ended.day >= (k.begun_at at time zone 'utc')::date - 1))))
