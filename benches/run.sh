#!/bin/sh
# Builds a release; for each measurement starts a private Tollgate, measures it from
# outside, audits and stops it.
#
#   benches/run.sh                          the usual set
#   benches/run.sh MEASUREMENT [OPTION]…    one of them; `calls` if only options are given
#   benches/run.sh edge [OPTION]…           Tollgate beside other proxies, a quarter of an hour
#   benches/run.sh instructions [OPTION]…   instructions of a call against those kept (UPDATE=1)
set -eu
cd "$(dirname "$0")/.."
[ "${1-}" != edge ] || tools/prepare.sh edge
cargo build -q --release -p tollgate -p benches
bin=${CARGO_TARGET_DIR:-target}/release

stop() {
    kill -TERM "$pid" 2>/dev/null || :
    wait "$pid" 2>/dev/null || :
    rm -rf "$dir" "$dir.log"
}

# measure MEASUREMENT [OPTION]…
measure() {
    # Calls are compared with earlier figures of one gateway; the rest is about several.
    gateways=2
    [ "$1" != calls ] || gateways=1
    # Timing needs each unknown key to be looked up; `strangers` is what shows that they are not.
    lift=
    [ "$1" != timing ] || lift=1000000
    # Figures of a core are of one thread.
    threads=
    case $1 in
    edge | instructions)
        gateways=1
        threads=1
        ulimit -n "$(ulimit -Hn)"
        ;;
    esac
    dir=$(mktemp -d)
    env ${threads:+TOLLGATE_GATEWAY_THREADS=$threads} \
        ${threads:+OTEL_TRACES_SAMPLER=parentbased_traceidratio} \
        ${lift:+TOLLGATE_GATEWAY_UNKNOWN_KEYS_PER_MINUTE_MAX=$lift} \
        ${lift:+TOLLGATE_GATEWAY_UNKNOWN_LOOKUPS_PER_SECOND_MAX=$lift} \
        "$bin/tollgate" dev --data "$dir" --ports auto --ephemeral --processes \
        --gateways "$gateways" >"$dir.log" 2>&1 &
    pid=$!
    trap stop EXIT INT TERM
    until [ -f "$dir/dev.json" ]; do
        kill -0 "$pid" 2>/dev/null || { cat "$dir.log" >&2; exit 1; }
        sleep 0.1
    done
    org=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["demo"]["org_id"])' \
        "$dir/dev.json")
    "$bin/tollgate" wallet grant --data "$dir" --org "$org" --credits 1000000000 \
        --reason 'measured calls' >/dev/null
    echo "--- $*"
    "$bin/benches" --data "$dir" "$@"
    "$bin/tollgate" audit --data "$dir" --wait 600 | head -n 2
    trap - EXIT INT TERM
    stop
}

case ${1-} in
'')
    measure calls
    measure backlog
    measure verification
    measure revocation
    measure pepper
    measure strangers
    measure timing
    ;;
help) "$bin/benches" "$@" ;;
instructions)
    shift
    measure instructions ${UPDATE:+--update} "$@"
    ;;
-*) measure calls "$@" ;;
*) measure "$@" ;;
esac
