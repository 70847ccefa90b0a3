#!/bin/bash
# down.sh NAME: ends a machine. Killing its first process ends every other process in it and drops its mounts,
# which are in its own namespaces; then its cgroups and its files are removed. No machine is no error.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/common.sh"

[ $# = 1 ] || die "usage: down.sh NAME"
name=$1
machine=$(machine_dir "$name")
[ -e "$machine" ] || exit 0
as_root "" "$@"

if pid=$(machine_pid "$name"); then
    kill -9 "$pid"
    # The kernel ends the rest of the process namespace before it lets the first process go.
    for _ in $(seq 100); do
        [ -e "/proc/$pid" ] || break
        sleep 0.05
    done
fi

# Whoever was started from outside (in.sh) is killed with the rest, and may take a moment to leave the cgroup.
while read -r cgroup; do
    for _ in $(seq 100); do
        [ -d "$cgroup" ] || break
        find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || sleep 0.05
    done
    [ ! -d "$cgroup" ] || die "the cgroup $cgroup still has processes"
done < <(cat "$machine/cgroup" 2>/dev/null)

rm -rf --one-file-system "$machine"
