#!/usr/bin/env bash
# bench.sh: what divvy costs, beside a yardstick that every machine has. Counts are exact; times are medians of paired
# runs and mean something only as a ratio of two programs in the same run. Needs root: live discovery runs on a
# simulated host laid out as files and device nodes, with the mock NVML in it, in a mount namespace of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${DIVVY_BUILD:-$PWD/.build}/bin

if [ "${1:-}" != inside ]; then
  [ "$(id -u)" = 0 ] || { echo "error: the benchmark needs root" >&2; echo "hint: sudo make bench" >&2; exit 1; }
  cargo build --quiet --locked -p mock-nvml
  work=$(mktemp -d "${DIVVY_BUILD:-$PWD/.build}/bench.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  "$bin/divvy" sim h100x8 "$work/host" --quiet
  MOCK_NVML_FACTS=$PWD/src/discover/sim/h100x8.json MOCK_NVML_LOG=$work/nvml.log \
    unshare --mount --propagation private "$0" inside "$work"
  exit
fi

work=$2
mount --bind "$work/host/proc/driver" /proc/driver
mount --bind "$work/host/proc/devices" /proc/devices
lib=$(dirname "$(find "$work/host/usr/lib" -name 'libcuda.so.1')")
cp --remove-destination target/debug/libnvidia_ml.so "$lib/libnvidia-ml.so.1"
generate=("$bin/divvy" generate --driver-root "$work/host" --output "$work/divvy.json" --quiet)

# pair NAME-A NAME-B: runs the functions a and b in turn and prints the medians and their ratio.
RUNS=41
median() { sort -n "$1" | sed -n "$((RUNS / 2 + 1))p"; }
pair() {
  local i t0 t1 t2
  for ((i = 0; i < RUNS; i++)); do
    t0=${EPOCHREALTIME/./}; a >/dev/null 2>&1; t1=${EPOCHREALTIME/./}; b >/dev/null 2>&1; t2=${EPOCHREALTIME/./}
    echo $((t1 - t0)) >>"$work/a"; echo $((t2 - t1)) >>"$work/b"
  done
  awk -v a="$(median "$work/a")" -v b="$(median "$work/b")" -v na="$1" -v nb="$2" \
    'BEGIN { printf "%-26s %6d us   %-22s %6d us   ratio %.2f\n", na, a, nb, b, a / b }'
  rm "$work/a" "$work/b"
}

# calls COMMAND...: how many system calls it makes.
calls() { strace -f -o "$work/calls" "$@" >/dev/null 2>&1; grep -c ' = ' "$work/calls"; }

"${generate[@]}"
echo "sizes in bytes: divvy $(stat -c %s "$bin/divvy"), divvy-hook $(stat -c %s "$bin/divvy-hook"), spec of 8 GPUs $(stat -c %s "$work/divvy.json")"
echo "NVML in one generate: $(tr '\n' ' ' <"$work/nvml.log")"

# A root like an image's: this machine's libraries, the driver's, and a cache of the former.
root=$work/bundle/rootfs
inside=$root/${lib#"$work/host"}
mkdir -p "$inside" "$root/etc"
find "${lib#"$work/host"}" -maxdepth 1 -name '*.so.*' -exec cp -a -t "$inside" {} +
echo "${lib#"$work/host"}" >"$root/etc/ld.so.conf"
ldconfig -r "$root"
cp -a "$lib/." "$inside/"
find "$inside" -type l -lname 'lib*nvidia*' -delete
printf '{"root":{"path":"rootfs"}}' >"$work/bundle/config.json"
printf '{"ociVersion":"1.0.2","id":"bench","status":"creating","pid":1,"bundle":"%s"}' "$work/bundle" >"$work/state"
mapfile -t args < <("$bin/divvy" generate --host sim:h100x8 --format yaml | sed -n "/args:/,/env:/s/^ *- '\(.*\)'$/\1/p" | tail -n +2)
[ "${#args[@]}" -gt 10 ] || { echo "error: the hook's arguments were not found in the spec" >&2; exit 1; }
hook() { "$bin/divvy-hook" "${args[@]}" <"$work/state"; }
if command -v strace >/dev/null; then
  echo "system calls: generate $(calls "${generate[@]}"), divvy-hook at the first start $(calls "$bin/divvy-hook" "${args[@]}" <"$work/state")"
fi

a() { "${generate[@]}"; }
b() { ldconfig -p; }
pair "generate, 8 GPUs" "ldconfig -p"
a() { hook; }
b() { ldconfig -r "$root"; }
pair "divvy-hook, next starts" "ldconfig -r, same root"
