#!/bin/bash
# bundles.sh: makes the root file systems of the bundles that are run with runc and crun themselves, as small tars of a
# loader and the test program `probe`. No engine imports them: they lie beside the images, in images/bundles/.
#   split           Debian 12 as its packages have it: /lib, /lib64 and /bin are directories, and not links into /usr
#   cache-old       Debian 13 with the loader's cache as glibc before 2.2 wrote it
#   cache-compat    with both forms in one file, as ldconfig wrote it before glibc 2.32
#   no-etc          without /etc
#   links           /etc, /run, /lib, /lib64, /etc/nvidia and the directory of libraries are absolute links
#   musl            musl's loader alone, without a path file, as in Alpine
#   musl-path       the same with a path file of its own
#   both            glibc's loader and musl's, as Debian 13 has them with its package musl; probe-musl is for the latter
#   empty           one static program and nothing else, not even a directory
#   compat          a CUDA image: /usr/local/cuda/compat has a newer libcuda, made for the simulated driver among others
#   compat-other    the same, not made for this driver, and in the image's own cache
#   compat-older    an older libcuda
# All with glibc and a cache have a library of their own in a directory that only their configuration names, and musl-path
# one in a directory of its path file. Made once, and again when this script or a program of it changes.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/common.sh"

[ $# = 0 ] || die "usage: bundles.sh"
bundles=$BUILD/images/bundles
stamp=$(cat "$0" "$HERE"/{probe,compat}.c | sha256sum)
[ "$(cat "$bundles/.stamp" 2>/dev/null)" != "$stamp" ] || exit 0
as_root "the files in a tree belong to root" "$@"
command -v mmdebstrap >/dev/null || die "mmdebstrap is missing: run install.sh"
command -v musl-gcc >/dev/null || die "musl-gcc is missing: run install.sh"

mkdir -p "$BUILD/images"
work=$(mktemp -d "$BUILD/.bundles.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
cd "$work"
mkdir out

unpack() { # unpack SUITE ROOT PACKAGES: what its packages hold, and no more of it than a loader needs
    nice mmdebstrap --quiet --mode=root --variant=extract --components=main --include="$3" "$1" "$2" \
        ${mirror:+"$mirror"} >log 2>&1 || { tail -n 20 log >&2; die "could not unpack $1"; }
    rm -rf "$2"/dev "$2"/etc/{apt,dpkg,hostname,resolv.conf,fstab} "$2"/usr/share "$2"/var "$2"/usr/lib/{locale,apt} \
        "$2"/usr/lib/*/gconv "$2"/usr/lib/*/perl* "$2"/usr/sbin "$2"/sbin
    # Where usr is merged, /sbin led there.
    mkdir -p "$2/dev" "$2/usr/sbin" "$2/usr/bin" "$2/var"
}

pack() { # pack ROOT NAME
    tar --create --file "out/$2.tar" --directory "$1" --numeric-owner --sort=name .
}

copy() { # copy ROOT NAME: a tree to change
    rm -rf "$2"
    cp -a "$1" "$2"
}

library() { # library SONAME FILE [OPTION...]: one without functions, for any loader
    cc -O2 -Wall -Werror -shared -fPIC -nostdlib "-Wl,-soname,$1" -o "$2" "${@:3}"
}

cc -O2 -Wall -Werror -o probe "$HERE/probe.c" -ldl
cc -O2 -Wall -Werror -static -DSTATIC -o probe-static "$HERE/probe.c"
musl-gcc -O2 -Wall -Werror -o probe-musl "$HERE/probe.c"
library libown.so.1 libown.so.1 -x c /dev/null

mirror=$(debian_mirror)
unpack bookworm split base-files,libc6,libc-bin
[ ! -L split/lib ] || die "Debian 12 is unpacked with /lib as a link"
unpack trixie merged base-files,libc6,libc-bin,musl
[ -L merged/lib ] || die "Debian 13 is unpacked with /lib as a directory"

# musl's part of Debian 13, for itself: without /usr merged, as Alpine has it.
mkdir -p musl/{dev,etc,lib,proc,run,sys,tmp,usr/bin,usr/lib,var}
cp merged/usr/lib/x86_64-linux-musl/libc.so musl/lib/ld-musl-x86_64.so.1
cp probe-musl musl/usr/bin/probe
pack musl musl
mkdir -p musl/opt/own/lib
cp libown.so.1 musl/opt/own/lib/
printf '%s\n' /lib /opt/own/lib /usr/lib >musl/etc/ld-musl-x86_64.path
pack musl musl-path
copy merged both
rm -rf merged/etc/ld-musl-* merged/usr/lib/*-linux-musl merged/usr/lib/ld-musl-* merged/usr/bin/ld-musl-*

for root in split merged both; do
    cp probe $root/usr/bin/probe
    mkdir -p $root/opt/own/lib
    cp libown.so.1 $root/opt/own/lib/
    echo /opt/own/lib >$root/etc/ld.so.conf.d/own.conf
    ldconfig -r $root
done
cp probe-musl both/usr/bin/
pack split split
pack both both

for form in old compat; do
    copy merged root
    rm root/etc/ld.so.cache
    ldconfig -c $form -r root
    pack root cache-$form
done

copy merged root
rm -rf root/etc
pack root no-etc

copy merged root
mkdir root/opt/{multiarch,nvidia}
mv root/usr/lib/x86_64-linux-gnu/* root/opt/multiarch/
rmdir root/usr/lib/x86_64-linux-gnu
mv root/etc root/usr/etc
rm -rf root/run root/lib root/lib64
mkdir -p root/var/run
ln -s /opt/multiarch root/usr/lib/x86_64-linux-gnu
ln -s /opt/nvidia root/usr/etc/nvidia
ln -s /usr/etc root/etc
ln -s /var/run root/run
ln -s /usr/lib root/lib
ln -s /usr/lib64 root/lib64
pack root links

mkdir empty
cp probe-static empty/probe
pack empty empty

# Laid out as NVIDIA's packages do it, the way from /usr/local/cuda included.
compat() { # compat VERSION DRIVERS: in root
    copy merged root
    local there=root/usr/local/cuda-13.1/compat
    mkdir -p $there root/etc/alternatives
    ln -s /usr/local/cuda-13.1 root/etc/alternatives/cuda
    ln -s /etc/alternatives/cuda root/usr/local/cuda
    library libcuda.so.1 "$there/libcuda.so.$1" "-DDRIVERS=\"$2\"" "$HERE/compat.c"
    ln -s "libcuda.so.$1" $there/libcuda.so.1
}
compat 590.44.01 535,550,570,575,580,590
pack root compat
compat 590.44.01 535,550,570,590
echo /usr/local/cuda/compat >root/etc/ld.so.conf.d/compat.conf
ldconfig -r root
pack root compat-other
compat 550.54.14 535,550,580
pack root compat-older

mkdir -p "$bundles"
mv out/*.tar "$bundles/"
echo "$stamp" >"$bundles/.stamp"
