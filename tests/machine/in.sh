#!/bin/bash
# in.sh NAME COMMAND...: runs a command in a machine, as its root, with a clean environment.
# Standard input, output and the exit status are the command's own.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/common.sh"

[ $# -ge 2 ] || die "usage: in.sh NAME COMMAND..."
as_root "" "$@"
pid=$(machine_pid "$1") || die "the machine $1 is not up"
shift

# First its cgroup (a leaf: up.sh says why), then its namespaces.
for leaf in "/proc/$pid/root/sys/fs/cgroup/init" "/proc/$pid/root/sys/fs/cgroup/"*/init; do
    [ ! -d "$leaf" ] || echo $$ >"$leaf/cgroup.procs"
done
exec nsenter --target "$pid" --mount --pid --net --uts --ipc --cgroup -- \
    env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin HOME=/root LANG=C.UTF-8 TERM="${TERM:-dumb}" \
    PODMAN_IGNORE_CGROUPSV1_WARNING=1 "$@"
