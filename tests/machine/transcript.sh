#!/usr/bin/env bash
# transcript.sh [SUITE]: what people see of leases. In a throw-away machine each engine takes a share, is refused it,
# takes any other, gives back, and `divvy ps` says who has what: the commands and what they print, as they are.
set -euo pipefail
name=transcript suite=${1:-sid}

if [ "${1:-}" != inside ]; then
    cd "$(dirname "$(readlink -f "$0")")"
    . ./common.sh
    . ./shown.sh
    as_root "machines need it" "$@"
    ./install.sh && ./tree.sh "$suite" && ./images.sh
    trap './down.sh $name' EXIT
    ./up.sh "$suite" $name
    ./in.sh $name sh -ec '
        install /divvy/divvy /divvy/divvy-hook /usr/bin/
        divvy --quiet sim a100-lab /sim
        for dir in dev etc lib run usr; do cp -a /sim/$dir/. /$dir/; done
        ldconfig
        mkdir /etc/divvy
        divvy --quiet share 6 --replicas 4 --host sim:a100-lab --config /etc/divvy/config.toml >/dev/null
        divvy --quiet generate --host sim:a100-lab --config /etc/divvy/config.toml --state-dir /run/divvy --output /var/run/cdi/divvy.json
        setsid divvy serve >/var/log/divvy.log 2>&1 </dev/null &
        podman import --quiet --change "CMD /bin/sh" /images/glibc.tar debian >/dev/null'
    engines_with_image $name
    ./in.sh $name bash -s inside < <(cat shown.sh transcript.sh)
    exit
fi

# through ENGINE RUN REMOVE HOLD: HOLD leaves a container `web` with shared-0, which REMOVE ends.
through() {
    local run=$2 remove=$3 hold=$4
    printf '\n## %s\n\n```\n' "$1"
    shown "$hold"
    shown "$run --device=nvidia.com/gpu=shared-0 debian echo started"
    shown "$run --device=nvidia.com/gpu=shared debian ls /dev | grep 'nvidia[0-9]'"
    shown 'divvy ps'
    shown 'divvy ps --refused | head -n 2'
    shown "$remove"
    shown "$run --device=nvidia.com/gpu=shared-0 debian echo started"
    printf '```\n'
}

gpu=--device=nvidia.com/gpu=shared-0
# The image has another name there.
ctr --address /run/ctrd/containerd.sock --namespace k8s.io images tag localhost/glibc:latest localhost/debian:latest \
    >/dev/null
through docker 'docker run --rm' 'docker rm --force web' "docker run --detach --name web $gpu debian sleep 600"
through 'podman, crun' 'podman run --rm' 'podman rm --force --time 0 web' \
    "podman run --detach --name web $gpu debian sleep 600"
through 'podman, runc' 'podman --runtime runc run --rm' 'podman rm --force --time 0 web' \
    "podman --runtime runc run --detach --name web $gpu debian sleep 600"
prompt='$' through 'podman, rootless' 'podman run --rm' 'podman rm --force --time 0 web' \
    "podman run --detach --name web $gpu debian sleep 600"
through 'containerd (ctr)' 'ctr-run run --rm' 'ctr-run rm web' \
    "ctr-run create --name web $gpu debian sleep 600 && ctr-run start web"
through 'containerd (CRI)' 'cri-run run --rm' 'cri-run rm web' \
    "cri-run create --name web $gpu debian sleep 600 && cri-run start web"

printf '\n## All at once\n\n```\n'
shown "docker run --detach --name web $gpu debian sleep 600"
shown 'podman run --detach --name notebook --device=nvidia.com/gpu=shared debian sleep 600'
prompt='$' shown 'podman run --detach --name train --device=nvidia.com/gpu=shared debian sleep 600'
shown "cri-run create --name serve --device=nvidia.com/gpu=shared debian sleep 600 && cri-run start serve"
shown 'divvy ps'
shown 'docker run --rm --device=nvidia.com/gpu=shared debian echo started'
shown 'divvy list --host sim:a100-lab --config /etc/divvy/config.toml --quiet | grep shared'
shown 'divvy release shared-0'
shown 'divvy release shared-0 --kill'
shown 'divvy ps'
printf '```\n'
