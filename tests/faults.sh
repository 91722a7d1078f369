#!/usr/bin/env bash
# Runs the fault suite: processes of the real binary on a PostgreSQL and a Redis of their own, under load, while
# processes, servers, networks, clocks and providers fail. It prints the seed, the faults injected, the operations
# checked and the violations found, and fails where there is one.
#
#   bash tests/faults.sh [minutes]                  10 if not said
#   LONGSHORE_TEST_SEED=… bash tests/faults.sh      the same choices once more
set -euo pipefail
minutes=${1:-10}
[[ $minutes =~ ^[0-9]+([.][0-9]+)?$ ]] || { printf 'faults: `%s` is no number of minutes\n' "$minutes" >&2; exit 2; }
export LONGSHORE_TEST_FAULT_MINUTES=$minutes
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" --profile faults --no-capture -E 'test(/^faults::/)'
