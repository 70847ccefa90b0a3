#!/bin/bash
# units-host.sh SUITE NAME VERSION NVML SERVER: starts a machine whose first process is systemd, as a host with GPUs on
# which divvy has just been installed: its files as `make install PREFIX=/opt/divvy` puts them, no unit enabled, and no
# configuration. The GPUs are those of a100-lab, live: VERSION, NVML and SERVER as mps-host.sh takes them, for `here`. Its
# nvidia-smi keeps turns below /dev, as the driver does (tests/time_slices). Podman has the image glibc, for root and for the
# user, and root's containers are scopes of systemd's.
# Services have the variables of /run/mps-here.sh; who types `divvy` takes them from there.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/common.sh"

[ $# = 5 ] || die "usage: units-host.sh SUITE NAME VERSION NVML SERVER"
suite=$1 name=$2 version=$3 nvml=$4 server=$5
project=$(realpath "$HERE/../..")

"$HERE/up.sh" "$suite" "$name" v2 systemd

installed=$(mktemp -d)
trap 'rm -rf "$installed"' EXIT
make --silent -C "$project" BUILD="$BUILD" DESTDIR="$installed" PREFIX=/opt/divvy install >/dev/null
tar --create --directory "$installed" --owner=0 --group=0 --mode=go-w opt |
    "$HERE/in.sh" "$name" tar --extract --directory /

"$HERE/in.sh" "$name" sh -ec '
    /divvy/divvy --quiet sim a100-lab /sim
    cp -a /sim/dev/. /dev/
    mkdir /dev/driver'
"$HERE/in.sh" "$name" install --mode=644 /dev/stdin /facts.json <"$project/src/discover/sim/a100-lab.json"
"$HERE/in.sh" "$name" install --mode=755 /dev/stdin /dev/driver/nvidia-smi <"$project/tests/time_slices/nvidia-smi.sh"
"$HERE/mps-host.sh" "$name" here "$version" "$nvml" "$server"
"$HERE/in.sh" "$name" sh -es <<'S'
printf '#!/bin/sh\nexec /dev/driver/nvidia-smi "$@"\n' >/usr/bin/nvidia-smi
chmod 755 /usr/bin/nvidia-smi
# Users' containers have a /proc only where there is one that nothing covers.
mkdir /run/proc
mount -t proc proc /run/proc
for part in proc/driver proc/devices sys/bus; do mount --bind "/sim/$part" "/$part"; done
ldconfig
sed -i 's/"cgroupfs"/"systemd"\nruntime = "runc"/' /etc/containers/containers.conf

for _ in $(seq 600); do
    state=$(systemctl is-system-running 2>/dev/null) || true
    [ "$state" != running ] || break
    sleep 0.05
done
[ "$state" = running ] || { echo "systemd is $state"; systemctl --no-pager --failed; exit 1; } >&2
. /run/mps-here.sh
facts
systemctl import-environment MOCK_NVML_FACTS MOCK_NVML_COMPUTE_MODES MOCK_NVML_PROCESSES
S
for entry in in.sh as-user.sh; do
    "$HERE/$entry" "$name" podman import --quiet --change 'ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin' \
        --change 'CMD ["/bin/sh"]' /images/glibc.tar glibc:latest >/dev/null
done
