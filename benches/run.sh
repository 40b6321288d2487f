#!/bin/sh
# Builds with the profile `perf`, starts a private Tollgate, measures it from outside, stops it.
#
#   benches/run.sh [--workers N] [--pause-micros N] [--seconds N]
set -eu
cd "$(dirname "$0")/.."
cargo build -q --profile perf -p tollgate -p benches
dir=$(mktemp -d)
target/perf/tollgate dev --data "$dir" --ports auto --ephemeral --processes >"$dir.log" 2>&1 &
pid=$!
stop() {
    kill -TERM "$pid" 2>/dev/null || :
    wait "$pid" 2>/dev/null || :
    rm -rf "$dir" "$dir.log"
}
trap stop EXIT INT TERM
until [ -f "$dir/dev.json" ]; do
    kill -0 "$pid" 2>/dev/null || { cat "$dir.log" >&2; exit 1; }
    sleep 0.1
done
org=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["demo"]["org_id"])' \
    "$dir/dev.json")
target/perf/tollgate wallet grant --data "$dir" --org "$org" --credits 1000000000 \
    --reason 'measured calls' >/dev/null
target/perf/benches --data "$dir" "$@"
target/perf/tollgate audit --data "$dir" --wait 60 | head -n 2
