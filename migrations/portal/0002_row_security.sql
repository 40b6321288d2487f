-- Who may do what. Two roles, which own nothing: `tollgate_portal`
-- does the service's own work and sees every row; `tollgate_portal_tenant` works for
-- whom a transaction names in `tollgate.scope`: `every`, `user:<id>`.
-- It sees that tenant's rows, and none when nobody is named.

-- Roles belong to the whole server: another of its databases may have made them, or be about to.
do $$
declare
    name text;
begin
    foreach name in array array[
        'tollgate_portal', 'tollgate_portal_tenant'
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
         where c.relnamespace = 'portal'::regnamespace
           and c.relkind in ('r', 'p')
           and not c.relispartition
           and c.relname <> 'migrations'
    loop
        execute format('alter table %s enable row level security', place);
        execute format('alter table %s force row level security', place);
        execute format(
            'create policy service on %s to tollgate_portal using (true)', place);
    end loop;
end $$;

grant usage on schema portal
    to tollgate_portal, tollgate_portal_tenant;
grant select on all tables in schema portal to tollgate_portal;
grant insert, update, delete on portal.sessions, portal.idempotency_keys to tollgate_portal;
grant select, insert, update, delete on portal.sessions, portal.idempotency_keys
    to tollgate_portal_tenant;

-- A session is its user's, whoever else is an operator.
create policy tenant on portal.sessions to tollgate_portal_tenant
    using ('user:' || user_id = current_setting('tollgate.scope', true));
-- Answers are kept under the very scope of who asked; operators share theirs.
create policy tenant on portal.idempotency_keys to tollgate_portal_tenant
    using (scope = current_setting('tollgate.scope', true));
