#!/bin/sh
# Lints the protos by the rules of proto/buf.yaml.
set -eu
cd "$(dirname "$0")/../proto"
buf=$(find ../.tools/buf-bin -name buf -type f 2>/dev/null | head -n 1)
[ -n "$buf" ] || { echo 'protos: run `make tools` first' >&2; exit 1; }
exec "$buf" lint
