#!/bin/sh
# Stands before rustc for the crates of the workspace: counts the branches taken, for libFuzzer.
rustc=$1
shift
exec "$rustc" "$@" -Cpasses=sancov-module -Ccodegen-units=1 \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares
