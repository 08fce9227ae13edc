#!/usr/bin/env bash
# The benches of ../shared/bench, one after the other: first Docker Engine (when dockerd is installed), then rswarm.
# Needs root, a release build, busybox-static. Both get a daemon of their own in a scratch folder, ended afterwards.
#   bash benches/beside_docker.sh [FOLDER]     BENCHES="b2_scale b6_restart" RUNS=3 SIZES="50 200" DOCKER=no
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
bench=$(cd "$root/../shared/bench" && pwd)
out=${1:-$root/target/bench}
export RUNS=${RUNS:-3} SIZES=${SIZES:-50 200} SETTLE=${SETTLE:-1} QUIET=${QUIET:-10} CPUSECS=${CPUSECS:-10}
benches=${BENCHES:-b1_create b2_scale b3_update b6_restart b4_footprint}
mkdir -p "$out"; rm -f "$out/docker.tsv" "$out/rswarm.tsv"
dir=$(mktemp -d)
pid=
finish() {
    [ -z "$pid" ] || kill "$pid" 2>/dev/null || true
    [ -z "$pid" ] || wait "$pid" 2>/dev/null || true
    pid=
}
trap 'finish; rm -rf "$dir"' EXIT
mkdir -p "$dir/image/bin"
cp /bin/busybox "$dir/image/bin/busybox"
ln -s busybox "$dir/image/bin/sleep"; ln -s busybox "$dir/image/bin/sh"
tar -C "$dir/image" -cf "$dir/image.tar" .
all() { for b in $benches; do echo "== $NAME $b"; bash "$bench/$b.sh" || echo "$b of $NAME failed"; done; }
ready() { for _ in $(seq 100); do "$@" >/dev/null 2>&1 && return; sleep 0.2; done; echo "not ready: $*"; return 1; }

if [ "${DOCKER:-yes}" = yes ] && command -v dockerd >/dev/null; then
    dockerd --host "unix://$dir/docker.sock" --data-root "$dir/docker" --exec-root "$dir/exec" --pidfile "$dir/docker.pid" \
        >"$dir/docker.log" 2>&1 &
    pid=$!
    export NAME=docker OUT="$out/docker.tsv" CLI="docker -H unix://$dir/docker.sock" MATCH='dockerd|containerd'
    if ready $CLI version && $CLI swarm init --advertise-addr 127.0.0.1 >/dev/null; then
        echo "# $($CLI version --format 'Docker {{.Server.Version}}')"
        for tag in bb:1 bb:2; do $CLI import "$dir/image.tar" $tag >/dev/null; done
        all
        $CLI swarm leave --force >/dev/null || true
    else
        tail -5 "$dir/docker.log"
    fi
    finish
    for link in docker0 docker_gwbridge; do ip link delete "$link" 2>/dev/null || true; done
else
    echo "# docker: left out (dockerd is not installed, or DOCKER=no)"
fi

cp "$root"/target/*/release/rswarm "$dir/rswarm"
"$dir/rswarm" --socket "$dir/rswarm.sock" daemon --data-dir "$dir/rswarm.d" --dataplane bench 2>"$dir/rswarm.log" &
pid=$!
export NAME=rswarm OUT="$out/rswarm.tsv" CLI="$dir/rswarm --socket $dir/rswarm.sock" MATCH="$dir/rswarm"
ready $CLI version
$CLI swarm init >/dev/null
for tag in bb:1 bb:2; do $CLI image import "$dir/image.tar" $tag >/dev/null; done
all
$CLI swarm leave --force >/dev/null
finish
echo "== medians: docker, rswarm, docker/rswarm"
if [ -f "$out/docker.tsv" ]; then
    bash "$bench/summary.sh" "$out/docker.tsv" "$out/rswarm.tsv"
else
    bash "$bench/summary.sh" "$out/rswarm.tsv"
fi
