#!/usr/bin/env bash
# bench.sh: what divvy costs, beside a yardstick that every machine has. Counts are exact; times are medians of paired
# runs and mean something only as a ratio of two programs in the same run. Needs root: live discovery runs on a
# simulated host laid out as files and device nodes, with the mock NVML in it, in a mount namespace of its own.
# The curve of time over devices is drawn in .build/bench.svg.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${DIVVY_BUILD:-$PWD/.build}/bin

if [ "${1:-}" != inside ]; then
  [ "$(id -u)" = 0 ] || { echo "error: the benchmark needs root" >&2; echo "hint: sudo make bench" >&2; exit 1; }
  cargo build --quiet --locked -p mock-nvml
  work=$(mktemp -d "${DIVVY_BUILD:-$PWD/.build}/bench.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  "$bin/divvy" sim hgx-h100 "$work/host" --quiet
  # The same host once more behind it, in the second PCI domain: 16 GPUs.
  awk '/^    \{/ { gpus = 1 } /^  \]/ { gpus = 0 } gpus' src/discover/sim/h100x8.json >"$work/eight"
  awk -v work="$work" '
    FNR == NR { second = second more($0) "\n"; next }
    /^  \]/ && !done { printf ",\n%s", second; done = 1 } { print }
    function more(line) {
      if (line ~ /"(index|minor)":/) { match(line, /[0-9]+/); return substr(line, 1, RSTART - 1) substr(line, RSTART, RLENGTH) + 8 "," }
      sub(/"GPU-......../, "\"GPU-00000000", line); sub(/"00000000:/, "\"00000001:", line); return line }
  ' "$work/eight" src/discover/sim/h100x8.json >"$work/sixteen.json"
  for minor in {8..15}; do mknod -m 666 "$work/host/dev/nvidia$minor" c 195 "$minor"; done
  MOCK_NVML_FACTS=$PWD/src/discover/sim/h100x8.json MOCK_NVML_LOG=$work/nvml.log \
    unshare --mount --propagation private "$0" inside "$work"
  exit
fi

work=$2
mount --bind "$work/host/proc/driver" /proc/driver
mount --bind "$work/host/proc/devices" /proc/devices
mount --bind "$work/host/sys/bus" /sys/bus
lib=$(dirname "$(find "$work/host/usr/lib" -name 'libcuda.so.1')")
cp --remove-destination target/debug/libnvidia_ml.so "$lib/libnvidia-ml.so.1"
generate=("$bin/divvy" generate --driver-root "$work/host" --output "$work/divvy.json" --quiet)

# pair NAME-A NAME-B: runs the functions a and b in turn, each after the function before, whose time does not count, and
# prints the medians and their ratio.
RUNS=41
before() { :; }
median() { sort -n "$1" | sed -n "$((RUNS / 2 + 1))p"; }
pair() {
  local i t0 t1 t2 t3
  for ((i = 0; i < RUNS; i++)); do
    before; t0=${EPOCHREALTIME/./}; a >/dev/null 2>&1; t1=${EPOCHREALTIME/./}
    before; t2=${EPOCHREALTIME/./}; b >/dev/null 2>&1; t3=${EPOCHREALTIME/./}
    echo $((t1 - t0)) >>"$work/a"; echo $((t3 - t2)) >>"$work/b"
  done
  awk -v a="$(median "$work/a")" -v b="$(median "$work/b")" -v na="$1" -v nb="$2" \
    'BEGIN { printf "%-26s %6d us   %-22s %6d us   ratio %.2f\n", na, a, nb, b, a / b }'
  rm "$work/a" "$work/b"
}

# shares REPLICAS: the configuration that cuts every GPU so.
shares() { printf '[[gpu]]\nmatch = ["all"]\nmode = "time-slice"\nreplicas = %d\n' "$1"; }

# calls COMMAND...: how many system calls it makes.
calls() { strace -f -o "$work/calls" "$@" >/dev/null 2>&1; grep -c ' = ' "$work/calls"; }

