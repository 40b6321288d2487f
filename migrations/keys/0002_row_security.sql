-- Who may do what. Two roles, which own nothing: `tollgate_keys`
-- does the service's own work and sees every row; `tollgate_keys_tenant` works for
-- whom a transaction names in `tollgate.scope`: `every`, `user:<id>`.
-- It sees that tenant's rows, and none when nobody is named.

-- Roles belong to the whole server: another of its databases may have made them, or be about to.
do $$
declare
    name text;
begin
    foreach name in array array[
        'tollgate_keys', 'tollgate_keys_tenant'
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
         where c.relnamespace = 'keys'::regnamespace
           and c.relkind in ('r', 'p')
           and not c.relispartition
           and c.relname <> 'migrations'
    loop
        execute format('alter table %s enable row level security', place);
        execute format('alter table %s force row level security', place);
        execute format(
            'create policy service on %s to tollgate_keys using (true)', place);
    end loop;
end $$;

grant usage on schema keys
    to tollgate_keys, tollgate_keys_tenant;
grant select on all tables in schema keys to tollgate_keys;
grant insert, update
    on keys.users, keys.mail_tokens, keys.throttles, keys.outbox_mail, keys.organisations,
       keys.anomalies, keys.anomaly_actions, keys.changes, keys.gateways, keys.instances,
       keys.peppers, keys.low_balances
    to tollgate_keys;
grant insert on keys.organisation_members, keys.audit_log to tollgate_keys;
grant insert, update, delete on keys.dead_letters to tollgate_keys;
grant insert on keys.discards to tollgate_keys;
grant update on keys.invitations, keys.api_keys, keys.outbox_created, keys.audit_head
    to tollgate_keys;
grant delete
    on keys.mail_tokens, keys.throttles, keys.outbox_created, keys.anomalies, keys.gateways,
       keys.instances
    to tollgate_keys;

-- The id a transaction works for, when it is of this kind.
create function keys.scope(kind text) returns uuid language sql stable parallel safe
    return case when split_part(current_setting('tollgate.scope', true), ':', 1) = kind
                then split_part(current_setting('tollgate.scope', true), ':', 2)::uuid end;

-- Whether it works for an operator.
create function keys.sees_all() returns boolean language sql stable parallel safe
    return current_setting('tollgate.scope', true) = 'every';

-- The organisations of the user a transaction works for. Runs as the owner: a policy of the members
-- that looked for members itself would never end.
create function keys.scope_orgs() returns uuid[] language sql stable security definer
set search_path = pg_catalog, pg_temp
    return array(
        select m.org_id from keys.organisation_members m where m.user_id = keys.scope('user'));

-- People of an organisation as others there see them: without what they sign in with. In the
-- tenants' role this is all there is to see of others. Who has left is among them for as long as
-- live keys of theirs wait to be reviewed.
create function keys.people_of(org uuid)
returns table (id uuid, email text, name text, language text)
language sql stable security definer rows 10
set search_path = pg_catalog, pg_temp
begin atomic
    select u.id, u.email, u.name, u.language
      from keys.users u
     where (current_setting('role') = 'tollgate_keys'
            or keys.sees_all()
            or org = any (keys.scope_orgs()))
       and u.id in (
            select m.user_id from keys.organisation_members m where m.org_id = org
             union
            select k.created_by
              from keys.key_reviews r
              join keys.api_keys k on k.id = r.key_id
             where r.org_id = org and r.kept_at is null);
end;

-- Runs as the owner: at the end of a transaction in which somebody has left, he sees no owner.
alter function keys.check_owner() security definer set search_path = pg_catalog, pg_temp;

-- What runs as the owner reads these, and no more.
do $$
declare
    place text;
begin
    foreach place in array array[
        'users', 'organisations', 'organisation_members', 'api_keys', 'key_reviews'
    ] loop
        execute format(
            'create policy owner on keys.%I for select to current_user using (true)', place);
    end loop;
end $$;

-- What belongs to an organisation is seen by its members.
do $$
declare
    place text;
begin
    foreach place in array array[
        'organisation_members', 'invitations', 'api_keys', 'key_reviews', 'anomalies',
        'anomaly_actions', 'leak_reports'
    ] loop
        execute format(
            'create policy tenant on keys.%I to tollgate_keys_tenant
                using (keys.sees_all() or org_id = any ((select keys.scope_orgs())::uuid[]))',
            place);
    end loop;
end $$;
create policy tenant on keys.organisations to tollgate_keys_tenant
    using (keys.sees_all() or id = any ((select keys.scope_orgs())::uuid[]));
grant select, insert, update
    on keys.invitations, keys.api_keys, keys.key_reviews, keys.anomalies
    to tollgate_keys_tenant;
grant select, insert, update, delete on keys.organisation_members to tollgate_keys_tenant;
grant select, update on keys.organisations, keys.anomaly_actions to tollgate_keys_tenant;
grant select, insert on keys.leak_reports to tollgate_keys_tenant;

-- An account is its user's.
create policy tenant on keys.users to tollgate_keys_tenant
    using (keys.sees_all() or id = keys.scope('user'));
create policy tenant on keys.recovery_codes to tollgate_keys_tenant
    using (keys.sees_all() or user_id = keys.scope('user'));
create policy tenant on keys.mail_tokens to tollgate_keys_tenant
    using (keys.sees_all() or user_id = keys.scope('user'));
grant select, insert, update on keys.users to tollgate_keys_tenant;
grant select, insert, update, delete on keys.recovery_codes to tollgate_keys_tenant;
grant select, insert, delete on keys.mail_tokens to tollgate_keys_tenant;

-- The log of an organisation is its members'; everybody adds to the one chain.
create policy tenant on keys.audit_log for select to tollgate_keys_tenant
    using (keys.sees_all() or org_id = any ((select keys.scope_orgs())::uuid[]));
create policy tenant_adds on keys.audit_log for insert to tollgate_keys_tenant
    with check (
        org_id is null
        or keys.sees_all()
        or org_id = any ((select keys.scope_orgs())::uuid[]));
create policy tenant on keys.audit_head to tollgate_keys_tenant using (true);
grant select, insert on keys.audit_log to tollgate_keys_tenant;
grant select, update on keys.audit_head to tollgate_keys_tenant;

-- Announces a change of no key: of the catalogue, or of an organisation's origins. Runs as the
-- owner, since tenants see no such row.
create policy owner on keys.changes to current_user using (key_id is null);
create function keys.announce_change(moment timestamptz) returns bigint language sql
security definer set search_path = pg_catalog, pg_temp
begin atomic
    insert into keys.changes (at) values (moment) returning id;
end;

-- Announced are keys that one sees. The rest of the row is not for tenants: nothing of it is asked
-- for but the position.
create policy tenant on keys.changes to tollgate_keys_tenant
    using (keys.sees_all() or exists (select from keys.api_keys k where k.id = key_id));
create policy tenant on keys.outbox_created to tollgate_keys_tenant
    using (exists (select from keys.api_keys k where k.id = key_id));
create policy tenant on keys.outbox_mail for insert to tollgate_keys_tenant with check (true);
grant insert, select (id) on keys.changes to tollgate_keys_tenant;
grant insert on keys.outbox_created, keys.outbox_mail to tollgate_keys_tenant;

-- The catalogue is everybody's to read, and operators' to change.
do $$
declare
    place text;
begin
    foreach place in array array['services', 'scopes', 'routes'] loop
        execute format(
            'create policy tenant on keys.%I for select to tollgate_keys_tenant using (true)',
            place);
        execute format(
            'create policy operator on keys.%I to tollgate_keys_tenant using (keys.sees_all())',
            place);
    end loop;
end $$;
grant select, insert, update on keys.services, keys.scopes, keys.routes to tollgate_keys_tenant;
