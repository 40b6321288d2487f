-- Who may do what. Two roles, which own nothing: `tollgate_wallet`
-- does the service's own work and sees every row; `tollgate_wallet_tenant` works for
-- whom a transaction names in `tollgate.scope`: `every`, `org:<id>`, `user:<id>`.
-- It sees that tenant's rows, and none when nobody is named.

-- Roles belong to the whole server: another of its databases may have made them, or be about to.
do $$
declare
    name text;
begin
    foreach name in array array[
        'tollgate_wallet', 'tollgate_wallet_tenant'
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
         where c.relnamespace = 'wallet'::regnamespace
           and c.relkind in ('r', 'p')
           and not c.relispartition
           and c.relname <> 'migrations'
    loop
        execute format('alter table %s enable row level security', place);
        execute format('alter table %s force row level security', place);
        execute format(
            'create policy service on %s to tollgate_wallet using (true)', place);
    end loop;
end $$;

grant usage on schema wallet
    to tollgate_wallet, tollgate_wallet_tenant;
grant select on all tables in schema wallet to tollgate_wallet;
grant insert, update
    on wallet.wallets, wallet.test_wallets, wallet.journals, wallet.quota_buckets, wallet.leases,
       wallet.lows, wallet.write_offs, wallet.inbox
    to tollgate_wallet;
grant update on wallet.origin, wallet.freeze to tollgate_wallet;
grant insert on wallet.acquisitions to tollgate_wallet;
grant delete on wallet.acquisitions, wallet.lows to tollgate_wallet;
grant insert on wallet.ledger_entries, wallet.gaps to tollgate_wallet;
grant insert, update, delete on wallet.dead_letters to tollgate_wallet;
grant insert on wallet.discards to tollgate_wallet;

-- Grants and epochs of test credits are written for a tenant; lending and settling are not.
grant select
    on wallet.wallets, wallet.test_wallets, wallet.quota_buckets, wallet.leases,
       wallet.ledger_entries
    to tollgate_wallet_tenant;
grant insert, update on wallet.wallets, wallet.test_wallets to tollgate_wallet_tenant;
grant insert on wallet.ledger_entries to tollgate_wallet_tenant;
grant update on wallet.leases to tollgate_wallet_tenant;

-- The id a transaction works for, when it is of this kind.
create function wallet.scope(kind text) returns uuid language sql stable parallel safe
    return case when split_part(current_setting('tollgate.scope', true), ':', 1) = kind
                then split_part(current_setting('tollgate.scope', true), ':', 2)::uuid end;

-- Whether it works for an operator.
create function wallet.sees_all() returns boolean language sql stable parallel safe
    return current_setting('tollgate.scope', true) = 'every';

create policy tenant on wallet.wallets to tollgate_wallet_tenant
    using (wallet.sees_all() or org_id = wallet.scope('org'));
create policy tenant on wallet.test_wallets to tollgate_wallet_tenant
    using (wallet.sees_all() or user_id = wallet.scope('user'));
create policy tenant on wallet.quota_buckets to tollgate_wallet_tenant
    using (wallet.sees_all() or org_id = wallet.scope('org'));
create policy tenant on wallet.ledger_entries to tollgate_wallet_tenant
    using (
        wallet.sees_all()
        or wallet_id = (select w.id from wallet.wallets w where w.org_id = wallet.scope('org'))
        or test_wallet_id = (
            select t.id from wallet.test_wallets t where t.user_id = wallet.scope('user')));
create policy tenant on wallet.leases to tollgate_wallet_tenant
    using (
        wallet.sees_all()
        or wallet_id = (select w.id from wallet.wallets w where w.org_id = wallet.scope('org'))
        or test_wallet_id = (
            select t.id from wallet.test_wallets t where t.user_id = wallet.scope('user'))
        or exists (
            select
              from wallet.quota_buckets b
             where b.id = quota_bucket_id and b.org_id = wallet.scope('org')));
