#!/usr/bin/env bash
# bench-leases.sh: what a lease costs. From a caller's question to its answer, alone and with 200 at once, at the socket
# and with the hook; what a thousand leases cost the daemon; and a container with a leased device beside one with a GPU
# that needs no lease, on real engines in a throw-away machine (tests/machine). Times are medians of runs taken in turns,
# and mean something only as ratios within one run of this script.
set -euo pipefail
cd "$(dirname "$0")/.."
export DIVVY_BUILD=${DIVVY_BUILD:-$PWD/.build}

if [ "${1:-}" != inside ]; then
  DIVVY=$DIVVY_BUILD/bin/divvy cargo test --quiet --locked --test leases -- figures
  . tests/bench-machine.sh
  bench_machine bench-leases
  $machine/in.sh $name bash -s inside <"$0"
  exit
fi

RUNS=21
work=$(mktemp -d)
cd "$work"

docker-runc() { docker run --rm --network=none "$@" bb true; }
podman-crun() { podman --runtime=crun run --rm --network=none "$@" bb true; }
podman-runc() { podman --runtime=runc run --rm --network=none "$@" bb true; }

# timed FILE COMMAND...: adds the time that the command takes, in microseconds.
timed() {
  local file=$1 t0 t1
  shift
  # This script is standard input.
  t0=${EPOCHREALTIME/./}; "$@" </dev/null >/dev/null 2>err || { echo "error: $*: $(cat err)" >&2; exit 1; }; t1=${EPOCHREALTIME/./}
  echo $((t1 - t0)) >>"$file"
}
median() { sort -n "$1" | sed -n "$(($(wc -l <"$1") / 2 + 1))p"; }

# GPU 0 needs no lease, GPU 1 does, two GPUs are four shares each: a share alone brings one GPU's nodes, the pool both.
cat >leases.toml <<'T'
[[gpu]]
match = ["1"]
exclusive = true
[[gpu]]
match = ["2", "3"]
mode = "time-slice"
replicas = 4
T
divvy --quiet generate --host sim:h100x8 --config leases.toml --state-dir /run/divvy \
  --output /var/run/cdi/divvy.json 2>/dev/null
setsid divvy serve >/var/log/divvy.log 2>&1 </dev/null &
for ((i = 0; i < 100; i++)); do [ ! -S /run/divvy/divvy.sock ] || break; sleep 0.1; done

echo "container start, medians, beside a whole GPU without a lease:"
for engine in docker-runc podman-crun podman-runc; do
  "$engine" --device=nvidia.com/gpu=0 </dev/null >/dev/null 2>&1 || true
  for ((i = 0; i < RUNS; i++)); do
    for device in 0 1 shared-0 shared; do timed "$engine.$device" "$engine" --device=nvidia.com/gpu=$device; done
  done
  for device in 1 shared-0 shared; do
    case $device in 1) what="an exclusive GPU" ;; shared-0) what="a share" ;; shared) what="a share of the pool" ;; esac
    awk -v e="$engine" -v n="$what" -v a="$(median "$engine.$device")" -v b="$(median "$engine.0")" \
      'BEGIN { printf "%-12s %-22s %7d us   a whole GPU %7d us   ratio %.2f\n", e, n, a, b, a / b }'
  done
done
