-- Who may do what. Two roles, which own nothing: `tollgate_anomaly_detector`
-- does the service's own work and sees every row; `tollgate_anomaly_detector_tenant` works for
-- whom a transaction names in `tollgate.scope`: `every`, `org:<id>`.
-- It sees that tenant's rows, and none when nobody is named.

-- Roles belong to the whole server: another of its databases may have made them, or be about to.
do $$
declare
    name text;
begin
    foreach name in array array[
        'tollgate_anomaly_detector', 'tollgate_anomaly_detector_tenant'
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
         where c.relnamespace = 'anomaly_detector'::regnamespace
           and c.relkind in ('r', 'p')
           and not c.relispartition
           and c.relname <> 'migrations'
    loop
        execute format('alter table %s enable row level security', place);
        execute format('alter table %s force row level security', place);
        execute format(
            'create policy service on %s to tollgate_anomaly_detector using (true)', place);
    end loop;
end $$;

grant usage on schema anomaly_detector
    to tollgate_anomaly_detector, tollgate_anomaly_detector_tenant;
grant select on all tables in schema anomaly_detector to tollgate_anomaly_detector;
grant update on anomaly_detector.origin to tollgate_anomaly_detector;
grant insert, update
    on anomaly_detector.anomalies, anomaly_detector.sightings, anomaly_detector.loads,
       anomaly_detector.uses, anomaly_detector.sprays, anomaly_detector.inbox
    to tollgate_anomaly_detector;
grant insert
    on anomaly_detector.created_keys, anomaly_detector.crossings,
       anomaly_detector.gaps
    to tollgate_anomaly_detector;
grant insert, update, delete on anomaly_detector.dead_letters to tollgate_anomaly_detector;
grant insert on anomaly_detector.discards to tollgate_anomaly_detector;
grant delete
    on anomaly_detector.sightings, anomaly_detector.loads, anomaly_detector.sprays,
       anomaly_detector.created_keys, anomaly_detector.crossings
    to tollgate_anomaly_detector;
grant select, update on anomaly_detector.anomalies to tollgate_anomaly_detector_tenant;

-- The id a transaction works for, when it is of this kind.
create function anomaly_detector.scope(kind text) returns uuid language sql stable parallel safe
    return case when split_part(current_setting('tollgate.scope', true), ':', 1) = kind
                then split_part(current_setting('tollgate.scope', true), ':', 2)::uuid end;

-- Whether it works for an operator.
create function anomaly_detector.sees_all() returns boolean language sql stable parallel safe
    return current_setting('tollgate.scope', true) = 'every';

create policy tenant on anomaly_detector.anomalies to tollgate_anomaly_detector_tenant
    using (anomaly_detector.sees_all() or org_id = anomaly_detector.scope('org'));
