#!/usr/bin/env bash
# mps-transcript.sh [SUITE]: what people see of MPS. In a throw-away machine that is a host with NVIDIA's own MPS programs
# and libcuda, CUDA starts in containers of each engine: with a share of an MPS server (805: it met MPS, whose stand-in for
# a server hangs up), and with a time slice (100: there is no GPU). `probe cuda` prints what cuInit answers.
set -euo pipefail
name=transcript suite=${1:-sid}

if [ "${1:-}" != inside ]; then
    cd "$(dirname "$(readlink -f "$0")")"
    . ./common.sh
    . ./shown.sh
    as_root "machines need it" "$@"
    ./install.sh && ./tree.sh "$suite" && ./images.sh && ./mps.sh
    target=${CARGO_TARGET_DIR:-../../target}/debug
    # The newest driver that is there.
    version=$(basename "$(printf '%s\n' "$BUILD"/mps/*/ | sort --version-sort | tail -n 1)")
    trap './down.sh $name' EXIT
    ./up.sh "$suite" $name
    ./in.sh $name sh -ec '
        install /divvy/divvy /divvy/divvy-hook /usr/bin/
        install -D --mode=644 -t /usr/lib/divvy /divvy/libdivvy_mps_guard.so
        divvy --quiet sim a100-lab /sim
        cp -a /sim/dev/. /dev/
        mkdir /etc/divvy
        podman import --quiet --change "CMD /bin/sh" /images/glibc.tar debian >/dev/null'
    ./in.sh $name install --mode=644 /dev/stdin /facts.json <../../src/discover/sim/a100-lab.json
    ./mps-host.sh $name here "$version" "$target/libnvidia_ml.so" "$target/nvidia-cuda-mps-server"
    engines_with_image $name
    ./in.sh $name bash -s inside < <(cat shown.sh mps-transcript.sh)
    exit
fi

. /run/mps-here.sh
facts

# through ENGINE RUN EXEC REMOVE HOLD: HOLD leaves a container `web` with a share, in which EXEC runs a command.
through() {
    printf '\n## %s\n\n```\n' "$1"
    shown "$2 --device=nvidia.com/gpu=shared debian probe cuda"
    shown "$2 --device=nvidia.com/gpu=turns debian probe cuda"
    shown "$5"
    shown "$3 probe cuda"
    shown "$3 env -i /usr/bin/probe cuda"
    shown "$4"
    printf '```\n'
}

cat >/etc/divvy/config.toml <<'T'
[[gpu]]
match = ["1"]
mode = "mps"
replicas = 4

[[gpu]]
match = ["0:3"]
mode = "mps"
name = "part"
replicas = 2

[[gpu]]
match = ["2"]
mode = "time-slice"
name = "turns"
replicas = 4
T
printf '## The host\n\n```\n'
shown 'cat /etc/divvy/config.toml'
live divvy generate 2>&1 | sed '1i # divvy generate'
setsid divvy serve >/var/log/divvy.log 2>&1 </dev/null &
for _ in $(seq 100); do [ ! -S /run/divvy/divvy.sock ] || break; sleep 0.1; done
live divvy --quiet list 2>/dev/null | sed -n '1i # divvy list
    /^NAME/p; /^shared/p; /^part/p; /^turns/p'
printf '```\n'

# The image has another name there.
ctr --address /run/ctrd/containerd.sock --namespace k8s.io images tag localhost/glibc:latest localhost/debian:latest \
    >/dev/null
gpu=--device=nvidia.com/gpu=shared
through docker 'docker run --rm' 'docker exec web' 'docker rm --force web' \
    "docker run --detach --name web $gpu debian sleep 600"
through 'podman, crun' 'podman run --rm' 'podman exec web' 'podman rm --force --time 0 web' \
    "podman run --detach --name web $gpu debian sleep 600"
through 'podman, runc' 'podman --runtime runc run --rm' 'podman --runtime runc exec web' \
    'podman --runtime runc rm --force --time 0 web' \
    "podman --runtime runc run --detach --name web $gpu debian sleep 600"
prompt='$' through 'podman, rootless' 'podman run --rm' 'podman exec web' 'podman rm --force --time 0 web' \
    "podman run --detach --name web $gpu debian sleep 600"
through 'containerd (ctr)' 'ctr-run run --rm' 'ctr-run exec web' 'ctr-run rm web' \
    "ctr-run create --name web $gpu debian sleep 600 && ctr-run start web"
through 'containerd (CRI)' 'cri-run run --rm' 'cri-run exec web' 'cri-run rm web' \
    "cri-run create --name web $gpu debian sleep 600 && cri-run start web"

printf '\n## While MPS is down, and after\n\n```\n'
shown "docker run --detach --name web --device=nvidia.com/gpu=shared-0 debian sleep 600"
shown 'divvy mps'
uuid=$(sed -n 's/.*"uuid":"\(GPU-[^"]*\)".*/\1/p' /run/divvy/mps/GPU-*/settings.json)
control=$(sed -n 's/.*"control_pid":\([0-9]*\).*/\1/p' "/run/divvy/mps/$uuid/status.json")
sleep infinity &
echo "{\"$uuid\":{\"compute\":[{\"pid\":$!,\"memory\":1048576}]}}" >/run/mps-here-processes.json
shown "kill -9 $control    # the control daemon; and somebody else takes the GPU"
sleep 3
shown 'divvy mps'
shown 'docker exec web probe cuda'
shown "docker run --rm --device=nvidia.com/gpu=shared-1 debian probe cuda"
kill $!
echo '{}' >/run/mps-here-processes.json
shown 'sleep 15; divvy mps    # it has left'
shown 'docker exec web probe cuda'
shown 'docker rm --force web'
printf '```\n'
