#!/bin/bash
# mps-host.sh NAME HOST VERSION NVML SERVER: lays out one more host with GPUs in a machine that has the files of
# `divvy sim a100-lab /sim` and its facts as /facts.json. Its driver root is /drivers/HOST, or the machine's own for the
# HOST `here`: nvidia-cuda-mps-control and libcuda.so.1 are NVIDIA's own, of VERSION (mps.sh); NVML (tests/mock-nvml) and
# SERVER (tests/mps-server) stand for what wants a GPU. The GPUs are those of a100-lab with UUIDs of their own.
# /run/mps-HOST.sh has two words for shells: `facts`, after which NVML tells of this host, and `live COMMAND`, which shows
# a command the driver's part of /proc and /sys too.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/common.sh"

[ $# = 5 ] || die "usage: mps-host.sh NAME HOST VERSION NVML SERVER"
name=$1 host=$2 version=$3 nvml=$4 server=$5
as_root "" "$@"
machine_pid "$name" >/dev/null || die "the machine $name is not up"
[ -d "$BUILD/mps/$version" ] || die "there are no MPS programs of $version: run mps.sh"

put() { # put FILE PATH: puts a program of this host into the machine
    "$HERE/in.sh" "$name" install -D --mode=755 /dev/stdin "$2" <"$1"
}

root=/drivers/$host
[ "$host" != here ] || root=
libraries=$root/usr/lib/$(uname -m)-linux-gnu/nvidia/current
"$HERE/in.sh" "$name" sh -ec 'mkdir -p "$2/usr"; cp -a "/mps/$1/usr/." "$2/usr/"' sh "$version" "$root"
put "$nvml" "$libraries/libnvidia-ml.so.$version"
put "$server" "$root/usr/sbin/nvidia-cuda-mps-server"
"$HERE/in.sh" "$name" sh -es "$host" "$version" "$libraries" "$root" <<'S'
ln -sf "libnvidia-ml.so.$2" "$3/libnvidia-ml.so.1"
: >"$4/usr/sbin/received"
mkdir "/run/mps-$1-modes"
echo '{}' >"/run/mps-$1-processes.json"
sed -E "s/\"driver_version\": \"[^\"]*/\"driver_version\": \"$2/
    s/\"nvml_version\": \"[^\"]*/\"nvml_version\": \"12.$2/
    s/\"cuda_version\": [0-9]*/\"cuda_version\": 12050/
    s/\"(GPU|MIG)-[0-9a-f]{8}/\"\1-00000${2%%.*}/" /facts.json >"/run/mps-$1.json"
cat >"/run/mps-$1.sh" <<W
facts() {
    export MOCK_NVML_FACTS=/run/mps-$1.json MOCK_NVML_COMPUTE_MODES=/run/mps-$1-modes
    export MOCK_NVML_PROCESSES=/run/mps-$1-processes.json
}
live() {
    facts
    unshare --mount sh -ec '
        mount --bind /sim/proc/driver /proc/driver
        mount --bind /sim/proc/devices /proc/devices
        mount --bind /sim/sys/bus /sys/bus
        exec "\$@"' sh "\$@"
}
W
S
