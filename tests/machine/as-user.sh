#!/bin/bash
# as-user.sh NAME COMMAND...: runs a command in a machine as its unprivileged user, for rootless Podman.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")

[ $# -ge 2 ] || { echo "usage: as-user.sh NAME COMMAND..." >&2; exit 1; }
name=$1
shift
exec "$here/in.sh" "$name" setpriv --reuid 1001 --regid 1001 --clear-groups \
    env HOME=/home/dev USER=dev XDG_RUNTIME_DIR=/run/user/1001 sh -c 'cd && exec "$@"' sh "$@"
