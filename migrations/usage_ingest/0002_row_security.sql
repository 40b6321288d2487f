-- Who may do what. Two roles, which own nothing: `tollgate_usage_ingest`
-- does the service's own work and sees every row; `tollgate_usage_ingest_tenant` works for
-- whom a transaction names in `tollgate.scope`: `every`, `org:<id>`.
-- It sees that tenant's rows, and none when nobody is named.

-- Roles belong to the whole server: another of its databases may have made them, or be about to.
do $$
declare
    name text;
begin
    foreach name in array array[
        'tollgate_usage_ingest', 'tollgate_usage_ingest_tenant'
    ] loop
        if not exists (select from pg_roles where rolname = name) then
            begin
                execute format('create role %I nologin', name);
            exception when duplicate_object or unique_violation then
                null; -- somebody else was faster
            end;
        end if;
    end loop;
end $$;

-- Every table is closed, to its owner too, but for the service's own work. Where no policy and no
-- privilege below names the tenants' role, it has no business.
do $$
declare
    place regclass;
begin
    for place in
        select c.oid::regclass
          from pg_class c
         where c.relnamespace = 'usage_ingest'::regnamespace
           and c.relkind in ('r', 'p')
           and not c.relispartition
           and c.relname <> 'migrations'
    loop
        execute format('alter table %s enable row level security', place);
        execute format('alter table %s force row level security', place);
        execute format(
            'create policy service on %s to tollgate_usage_ingest using (true)', place);
    end loop;
end $$;

grant usage on schema usage_ingest
    to tollgate_usage_ingest, tollgate_usage_ingest_tenant;
grant select on all tables in schema usage_ingest to tollgate_usage_ingest;
grant update on usage_ingest.origin to tollgate_usage_ingest;
grant insert, update on usage_ingest.api_usage_logs, usage_ingest.inbox to tollgate_usage_ingest;
grant insert, update, delete on usage_ingest.idempotency_keys, usage_ingest.ended_journals
    to tollgate_usage_ingest;
grant insert, delete on usage_ingest.idempotency_full to tollgate_usage_ingest;
grant insert on usage_ingest.erasures, usage_ingest.gaps
    to tollgate_usage_ingest;
grant insert, update, delete on usage_ingest.dead_letters to tollgate_usage_ingest;
grant insert on usage_ingest.discards to tollgate_usage_ingest;
grant select on usage_ingest.api_usage_logs to tollgate_usage_ingest_tenant;

-- Partitions are reached by their table only. Their owner is let in: it moves rows between them.
alter table usage_ingest.api_usage_logs_default enable row level security;
create policy service on usage_ingest.api_usage_logs_default to tollgate_usage_ingest using (true);

-- The id a transaction works for, when it is of this kind.
create function usage_ingest.scope(kind text) returns uuid language sql stable parallel safe
    return case when split_part(current_setting('tollgate.scope', true), ':', 1) = kind
                then split_part(current_setting('tollgate.scope', true), ':', 2)::uuid end;

-- Whether it works for an operator.
create function usage_ingest.sees_all() returns boolean language sql stable parallel safe
    return current_setting('tollgate.scope', true) = 'every';

create policy tenant on usage_ingest.api_usage_logs to tollgate_usage_ingest_tenant
    using (usage_ingest.sees_all() or org_id = usage_ingest.scope('org'));

-- Gives a day its partition; the rows moved into it, or null when it was there. Runs as the owner:
-- the service itself may make no table. The partition is made apart, gets the day's rows out of the
-- default partition and is attached. Readers go on meanwhile; whoever holds these tables for long
-- is waited for the next time, not with everybody behind.
create function usage_ingest.make_partition(day date) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '5s'
as $$
declare
    name constant text := 'api_usage_logs_' || to_char(day, 'YYYYMMDD');
    moved bigint;
begin
    if to_regclass('usage_ingest.' || name) is not null then
        return null;
    end if;
    -- One instance at a time. Any constant will do, once.
    perform pg_advisory_xact_lock(8391157627425390593);
    if to_regclass('usage_ingest.' || name) is not null then
        return null;
    end if;
    -- Writers wait for these milliseconds: one that has chosen the default partition already would
    -- fail when the day gets its own.
    lock table usage_ingest.api_usage_logs in share row exclusive mode;
    execute format(
        'create table usage_ingest.%I (like usage_ingest.api_usage_logs including all)', name);
    execute format('alter table usage_ingest.%I enable row level security', name);
    execute format(
        'with moved as (
             delete from usage_ingest.api_usage_logs_default where day = %L returning *)
         insert into usage_ingest.%I select * from moved', day, name);
    get diagnostics moved = row_count;
    execute format(
        'alter table usage_ingest.api_usage_logs
          attach partition usage_ingest.%I for values from (%L) to (%L)', name, day, day + 1);
    return moved;
end $$;
revoke execute on function usage_ingest.make_partition from public;
grant execute on function usage_ingest.make_partition to tollgate_usage_ingest;
