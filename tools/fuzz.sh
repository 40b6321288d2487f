#!/bin/sh
# Runs the fuzz targets, each for so many seconds: tools/fuzz.sh [SECONDS] [TARGET…]
#
# Stable Rust and a C++ compiler are enough. Only our crates are instrumented for coverage, so
# nothing else is built anew. What reaches new code is added to fuzz/corpus; what breaks a target
# is left in fuzz/found, and is a test once it is moved to the corpus.
set -eu
cd "$(dirname "$0")/.."
root=$PWD
seconds=${1:-60}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- journal batch key path units
command -v c++ >/dev/null 2>&1 || { echo 'fuzz: needs a C++ compiler' >&2; exit 1; }

export RUSTC_WORKSPACE_WRAPPER="$root/tools/coverage.sh"
echo 'fuzz: building the instrumented targets' >&2
cargo test -q -p fuzz --features runner --test fuzz --no-run
runner=$(cargo test -p fuzz --features runner --test fuzz --no-run --message-format json 2>/dev/null |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)

for target in "$@"; do
    mkdir -p fuzz/found "fuzz/corpus/$target"
    new=$(mktemp -d)
    printf '%-8s' "$target"
    FUZZ_TARGET=$target "$runner" "$new" "fuzz/corpus/$target" -max_total_time="$seconds" \
        -max_len=4096 -timeout=10 -rss_limit_mb=2048 -artifact_prefix=fuzz/found/"$target"- \
        -print_final_stats=1 >"$new.log" 2>&1 || { cat "$new.log" >&2; exit 1; }
    sed -n 's/^stat::number_of_executed_units: *\([0-9]*\)/ \1 executions/p' "$new.log" | tr -d '\n'
    # Only what reaches more than the corpus does is kept.
    FUZZ_TARGET=$target "$runner" -merge=1 "fuzz/corpus/$target" "$new" >"$new.log" 2>&1
    printf ', %s inputs kept\n' "$(find "fuzz/corpus/$target" -type f | wc -l)"
    rm -rf "$new" "$new.log"
done
