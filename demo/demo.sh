#!/bin/bash
# demo.sh: shows GPUs in real Podman containers on a simulated host, and fails if a container gets anything else
# than it was promised. Everything happens in a throw-away machine below .build (tests/machine/), which is gone
# when this ends, in whatever way.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
machines=$here/../tests/machine
export DIVVY_BUILD=${DIVVY_BUILD:-$(realpath -m "$here/../.build")}
suite=trixie
name=demo

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'
else
    bold='' dim='' green='' red='' plain=''
fi

step() {
    number=$((${number:-0} + 1))
    printf '\n%s%s/7  %s%s\n' "$bold" "$number" "$1" "$plain"
}

note() {
    printf '%s     %s%s\n' "$dim" "$1" "$plain"
}

fail() {
    printf '%s     FAILED: %s%s\n' "$red" "$1" "$plain" >&2
    exit 1
}

# Runs a script of tests/machine/ as root.
root() {
    local script=$1
    shift
    "${sudo[@]}" "$machines/$script" "$@"
}

# Shows a command as it would be typed, runs it in the machine, shows what it prints and keeps that in $output.
try() {
    local status=0
    printf '     %s$ %s%s\n' "$bold" "$*" "$plain"
    output=$(root in.sh "$name" sh -c "$*" 2>&1 </dev/null) || status=$?
    [ -z "$output" ] || sed 's/^/       /' <<<"$output"
    [ $status = 0 ] || fail "the command ended with status $status"
}

# The same for a command that has to fail.
refused() {
    local status=0
    printf '     %s$ %s%s\n' "$bold" "$*" "$plain"
    output=$(root in.sh "$name" sh -c "$*" 2>&1 </dev/null) || status=$?
    sed 's/^/       /' <<<"$output"
    [ $status != 0 ] || fail "the command did not fail"
}

# Checks that the last command printed this somewhere.
says() {
    grep -qF -- "$2" <<<"$output" || fail "not so: $1"
    printf '     %s✓%s %s\n' "$green" "$plain" "$1"
}

# Compares what the last command printed, line by line in any order, with what it must be.
expect() {
    local what=$1 wanted
    shift
    wanted=$(printf '%s\n' "$@" | sort)
    [ "$(sort <<<"$output")" = "$wanted" ] || {
        printf 'expected:\n%s\n' "$wanted" | sed 's/^/       /' >&2
        fail "not so: $what"
    }
    printf '     %s✓%s %s\n' "$green" "$plain" "$what"
}

# Checks that the last command was refused nothing. A machine with a GPU of its own may answer "ok".
admitted() {
    ! grep -qE ': (EPERM|EACCES|ENOENT)$' <<<"$output" || fail "not so: $1"
    printf '     %s✓%s %s\n' "$green" "$plain" "$1"
}

cleanup() {
    local status=$?
    trap - EXIT
    trap '' HUP INT PIPE TERM
    root down.sh "$name" || status=1
    exit $status
}

printf '%sdivvy%s: GPUs for containers, by name. No GPU is needed here: the host is simulated, Podman is real.\n' \
    "$bold" "$plain"
sudo=()
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || fail "namespaces and mounts need root, and there is no sudo: run it as root"
    echo "Namespaces and mounts need root, so its steps run with sudo, which may ask for your password."
    sudo=(sudo env "DIVVY_BUILD=$DIVVY_BUILD")
    "${sudo[@]}" true || fail "sudo did not let it"
fi

step "Packages that this needs, and divvy itself"
root install.sh
note "all there; Podman itself is not installed on this host"
"$here/../packaging/build.sh" "$DIVVY_BUILD/bin" dev | sed -u 's/^/     /'

step "Debian $suite with Podman, unpacked below .build, and a container image"
[ -e "$DIVVY_BUILD/trees/$suite/.tree" ] || note "about half a minute; the next demo finds it there"
root tree.sh "$suite"
root images.sh

