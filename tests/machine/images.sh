#!/bin/bash
# images.sh: makes the containers' root file systems, as plain tars that `docker import` and `podman import` take.
#   glibc   a small Debian with a dynamic loader, its cache as ldconfig made it, and ldconfig itself
#   bare    the same without the loader's cache and configuration, and with an environment that leads CUDA from MPS
#   bb      one static busybox: no loader, no cache, no libraries
#   hostile-cache, hostile-etc   bare, where /etc/ld.so.cache or /etc itself is a link that leads elsewhere
#   poc     busybox with glibc's loader, and the library and environment of CVE-2025-23266 (poc.c)
# An image's *.changes are lines for `import --change`. Each holds the test program `probe`. Made once, and again when
# this script or a program of it changes.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/common.sh"

[ $# = 0 ] || die "usage: images.sh"
suite=trixie
images=$BUILD/images
stamp=$(cat "$0" "$HERE"/{probe,poc}.c | sha256sum)
[ "$(cat "$images/.stamp" 2>/dev/null)" != "$stamp" ] || exit 0
as_root "the files in an image belong to root" "$@"
command -v mmdebstrap >/dev/null || die "mmdebstrap is missing: run install.sh"

mkdir -p "$BUILD"
work=$(mktemp -d "$BUILD/.images.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
cd "$work"
mkdir out

pack() { # pack ROOT NAME
    tar --create --file "out/$2.tar" --directory "$1" --numeric-owner --sort=name .
}

accounts() { # accounts ROOT: root, and a user for `--user 1000`
    printf '%s\n' root:x:0:0:root:/root:/bin/sh user:x:1000:1000:user:/:/bin/sh >"$1/etc/passwd"
    printf '%s\n' root:x:0: user:x:1000: >"$1/etc/group"
}

# The compiler is the host's, the C library the image's: probe uses nothing that is new in either.
cc -O2 -Wall -Werror -o probe "$HERE/probe.c" -ldl
cc -O2 -Wall -Werror -static -DSTATIC -o probe-static "$HERE/probe.c"

mirror=$(debian_mirror)
nice mmdebstrap --quiet --mode=root --variant=extract --components=main \
    --include=base-files,libc6,libc-bin,bash,dash,coreutils,findutils,sed,busybox-static \
    "$suite" root ${mirror:+"$mirror"} >log 2>&1 ||
    { tail -n 20 log >&2; die "could not unpack $suite"; }

mkdir -p bb/bin bb/dev bb/etc bb/proc bb/root bb/run bb/sys bb/tmp bb/var
mv root/usr/bin/busybox bb/bin/busybox
for applet in $(bb/bin/busybox --list); do
    [ "$applet" = busybox ] || ln -s busybox "bb/bin/$applet"
done
cp probe-static bb/bin/probe
accounts bb
pack bb bb

# mmdebstrap leaves the host's resolver, its mirror and a few device nodes behind.
rm -rf root/dev root/etc/apt root/etc/hostname root/etc/resolv.conf root/etc/fstab
mkdir root/dev
rm -rf root/usr/share/doc root/usr/share/man root/usr/share/locale root/usr/share/info
rm -rf root/var/lib/apt root/var/lib/dpkg root/var/cache/apt root/usr/lib/*/gconv
[ -e root/bin/sh ] || ln -s dash root/bin/sh
cp probe root/usr/bin/probe
accounts root
ldconfig -r root
pack root glibc

# A hook has its working directory at the root, or where the runtime has the bundle, and the container in /hostile.
cc -O2 -Wall -Werror -shared -fPIC -o poc.so "$HERE/poc.c"
cp -a bb poc
(cd root && cp -a --parents lib lib64 usr/lib64 usr/lib/*/{ld-linux*,libc.so.6,libdl.so.2} ../poc)
mkdir -p poc/usr/bin poc/etc/ld.so.conf.d
cp probe poc/usr/bin/probe
rm poc/bin/probe
cp poc.so poc/poc.so
mkdir -m 777 poc/hostile
cp poc.so poc/hostile/poc.so
ldconfig -r poc
pack poc poc
printf '%s\n' 'ENV LD_PRELOAD=/proc/self/cwd/poc.so' 'ENV LD_LIBRARY_PATH=/proc/self/cwd' 'WORKDIR /hostile' \
    >out/poc.changes

rm -rf root/etc/ld.so.cache root/etc/ld.so.conf root/etc/ld.so.conf.d
pack root bare
printf '%s\n' 'ENV CUDA_MPS_PIPE_DIRECTORY=/nowhere' 'ENV CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=junk' >out/bare.changes

# Links that a hook must not follow out of the container. Inside it each leads somewhere, so that engines take the
# image; the test looks at the same paths on the machine.
ln -s /hostage root/etc/ld.so.cache
pack root hostile-cache
rm root/etc/ld.so.cache
mv root/etc root/hostage.d
ln -s ../../../hostage.d root/etc
pack root hostile-etc

mkdir -p "$images"
mv out/* "$images/"
echo "$stamp" >"$images/.stamp"
