#!/bin/bash
# Installs the Debian packages that the test machines need and this host lacks, and nothing else:
# mmdebstrap unpacks the trees, Debian's archive keys check them where the host is not Debian, a C compiler makes
# the test program for the images, for musl with that library's own wrapper of it, and strace counts system calls. The
# engines are not installed on the host at all.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/common.sh"

command -v apt-get >/dev/null || die "needs Debian or Ubuntu: there is no apt-get here"

missing=()
command -v mmdebstrap >/dev/null || missing+=(mmdebstrap)
command -v cc >/dev/null || missing+=(gcc)
# crt1.o and libc.a come with it; a compiler alone cannot link.
[ -e "$(cc -print-file-name=libc.a 2>/dev/null)" ] || missing+=(libc6-dev)
command -v musl-gcc >/dev/null || missing+=(musl-tools)
[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing+=(debian-archive-keyring)
command -v strace >/dev/null || missing+=(strace)
[ ${#missing[@]} -gt 0 ] || exit 0

as_root "to install ${missing[*]}" "$@"
echo "installing: ${missing[*]}"
# The list of packages may be older than what the mirror still has: refresh it once.
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
{ apt-get update -q && apt-get install -y -q --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 ||
    { tail -n 20 "$log" >&2; die "apt-get could not install: ${missing[*]}"; }
