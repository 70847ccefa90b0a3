#!/usr/bin/env bash
# bench-engines.sh: what a device costs when a container starts, in real engines in a throw-away machine (tests/machine).
# Times are medians of runs that are taken in turns, and mean something only as ratios within one run of this script.
#   with a device       a container with the whole GPU 0, beside one with no device
#   1 against 960       a share out of a spec of 960 shares, beside one out of a spec of one share; and beside another
#                       vendor's spec of as many bytes, for engines that read it at each start
set -euo pipefail
cd "$(dirname "$0")/.."
export DIVVY_BUILD=${DIVVY_BUILD:-$PWD/.build}

if [ "${1:-}" != inside ]; then
  . tests/bench-machine.sh
  bench_machine bench
  $machine/containerd.sh $name
  cargo build --quiet --locked -p cri-run
  $machine/in.sh $name install --mode=755 /dev/stdin /usr/bin/cri-run <"${CARGO_TARGET_DIR:-target}/debug/cri-run"
  $machine/in.sh $name bash -s inside <"$0"
  exit
fi

RUNS=11 BLOCKS=3
work=$(mktemp -d)
cd "$work"

docker-runc() { docker run --rm --network=none "$@" bb true; }
podman-crun() { podman --runtime=crun run --rm --network=none "$@" bb true; }
podman-runc() { podman --runtime=runc run --rm --network=none "$@" bb true; }
ctr-runc() { ctr-run run --rm "$@" bb true; }
# A pod of its own each time, as a kubelet has one.
cri-runc() { cri-run run --rm "$@" bb true; }
engines=(docker-runc podman-crun podman-runc ctr-runc cri-runc)

# timed FILE COMMAND...: adds the time that the command takes, in microseconds.
timed() {
  local file=$1 t0 t1
  shift
  # This script is standard input.
  t0=${EPOCHREALTIME/./}; "$@" </dev/null >/dev/null 2>err || { echo "error: $*: $(cat err)" >&2; exit 1; }; t1=${EPOCHREALTIME/./}
  echo $((t1 - t0)) >>"$file"
}
median() { sort -n "$1" | sed -n "$(($(wc -l <"$1") / 2 + 1))p"; }
# ratio ENGINE NAME-A FILE-A NAME-B FILE-B
ratio() {
  awk -v e="$1" -v na="$2" -v a="$(median "$3")" -v nb="$4" -v b="$(median "$5")" \
    'BEGIN { printf "%-12s %-28s %7d us   %-28s %7d us   ratio %.2f\n", e, na, a, nb, b, a / b }'
}

