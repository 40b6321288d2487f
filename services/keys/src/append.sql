-- Entries of the audit log and the end of its chain; what has changed, with each hash of a key.
with entry as (
    insert into keys.audit_log
        (id, org_id, actor, action, target, details, prev_hash, hash, at, address)
    select *, $9, $10
      from unnest(
           $1::bigint[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::jsonb[],
           $7::bytea[], $8::bytea[])),
head as (
    update keys.audit_head set id = $11, entries = $12, hash = $13),
announced as (
    insert into keys.changes (key_hash, key_id, version, at)
    select held.hash, k.id, k.version, $9
      from keys.api_keys k
     cross join lateral unnest(array[k.key_hash, k.previous_key_hash]) held (hash)
     where k.id = any($14) and held.hash is not null
    returning id),
positions as (
    select id from announced
     union all
    select keys.announce_change($9) where $15)
select max(id) as position from positions
