#!/bin/sh
# Checks the dependency tree against deny.toml. The advisory database is left to where it can be had.
#
#   tools/deny.sh                fails if cargo-deny is not installed
#   tools/deny.sh if-installed   says so and goes on: installing it takes minutes
set -eu
cd "$(dirname "$0")/.."
if ! command -v cargo-deny >/dev/null 2>&1; then
    [ "${1:-}" = if-installed ] && echo 'skipped, cargo-deny is not installed;' && exit 0
    echo 'deny: cargo-deny is missing: cargo install cargo-deny --locked' >&2
    exit 1
fi
exec cargo deny --log-level error check --hide-inclusion-graph bans licenses sources
