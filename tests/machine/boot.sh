#!/bin/bash
# boot.sh NAME MACHINE VERSION INIT: the first process of a machine, already in its namespaces. up.sh starts it, nobody else.
# It mounts what a booted host has, makes the overlay on the tree its root, reports on descriptor 3, and becomes INIT:
# systemd, or catatonit, because pid 1 must reap: engines take a zombie for a container that still runs.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/common.sh"
name=$1 machine=$2 version=$3 init=$4

# The host's /proc is still mounted here, so this is the process id as the host sees it. Written first of all:
# down.sh finds the machine by it, however little of the machine there is.
read -r pid _ </proc/self/stat
echo "$pid $(start_time "$pid")" >"$machine/init"

hostname "$name"
ip link set lo up 2>/dev/null || true

# Relative paths: a ':' or ',' in the path of the checkout would end the option.
cd "$machine"
mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay root

# The engines' stores are overlays themselves, and an overlay's upper layer cannot be on an overlay.
for store in docker containerd containers; do
    mkdir -p root/var/lib/$store
    mount --bind store/$store root/var/lib/$store
done
mount --bind store/home root/home
for place in bin:divvy images:images mps:mps; do
    mkdir -p "root/${place#*:}"
    mount --bind "../../${place%:*}" "root/${place#*:}"
    mount -o remount,bind,ro "root/${place#*:}"
done

cd root
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t tmpfs -o mode=755 tmpfs dev
# Only these: a real GPU's nodes on the host have no place in here.
for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 fuse:10:229; do
    IFS=: read -r file major minor <<<"$node"
    mknod -m 666 "dev/$file" c "$major" "$minor"
done
mkdir dev/pts dev/shm dev/mqueue
ln -s /proc/self/fd dev/fd
ln -s fd/0 dev/stdin
ln -s fd/1 dev/stdout
ln -s fd/2 dev/stderr
ln -s pts/ptmx dev/ptmx
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t mqueue mqueue dev/mqueue
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
if [ "$version" = v2 ]; then
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    leaves=(sys/fs/cgroup/init)
else
    mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
    # One line a hierarchy: number, its controllers or name, this process's cgroup.
    leaves=()
    while IFS=: read -r _ controllers _; do
        [ -n "$controllers" ] || continue
        hierarchy=sys/fs/cgroup/${controllers#name=}
        mkdir "$hierarchy"
        mount -t cgroup -o "$controllers" cgroup "$hierarchy"
        leaves+=("$hierarchy/init")
    done <proc/self/cgroup
fi
# Docker warns at every start of a container where this is off.
echo 1 >proc/sys/net/ipv4/ip_forward
# systemd makes leaves of its own, below the cgroup that it finds itself in.
[ "$init" = systemd ] || for leaf in "${leaves[@]}"; do echo 0 >"$leaf/cgroup.procs"; done

# No container here needs a network, and none is set up: the engines' firewalls would need more of the host's
# kernel than the tests do. They ask nothing of systemd: cgroupfs, a file for events, and no limit that wants a controller.
mkdir -p run/lock run/user/1001 etc/cdi run/cdi etc/docker etc/containers home/dev
chown 1001:1001 run/user/1001 home/dev
chmod 700 run/user/1001 home/dev
cat >etc/docker/daemon.json <<'J'
{"features": {"cdi": true}, "cdi-spec-dirs": ["/etc/cdi", "/var/run/cdi"],
 "bridge": "none", "iptables": false, "ip6tables": false}
J
cat >etc/containers/containers.conf <<'T'
[containers]
netns = "none"
pids_limit = 0
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
T
echo '{"default": [{"type": "insecureAcceptAnything"}]}' >etc/containers/policy.json

# pivot_root and not chroot: the runtimes pivot themselves, which needs a root that is a mount.
pivot_root . .
umount -l .
cd /
mount --make-rshared /

if [ "$init" != systemd ]; then
    echo ready >&3
    exec 3>&-
    exec env -i PATH=/usr/sbin:/usr/bin catatonit -P
fi

# It would raise limits in there that are the whole host's.
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
# A machine without one is on its first boot, where systemd enables whatever it finds.
tr -d - <proc/sys/kernel/random/uuid >etc/machine-id
# Of Debian's units those that every service depends on, the journal, and Docker, which nobody has enabled. No generator:
# what these make of a host's disks and consoles has no place in here.
mkdir -p run/units/sockets.target.wants
for unit in {sysinit,basic,sockets,timers,paths,slices,local-fs,local-fs-pre,swap,multi-user,shutdown,umount,final}.target \
    systemd-journald.service systemd-journald{,-dev-log}.socket {docker,containerd}.service docker.socket; do
    ln -s "/usr/lib/systemd/system/$unit" run/units/
done
ln -s ../systemd-journald.socket ../systemd-journald-dev-log.socket run/units/sockets.target.wants/
# The administrator's units, those of containers, divvy's, and the few.
path=/etc/systemd/system:/run/systemd/system:/run/systemd/transient:/opt/divvy/lib/systemd/system:/run/units
echo ready >&3
exec 3>&-
exec env -i container=divvy PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin SYSTEMD_UNIT_PATH=$path \
    SYSTEMD_GENERATOR_PATH=/run/units/generators /usr/lib/systemd/systemd --unit=multi-user.target
