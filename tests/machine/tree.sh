#!/bin/bash
# tree.sh SUITE: unpacks a Debian tree with Docker, Podman, their runtimes, and Compose and systemd, which start
# containers with them, into $BUILD/trees/SUITE.
# Packages are extracted, not configured: ten seconds instead of thirty, and the few things that maintainer
# scripts would have made are made below. A finished tree is used again until this script changes;
# an interrupted run leaves none, because the tree is built beside its place and renamed.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/common.sh"

[ $# = 1 ] || die "usage: tree.sh SUITE    (sid, trixie)"
suite=$1
tree=$TREES/$suite
stamp=$(sha256sum <"$0")
[ "$(cat "$tree/.tree" 2>/dev/null)" != "$stamp" ] || exit 0
as_root "a Debian tree belongs to root" "$@"
command -v mmdebstrap >/dev/null || die "mmdebstrap is missing: run install.sh"

engines=docker.io,docker-cli,docker-compose,containerd,podman,crun,runc,conmon,catatonit,netavark,uidmap,systemd
base=base-files,bash,dash,coreutils,findutils,grep,sed,tar,mawk,util-linux,mount,procps,libc-bin,ca-certificates

mkdir -p "$TREES"
# There are setuid programs in a tree, which nobody keeps up to date.
chmod 700 "$TREES"
new=$(mktemp -d "$TREES/.$suite.XXXXXX")
trap 'rm -rf --one-file-system "$new" "$new.log"' EXIT
chmod 755 "$new"

# Check-Valid-Until: a mirror's sid may be days past its date while it is being synchronised, and a
# snapshot always is. What that date guards against, a replay of old packages, matters to no test.
mirror=$(debian_mirror)
nice mmdebstrap --quiet --mode=root --variant=extract --components=main \
    --aptopt='APT::Install-Recommends "false"' \
    --aptopt='Acquire::Check-Valid-Until "false"' \
    --include="$base,$engines" "$suite" "$new" ${mirror:+"$mirror"} >"$new.log" 2>&1 ||
    { tail -n 20 "$new.log" >&2; die "could not unpack $suite"; }

# What maintainer scripts would have made, as far as the engines need it.
cd "$new"
mkdir -p dev proc sys run tmp root home var/lib var/log
chmod 1777 tmp
rm -rf var/run var/lock
ln -s /run var/run
ln -s /run/lock var/lock
cat >etc/passwd <<'P'
root:x:0:0:root:/root:/bin/bash
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
dev:x:1001:1001:rootless user:/home/dev:/bin/bash
P
cat >etc/group <<'P'
root:x:0:
tty:x:5:
docker:x:999:
dev:x:1001:
nogroup:x:65534:
P
echo dev:100000:65536 | tee etc/subuid >etc/subgid
echo 127.0.0.1 localhost >etc/hosts
: >etc/resolv.conf
[ -e usr/bin/awk ] || ln -s mawk usr/bin/awk
ldconfig -r "$new"
echo "$stamp" >.tree

cd /
if [ -e "$tree" ]; then
    # A machine that still runs on the old tree keeps its open files and loses the rest.
    old=$(mktemp -d "$TREES/.old.XXXXXX")
    mv "$tree" "$old/"
    rm -rf --one-file-system "$old"
fi
mv -T "$new" "$tree"