# shares N: a spec of N shares in the place of the one that was there, on 8 GPUs or on the first.
shares() {
  printf 'whole_names = "no"\n[[gpu]]\nmatch = [%s]\nmode = "time-slice"\nreplicas = %d\n' \
    "$([ "$1" = 1 ] && echo '"0"' || echo '"all"')" "$([ "$1" = 1 ] && echo 1 || echo $(($1 / 8)))" >shares.toml
  divvy --quiet generate --host sim:h100x8 --config shares.toml --state-dir /run/divvy --output /etc/cdi/shares.json 2>/dev/null
}
# other BYTES: a spec of about that size of another vendor's, which brings the same files and hook: the spec of one share
# under another kind, with devices in the form of NVIDIA's generator up to the size.
other() {
  local size=$1 i=0 pad=
  shares 1
  while ((${#pad} + $(stat -c %s /etc/cdi/shares.json) < size)); do
    pad+="{\"name\":\"pad-$((i++))\",\"containerEdits\":{\"deviceNodes\":[{\"path\":\"/dev/nvidia0\",\"major\":195,\"fileMode\":438,\"permissions\":\"rwm\"}]}},"
  done
  echo "$pad" >pad
  sed -e 's|"nvidia.com/gpu"|"example.com/other"|' -e '/^"devices":\[/r pad' /etc/cdi/shares.json >/etc/cdi/.other.tmp
  rm /etc/cdi/shares.json
  mv /etc/cdi/.other.tmp /etc/cdi/other.json
}

# bundles: one for runc itself, and one with what CDI's specification makes of GPU 0 in it.
bundles() {
  local spec=/var/run/cdi/divvy.json hook mounts='' nodes='' node
  local base='{"destination":"/proc","type":"proc","source":"proc"},{"destination":"/dev","type":"tmpfs","source":"tmpfs","options":["mode=755"]}'
  hook=$(sed -n 's/.*{"hookName":"createContainer",\(.*\]\)}.*/{\1}/p' $spec)
  mounts=$(sed -n '/^"containerEdits"/,$s/.*{"hostPath":"\(.*\)","containerPath":"\(.*\)","type":"bind","options":\(\[[^]]*\]\)}.*/,{"source":"\1","destination":"\2","type":"bind","options":\3}/p' $spec)
  for node in nvidia0 nvidiactl nvidia-uvm nvidia-uvm-tools nvidia-modeset; do
    nodes+=",{\"path\":\"/dev/$node\",\"type\":\"c\",\"major\":$((16#$(stat -c %t /dev/$node))),\"minor\":$((16#$(stat -c %T /dev/$node))),\"fileMode\":438}"
  done
  [ -n "$hook" ] && [ "$(wc -l <<<"$mounts")" -gt 20 ] || { echo "error: hook and mounts were not found in the spec" >&2; exit 1; }
  config() { # config DIR MOUNTS NODES HOOKS
    mkdir -p "$1/rootfs"
    tar -x -C "$1/rootfs" -f /images/bb.tar
    echo "{\"ociVersion\":\"1.0.2\",\"process\":{\"user\":{\"uid\":0,\"gid\":0},\"args\":[\"/bin/true\"],\"cwd\":\"/\"},\"root\":{\"path\":\"rootfs\"},\"mounts\":[$base$2],\"hooks\":{\"createContainer\":[$4]},\"linux\":{\"namespaces\":[{\"type\":\"pid\"},{\"type\":\"mount\"},{\"type\":\"ipc\"},{\"type\":\"uts\"}],\"devices\":[${3#,}],\"resources\":{\"devices\":[{\"allow\":true,\"access\":\"rwm\"}]}}}" >"$1/config.json"
  }
  config without '' '' ''
  config with "$mounts" "$nodes" "$hook"
}

echo "container start, medians:"
divvy --quiet generate --host sim:h100x8 --output /var/run/cdi/divvy.json 2>/dev/null
for engine in "${engines[@]}"; do
  "$engine" --device=nvidia.com/gpu=0 </dev/null >/dev/null 2>&1 || true
  for ((i = 0; i < RUNS * 2; i++)); do
    timed "$engine.none" "$engine"
    timed "$engine.gpu" "$engine" --device=nvidia.com/gpu=0
  done
  ratio "$engine" "with a GPU" "$engine.gpu" "without" "$engine.none"
done
# A fresh root each time would be measured with the disk that it is made on: this is a container's second start.
bundles
for ((i = 0; i < RUNS * 2 + 1; i++)); do
  timed runc.none runc run --bundle without bench-without
  timed runc.gpu runc run --bundle with bench-with
done
ratio "runc itself" "with a GPU" runc.gpu "without" runc.none
rm /var/run/cdi/divvy.json

setsid divvy serve >/var/log/divvy.log 2>&1 </dev/null &
# In blocks: each change of the spec directory is read once by Docker, which is not what is measured.
for ((block = 0; block < BLOCKS; block++)); do
  for spec in one many other; do
    rm -f /etc/cdi/*.json
    device=nvidia.com/gpu=shared-0
    case $spec in
      one) shares 1 ;;
      many) shares 960; bytes=$(stat -c %s /etc/cdi/shares.json) ;;
      other) other "$bytes"; device=example.com/other=shared-0 ;;
    esac
    for engine in "${engines[@]}"; do
      "$engine" --device=$device </dev/null >/dev/null 2>&1 || true
      for ((i = 0; i < RUNS; i++)); do timed "$engine.$spec" "$engine" --device=$device; done
    done
  done
done
echo "1 against 960 devices ($bytes bytes):"
for engine in "${engines[@]}"; do
  ratio "$engine" "1 of 960 shares" "$engine.many" "1 of 1" "$engine.one"
  ratio "$engine" "1 of 960 shares" "$engine.many" "another spec of these bytes" "$engine.other"
done
