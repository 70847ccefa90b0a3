#!/bin/bash
# dockerd.sh NAME: starts Docker in a machine, as a plain process, and returns when it answers.
# It ends with the machine; down.sh stops it with everything else.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/common.sh"

[ $# = 1 ] || die "usage: dockerd.sh NAME"
name=$1
as_root "" "$@"
machine_pid "$name" >/dev/null || die "the machine $name is not up"
"$HERE/in.sh" "$name" sh -c 'setsid dockerd >/var/log/dockerd.log 2>&1 </dev/null &'
for _ in $(seq 100); do
    ! "$HERE/in.sh" "$name" docker version >/dev/null 2>&1 || exit 0
    sleep 0.1
done
"$HERE/in.sh" "$name" tail -n 20 /var/log/dockerd.log >&2
die "dockerd does not answer in $name"
