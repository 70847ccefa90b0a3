#!/bin/bash
# ctr-run: containerd's ctr by the words of docker and podman, as far as the tests use them.
#   ctr-run run --rm [OPTION...] IMAGE COMMAND...        ctr-run create --name NAME [OPTION...] IMAGE COMMAND...
#   ctr-run start [--attach] NAME    ctr-run exec NAME COMMAND...    ctr-run stop NAME    ctr-run rm [OPTION...] NAME
set -euo pipefail
export CONTAINERD_ADDRESS=/run/ctrd/containerd.sock CONTAINERD_NAMESPACE=k8s.io

verb=$1
shift
options=() name= attach=
while [ $# -gt 0 ]; do
    case $1 in
        --rm) [ "$verb" != run ] || options+=(--rm) ;;
        --name) name=$2; shift ;;
        --attach) attach=1 ;;
        --force | --time=*) ;;
        --cap-add=*) options+=(--cap-add "CAP_${1#*=}") ;;
        --device=* | --env=* | --user=* | --uidmap=* | --gidmap=*) options+=("${1%%=*}" "${1#*=}") ;;
        --read-only | --privileged) options+=("$1") ;;
        --volume=*) options+=(--mount "type=bind,src=$(cut -d= -f2 <<<"${1%:*}"),dst=${1##*:},options=rbind:rw") ;;
        --network=none) ;; # ctr gives no other
        -*) echo "ctr-run: no such option: $1" >&2; exit 2 ;;
        *) break ;;
    esac
    shift
done
# There may be no controller for what ctr asks by itself.
limits=(--cpu-shares 0)

case $verb in
    run) image=localhost/$1:latest; shift; exec ctr run "${limits[@]}" "${options[@]}" "$image" "run-$$-$RANDOM" "$@" ;;
    create) image=localhost/$1:latest; shift; exec ctr containers create "${options[@]}" "$image" "$name" "$@" ;;
    start) [ -z "$attach" ] || exec ctr tasks start "$1"; exec ctr tasks start --detach "$1" ;;
    exec) name=$1; shift; exec ctr tasks exec --exec-id "exec-$$" "$name" "$@" ;;
    stop | rm)
        # Its process is killed, waited for, and forgotten, so that the container may start anew.
        ctr tasks delete --force "$1" >/dev/null 2>&1 || [ "$verb" = rm ]
        [ "$verb" = stop ] || exec ctr containers delete "$1" ;;
    *) echo "ctr-run: no such verb: $verb" >&2; exit 2 ;;
esac
