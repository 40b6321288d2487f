-- Who may do what. Two roles, which own nothing: `tollgate_stats_aggregator`
-- does the service's own work and sees every row; `tollgate_stats_aggregator_tenant` works for
-- whom a transaction names in `tollgate.scope`: `every`, `org:<id>`.
-- It sees that tenant's rows, and none when nobody is named.

-- Roles belong to the whole server: another of its databases may have made them, or be about to.
do $$
declare
    name text;
begin
    foreach name in array array[
        'tollgate_stats_aggregator', 'tollgate_stats_aggregator_tenant'
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
         where c.relnamespace = 'stats_aggregator'::regnamespace
           and c.relkind in ('r', 'p')
           and not c.relispartition
           and c.relname <> 'migrations'
    loop
        execute format('alter table %s enable row level security', place);
        execute format('alter table %s force row level security', place);
        execute format(
            'create policy service on %s to tollgate_stats_aggregator using (true)', place);
    end loop;
end $$;

grant usage on schema stats_aggregator
    to tollgate_stats_aggregator, tollgate_stats_aggregator_tenant;
grant select on all tables in schema stats_aggregator to tollgate_stats_aggregator;
grant update on stats_aggregator.origin to tollgate_stats_aggregator;
grant insert, update
    on stats_aggregator.daily_stats, stats_aggregator.hourly_stats, stats_aggregator.inbox
    to tollgate_stats_aggregator;
grant insert on stats_aggregator.gaps to tollgate_stats_aggregator;
grant insert, update, delete on stats_aggregator.dead_letters to tollgate_stats_aggregator;
grant insert on stats_aggregator.discards to tollgate_stats_aggregator;
grant select on stats_aggregator.daily_stats, stats_aggregator.hourly_stats
    to tollgate_stats_aggregator_tenant;

-- The id a transaction works for, when it is of this kind.
create function stats_aggregator.scope(kind text) returns uuid language sql stable parallel safe
    return case when split_part(current_setting('tollgate.scope', true), ':', 1) = kind
                then split_part(current_setting('tollgate.scope', true), ':', 2)::uuid end;

-- Whether it works for an operator.
create function stats_aggregator.sees_all() returns boolean language sql stable parallel safe
    return current_setting('tollgate.scope', true) = 'every';

create policy tenant on stats_aggregator.daily_stats to tollgate_stats_aggregator_tenant
    using (stats_aggregator.sees_all() or org_id = stats_aggregator.scope('org'));
create policy tenant on stats_aggregator.hourly_stats to tollgate_stats_aggregator_tenant
    using (stats_aggregator.sees_all() or org_id = stats_aggregator.scope('org'));
