insert into usage_ingest.api_usage_logs (
    day, journal_id, seq, request_id, api_key_id, org_id, user_id, service_id, service, endpoint,
    method, status_code, response_time_ms, upstream_time_ms, credits_used, details, ip_address,
    country, user_agent, environment, disposition, code, lease_id, lease_cum,
    permit_lease_ids, price_version, trace_id, request_bytes, response_bytes, timestamp,
    replay_of)
select day, journal_id, seq, request_id, api_key_id, org_id, user_id, service_id, service, endpoint,
       method, status_code, response_time_ms, upstream_time_ms, credits_used, details, ip_address,
       country, user_agent, environment, disposition, code, lease_id, lease_cum,
       array_remove(array[first_permit, second_permit], null), price_version, trace_id,
       request_bytes, response_bytes, timestamp, replay_of
  from unnest(
           $1::date[], $2::uuid[], $3::bigint[], $4::uuid[], $5::uuid[], $6::uuid[], $7::uuid[],
           $8::uuid[], $9::text[], $10::text[], $11::text[], $12::integer[], $13::bigint[],
           $14::bigint[], $15::bigint[], $16::jsonb[], $17::inet[], $18::text[], $19::text[],
           $20::text[], $21::text[], $22::text[], $23::uuid[], $24::bigint[], $25::bigint[],
           $26::text[], $27::bigint[], $28::bigint[], $29::timestamptz[],
           $30::uuid[], $31::uuid[], $32::uuid[]
       ) call (
           day, journal_id, seq, request_id, api_key_id, org_id, user_id, service_id, service,
           endpoint, method, status_code, response_time_ms, upstream_time_ms, credits_used, details,
           ip_address, country, user_agent, environment, disposition, code, lease_id, lease_cum,
           price_version, trace_id, request_bytes, response_bytes, timestamp,
           first_permit, second_permit, replay_of)
    on conflict (day, journal_id, seq) do nothing
