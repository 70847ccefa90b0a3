#!/bin/bash
# up.sh SUITE NAME [v1|v2 [catatonit|systemd]]: starts a machine, an environment that looks like a host of its own to the
# engines in it. The last word is its first process, once all is mounted.
# It is a set of namespaces on the tree of SUITE, with a cgroup and a file system of its own, and starts in a
# fraction of a second. It keeps tests from the host by accident, not attackers: there is no user namespace. All of it ends with the machine's first process.
#   in.sh NAME COMMAND       a command in it, as root       as-user.sh NAME COMMAND   as its unprivileged user
#   dockerd.sh NAME          Docker (Podman needs no start) down.sh NAME              the end
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/common.sh"

[ $# -ge 2 ] && [ $# -le 4 ] || die "usage: up.sh SUITE NAME [v1|v2 [catatonit|systemd]]"
suite=$1 name=$2 version=${3:-v2} init=${4:-catatonit}
as_root "namespaces, mounts and a cgroup need it" "$@"
machine=$(machine_dir "$name")
tree=$TREES/$suite
[ -e "$tree/.tree" ] || die "there is no tree of $suite: run tree.sh $suite"
! machine_pid "$name" >/dev/null || die "$name is up already: down.sh $name ends it"

# The engines' device filters are attached to cgroup v2, whether or not any controller is in that hierarchy:
# it is enough where v1 has the controllers (hybrid), and it is the only one on a current Debian or Ubuntu.
# The host's mount is used, not one of our own: mounting cgroup2 again outside a cgroup namespace would set
# the hierarchy's options (nsdelegate and others) anew for the whole host.
case $version in
    v2) mapfile -t hierarchies < <(findmnt --noheadings --raw --types cgroup2 --output TARGET | head -n 1) ;;
    v1) mapfile -t hierarchies < <(findmnt --noheadings --raw --types cgroup --output TARGET) ;;
    *) die "there is no cgroup $version" ;;
esac
[ ${#hierarchies[@]} -gt 0 ] || die "this host has no cgroup $version hierarchy"

"$HERE/down.sh" "$name"
mkdir -p "${machine%/*}"
# Device nodes in a machine carry numbers that another driver may have on this host.
chmod 700 "${machine%/*}"
mkdir -p "$machine"/{root,upper,work} "$machine"/store/{docker,containerd,containers,home} "$BUILD"/{bin,images,mps}
[ "$(stat -f -c %T "$machine")" != overlayfs ] || die "$machine is on overlayfs, which holds no second overlay:" \
    "point DIVVY_BUILD at another file system"
trap '"$HERE/down.sh" "$name"' EXIT
trap 'exit 130' INT TERM
ln -s "$tree" "$machine/lower"
mkfifo "$machine/ready"

# Processes are in a leaf of the machine's cgroup, never in its top: where there are controllers, the top may
# pass them on to containers only while it holds no process itself. (Reasoned from cgroup-v2.rst and from what
# Docker does for itself in a container; tried with a hierarchy whose only controller is hugetlb.)
# Of cgroup v1 there is a hierarchy for each controller, and processes may be anywhere in it.
cgroups=("${hierarchies[@]/%//divvy-$name-$$}")
printf '%s\n' "${cgroups[@]}" >"$machine/cgroup"
for cgroup in "${cgroups[@]}"; do
    mkdir -p "$cgroup/init"
    for file in cpuset.cpus cpuset.mems; do
        [ ! -e "$cgroup/$file" ] || [ "$version" = v2 ] || tee "$cgroup/$file" "$cgroup/init/$file" <"${cgroup%/*}/$file" >/dev/null
    done
done

# The shell joins the top to make it the cgroup namespace's root; boot.sh moves itself on into the leaf.
# setsid: the machine ends with its init, not with the terminal of whoever started it.
(
    for cgroup in "${cgroups[@]}"; do echo "$BASHPID" >"$cgroup/cgroup.procs"; done
    exec setsid unshare --mount --propagation private --pid --net --uts --ipc --cgroup --fork --kill-child \
        "$HERE/boot.sh" "$name" "$machine" "$version" "$init"
) </dev/null >"$machine/log" 2>&1 3>"$machine/ready" &
outer=$!

# boot.sh says when all is mounted. If it fails, the pipe ends without a line.
if ! read -r <"$machine/ready"; then
    wait "$outer" || true
    cat "$machine/log" >&2
    die "the machine did not start"
fi
for cgroup in "${cgroups[@]}"; do echo "$outer" >"$cgroup/init/cgroup.procs"; done
rm "$machine/ready"
trap - EXIT
