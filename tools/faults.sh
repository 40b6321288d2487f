#!/bin/sh
# Runs fault tests in their long forms and prints a line a fault.
#
#   tools/faults.sh                 all of them: hours
#   tools/faults.sh F1,F6           those of 05-FAULTS' table with these numbers
#   tools/faults.sh F1 3600         the same, for as many seconds where a test can last any time
#
# FAULT_SEED=N repeats the lots of a run (each line says its seed), FAULT_HOLD=1 leaves a stack as it
# is when it does not add up, FAULT_PROFILE=release measures a release (no crash points).
set -eu
cd "$(dirname "$0")/.."
faults=${1-}
seconds=${2-}

# F1,F6 → tests named …::f01_… or …_f06_…
filter='test(/^(crash|dead_letters|fault|security|sim)::/) | test(/::f[0-9][0-9]_/)'
if [ -n "$faults" ]; then
    numbers=
    cores=
    for fault in $(printf '%s' "$faults" | tr ',' ' '); do
        case $fault in
        [Ff][0-9] | [Ff][0-9][0-9]) ;;
        *) printf 'faults: %s is none of F1 to F28\n' "$fault" >&2; exit 64 ;;
        esac
        # Those of the simulator, the model and the interleavings have names of their own.
        [ "$fault" != F26 ] || cores='| test(/^(sim|model)::/) | test(/interleave/)'
        numbers="$numbers|$(printf 'f%02d' "$(printf '%s' "${fault#[Ff]}" | sed 's/^0//')")"
    done
    filter="test(/(::|_)(${numbers#|})_/) $cores"
fi

lines=$(mktemp)
trap 'rm -f "$lines"' EXIT INT TERM
status=0
FAULT_LINES=$lines FAULT_SECONDS=$seconds \
    cargo nextest run -p tollgate -p gateway --cargo-quiet --profile faults --run-ignored all \
    ${FAULT_PROFILE:+--cargo-profile "$FAULT_PROFILE"} -E "$filter" || status=$?
sort "$lines"
exit $status