step "A machine that looks like a lab host: 8 x A100, GPU 0 cut by MIG"
trap cleanup EXIT
# PIPE: `make demo | head` ends early, and the machine still has to go.
trap 'exit 130' HUP INT PIPE TERM
root up.sh "$suite" "$name"
root in.sh "$name" sh -ec '
    install /divvy/divvy /divvy/divvy-hook /usr/bin/
    podman import --quiet --change "CMD /bin/sh" /images/glibc.tar debian >/dev/null'
try "divvy sim a100-lab /sim"
try "for dir in dev etc lib run usr; do cp -a /sim/\$dir/. /\$dir/; done"
try "divvy list --host sim:a100-lab"

step "The CDI spec, which Podman and Docker read"
try "divvy generate --host sim:a100-lab --output /var/run/cdi/divvy.json"

control=(/dev/nvidiactl /dev/nvidia-uvm /dev/nvidia-uvm-tools /dev/nvidia-modeset)
nodes="find /dev -name 'nvidia*' -type c | sort"

step "A container with the MIG device 0:1"
try "podman run --detach --name mig --cap-add MKNOD --device nvidia.com/gpu=0:1 debian sleep 600 >/dev/null"
try "podman exec mig $nodes"
expect "its GPU, its two MIG capabilities and the control nodes; no other GPU, no other instance" \
    "${control[@]}" /dev/nvidia0 /dev/nvidia-caps/nvidia-cap30 /dev/nvidia-caps/nvidia-cap31
try "podman exec mig probe load libcuda.so.1"
expect "a program finds the host's CUDA driver, in an image that has never heard of it" \
    "libcuda.so.1: /usr/lib/x86_64-linux-gnu/libcuda.so.1"
try "podman exec mig probe read /dev/nvidia0 /dev/nvidia-caps/nvidia-cap31"
admitted "it may open them: ENXIO (no such device) is what a node says that has no GPU behind it"
try "podman exec mig probe mknod /tmp/neighbour 242 32"
expect "its root can make the capability node of 0:2 itself, and is not permitted to open it" \
    "/tmp/neighbour: EPERM"

step "A container with the whole GPU 1"
try "podman run --detach --name whole --cap-add MKNOD --device nvidia.com/gpu=1 debian sleep 600 >/dev/null"
try "podman exec whole $nodes"
expect "GPU 1 and the control nodes; no capabilities, which are for MIG" "${control[@]}" /dev/nvidia1
try "podman exec whole probe load libcuda.so.1"
expect "the same driver" "libcuda.so.1: /usr/lib/x86_64-linux-gnu/libcuda.so.1"
try "podman exec whole probe mknod /tmp/gpu2 195 2"
expect "GPU 2 is not given to it" "/tmp/gpu2: EPERM"

step "GPU 7, shared by four: each share is one container's at a time"
try "divvy share 7 --replicas 4 --host sim:a100-lab --config /etc/divvy/config.toml"
try "divvy generate --host sim:a100-lab --config /etc/divvy/config.toml --state-dir /run/divvy --output /var/run/cdi/divvy.json"
try "setsid divvy serve >/var/log/divvy.log 2>&1 &"
try "podman run --detach --name one --device nvidia.com/gpu=shared-0 debian sleep 600 >/dev/null"
try "podman run --detach --name two --device nvidia.com/gpu=shared debian sleep 600 >/dev/null"
try "for name in one two; do podman exec \$name $nodes; done"
expect "both have GPU 7, at once: \"shared\" is any share that is free" "${control[@]}" /dev/nvidia7 "${control[@]}" /dev/nvidia7
try "divvy ps"
refused "podman run --rm --device nvidia.com/gpu=shared-0 debian true"
says "shared-0 is taken; crun tells the hook's status, 3, and divvy keeps the reason" "exit code: 3"
try "divvy ps --refused"
says "who has it, and what is free instead" "shared-0 is held by podman container one"
try "podman rm --force --time 0 one >/dev/null; podman run --rm --device nvidia.com/gpu=shared-0 debian echo started"
expect "it is free as soon as its container is gone" started
note "Shares in time slices take turns, and each can use all of the memory. With mode = \"mps\" they have limits: README."

printf '\n%sAll of this held.%s On a machine with a GPU: make build, sudo make install, sudo divvy generate.\n' \
    "$bold" "$plain"