"${generate[@]}"
echo "sizes in bytes: divvy $(stat -c %s "$bin/divvy"), divvy-hook $(stat -c %s "$bin/divvy-hook"), spec of 8 GPUs $(stat -c %s "$work/divvy.json")"
echo "NVML in one generate: $(tr '\n' ' ' <"$work/nvml.log")"

# A root like an image's: 60 of this machine's libraries, a cache of them, and the driver's as an engine mounts them. It is
# in memory: what a disk takes to make a file would drown the rest.
mkdir "$work/bundle"
mount -t tmpfs tmpfs "$work/bundle"
root=$work/bundle/rootfs
inside=$root/${lib#"$work/host"}
mkdir -p "$inside" "$root/etc"
find "${lib#"$work/host"}" -maxdepth 1 -type f -name 'lib*.so.*' | sort | head -n 60 | xargs cp -t "$inside"
echo "${lib#"$work/host"}" >"$root/etc/ld.so.conf"
ldconfig -r "$root"
libraries=$(ldconfig -r "$root" -p | grep -c ' => ')
(cd "$lib" && find . -type f -exec cp --parents -t "$inside" {} +)
cp -a "$root" "$work/bundle/fresh"
printf '{"root":{"path":"rootfs"}}' >"$work/bundle/config.json"
printf '{"ociVersion":"1.0.2","id":"bench","status":"creating","pid":1,"bundle":"%s"}' "$work/bundle" >"$work/state"
mapfile -t args < <("$bin/divvy" generate --host sim:h100x8 --format yaml | sed -n "/args:/,/env:/s/^ *- '\(.*\)'$/\1/p" | tail -n +2)
[ "${#args[@]}" -gt 10 ] || { echo "error: the hook's arguments were not found in the spec" >&2; exit 1; }
hook() { "$bin/divvy-hook" "${args[@]}" <"$work/state"; }
# Counted from fork(2) on, so by a small parent (tests/support/peak.rs).
peak='my $call = `uname -m` =~ /x86_64/ ? 98 : 165; system(@ARGV); my $usage = "\0" x 144; syscall($call, -1, $usage); print unpack("x32 q", $usage)'
echo "memory: generate has $(perl -e "$peak" "${generate[@]}") KiB resident at most, divvy-hook $(perl -e "$peak" "$bin/divvy-hook" "${args[@]}" <"$work/state") KiB"
if command -v strace >/dev/null; then
  echo "system calls: generate $(calls "${generate[@]}"), divvy-hook at a next start $(calls "$bin/divvy-hook" "${args[@]}" <"$work/state")"
fi

# The file that is there differs each time: a run that finds its own work done does less.
a() { : >"$work/divvy.json"; "${generate[@]}"; }
b() { ldconfig -p; }
pair "generate, 8 GPUs" "ldconfig -p"
shares 60 >"$work/60.toml"
a() { : >"$work/divvy.json"; MOCK_NVML_FACTS=$work/sixteen.json "${generate[@]}" --config "$work/60.toml"; }
a
devices=$(grep -c '^{"name":"shared-' "$work/divvy.json")
[ "$devices" = 960 ] || { echo "error: $devices devices in place of 960" >&2; exit 1; }
pair "generate, 16 GPUs x 60" "ldconfig -p"
echo "spec of $devices shares: $(stat -c %s "$work/divvy.json") bytes"
# Every start but a container's first finds the work done.
a() { hook; }
b() { ldconfig -r "$root"; }
pair "divvy-hook, next starts" "ldconfig -r, same root"
# The first start, on a fresh root; ldconfig makes the SONAMEs' links and the cache, and no others.
before() { rm -rf "$root"; cp -a "$work/bundle/fresh" "$root"; }
before; hook
echo "a first start: $libraries libraries of the image, $(grep -c '^--library' <(printf '%s\n' "${args[@]}")) of the driver, $(find "$root" -newer "$work/state" -type l | wc -l) links made"
pair "divvy-hook, first start" "ldconfig -r, same root"
b() { for _ in 1 2 3 4 5 6 7; do /bin/true; done; }
pair "divvy-hook, first start" "7 times /bin/true"
before() { :; }

# Time over devices, 16 GPUs: medians of 21 runs each, taken in turns so that a slow second falls on all alike.
RUNS=21
points=(1 15 30 60 120 240 480)
for n in "${points[@]}"; do shares "$n" >"$work/$n.toml"; done
for ((i = 0; i < RUNS; i++)); do
  for n in "${points[@]}"; do
    # Else it would be compared with the file of the run before, of another size.
    : >"$work/divvy.json"
    t0=${EPOCHREALTIME/./}
    MOCK_NVML_FACTS=$work/sixteen.json "${generate[@]}" --config "$work/$n.toml"
    t1=${EPOCHREALTIME/./}
    echo $((t1 - t0)) >>"$work/curve.$n"
  done
done
for n in "${points[@]}"; do echo "$((16 * n)) $(median "$work/curve.$n")"; done >"$work/curve"
awk -v svg="${DIVVY_BUILD:-$PWD/.build}/bench.svg" '
  { x[NR] = $1; y[NR] = $2; sx += $1; sy += $2; sxx += $1 * $1; sxy += $1 * $2; syy += $2 * $2; if ($2 > top) top = $2 }
  END {
    slope = (NR * sxy - sx * sy) / (NR * sxx - sx * sx); base = (sy - slope * sx) / NR
    r2 = (NR * sxy - sx * sy) ^ 2 / ((NR * sxx - sx * sx) * (NR * syy - sy * sy))
    for (i = 1; i <= NR; i++) {
      bar = ""; for (k = 0; k < y[i] / top * 60; k++) bar = bar "#"
      printf "%6d shares %7d us  %s\n", x[i], y[i], bar
    }
    fit = sprintf("%.0f us + %.2f us a share (R2 = %.4f)", base, slope, r2)
    print "a straight line through it: " fit
    w = 640; h = 400; l = 70; b = 50; px = (w - l - 20) / x[NR]; py = (h - b - 40) / top
    printf "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" font-family=\"sans-serif\" font-size=\"13\">\n", w, h >svg
    printf "<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n<text x=\"%d\" y=\"20\">divvy generate, 16 GPUs: time over shares (medians of %d runs)</text>\n", l, '"$RUNS"' >svg
    printf "<path d=\"M%d 30V%dH%d\" fill=\"none\" stroke=\"black\"/>\n", l, h - b, w - 10 >svg
    printf "<path d=\"M%.1f %.1fL%.1f %.1f\" stroke=\"#bbb\" stroke-dasharray=\"5 4\"/>\n", l, h - b - base * py, l + x[NR] * px, h - b - (base + slope * x[NR]) * py >svg
    for (i = 1; i <= NR; i++) line = line (i > 1 ? "L" : "M") sprintf("%.1f %.1f", l + x[i] * px, h - b - y[i] * py)
    printf "<path d=\"%s\" fill=\"none\" stroke=\"#276749\" stroke-width=\"2\"/>\n", line >svg
    for (i = 1; i <= NR; i++) {
      printf "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\" fill=\"#276749\"/>\n", l + x[i] * px, h - b - y[i] * py >svg
      if (i == 1 || (x[i] - x[i - 1]) * px > 35) printf "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%d</text>\n", l + x[i] * px, h - b + 18, x[i] >svg
    }
    for (i = 0; i <= 4; i++) printf "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.1f ms</text>\n", l - 6, h - b - top * i / 4 * py + 4, top * i / 4000 >svg
    printf "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">shares</text>\n<text x=\"%d\" y=\"40\" fill=\"#666\">line: %s</text>\n</svg>\n", (w + l) / 2, h - 12, l + 12, fit >svg
    print "the curve: " svg
  }' "$work/curve"
