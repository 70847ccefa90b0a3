#!/usr/bin/env bash
# bench.sh: what divvy costs, beside a yardstick that every machine has. Counts are exact; times are medians of paired
# runs and mean something only as a ratio of two programs in the same run.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${DIVVY_BUILD:-$PWD/.build}/bin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
generate=("$bin/divvy" generate --host sim:h100x8 --output "$work/divvy.json" --quiet)

# Median wall time of RUNS runs of two commands in turn, in microseconds.
RUNS=41
pair() { # NAME-A NAME-B, commands in the functions a and b
  local i t0 t1 t2
  for ((i = 0; i < RUNS; i++)); do
    t0=${EPOCHREALTIME/./}; a >/dev/null 2>&1; t1=${EPOCHREALTIME/./}; b >/dev/null 2>&1; t2=${EPOCHREALTIME/./}
    echo $((t1 - t0)) >>"$work/a"; echo $((t2 - t1)) >>"$work/b"
  done
  local ma mb
  ma=$(sort -n "$work/a" | sed -n "$((RUNS / 2 + 1))p"); mb=$(sort -n "$work/b" | sed -n "$((RUNS / 2 + 1))p")
  awk -v a="$ma" -v b="$mb" -v na="$1" -v nb="$2" 'BEGIN { printf "%-34s %6d us   %-24s %6d us   ratio %.2f\n", na, a, nb, b, a / b }'
  rm -f "$work/a" "$work/b"
}

echo "sizes: divvy $(stat -c %s "$bin/divvy") bytes, divvy-hook $(stat -c %s "$bin/divvy-hook") bytes"
"${generate[@]}"
echo "spec of 8 GPUs: $(stat -c %s "$work/divvy.json") bytes"

a() { "${generate[@]}"; }
b() { ldconfig -p; }
pair "generate, 8 simulated GPUs" "ldconfig -p"

# A root like a small image's: the hook's whole work against ldconfig on the same root.
root=$work/bundle/rootfs
mkdir -p "$root/usr" "$root/etc" "$root/proc"
"$bin/divvy" sim h100x8 "$work/sim" --quiet 2>/dev/null || { echo "the hook's part needs root (divvy sim makes device nodes)"; exit 0; }
cp -a "$work/sim/usr/." "$root/usr/"
lib=$(dirname "$(find "$root/usr" -name 'libcuda.so.*.*')")
find /usr/lib/"$(uname -m)"-linux-gnu -maxdepth 1 -name '*.so.*' -exec cp -a -t "$lib" {} +
find "$lib" -type l -name 'libcuda*' -delete
echo "$lib" | sed "s|^$root||" >"$root/etc/ld.so.conf"
ldconfig -r "$root"
printf '{"root":{"path":"rootfs"}}' >"$work/bundle/config.json"
printf '{"ociVersion":"1.0.2","id":"bench","status":"creating","pid":1,"bundle":"%s"}' "$work/bundle" >"$work/state"
mapfile -t args < <(jq -r '.containerEdits.hooks[0].args[1:][]' "$work/divvy.json")
a() { "$bin/divvy-hook" "${args[@]}" <"$work/state"; }
b() { ldconfig -r "$root"; }
a
pair "divvy-hook create-container" "ldconfig -r, same root"
if command -v strace >/dev/null; then
  strace -f -c -o "$work/calls" "$bin/divvy-hook" "${args[@]}" <"$work/state"
  echo "system calls of the hook: $(awk '$NF == "total" { print $(NF - 1) == "total" ? $4 : $(NF - 2) ~ /^[0-9]+$/ ? $(NF - 2) : $4 }' "$work/calls" | head -1)"
fi
