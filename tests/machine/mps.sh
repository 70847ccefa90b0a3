#!/bin/bash
# mps.sh: unpacks NVIDIA's MPS programs and libcuda, as Debian has them in non-free, into $BUILD/mps/VERSION, VERSION the
# driver's. None of it needs a GPU to run: the control daemon works without one, and cuInit tells whether it met MPS (805)
# or not (100).
# apt has directories of its own below $BUILD, checks what it gets with Debian's archive key, and installs nothing. A suite
# that is there is not asked for again until this script changes.
# Exit status: 1 where a suite could not be had, with a line that says which and why; the others are there then.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/common.sh"

[ $# = 0 ] || die "usage: mps.sh"
# One that serves one user at a time and knows no get_server_status, one that knows it, and one that serves all users.
suites=(bookworm trixie experimental)
packages=(nvidia-cuda-mps libcuda1)
key=/usr/share/keyrings/debian-archive-keyring.gpg
stamp=$(sha256sum <"$0")
unpacked=$BUILD/mps

# A suite's file holds the stamp and the driver's version.
version_of() {
    local version
    [ "$(head -n 1 "$unpacked/.$1" 2>/dev/null)" = "$stamp" ] || return 1
    version=$(tail -n 1 "$unpacked/.$1")
    [ -d "$unpacked/$version" ]
}

missing=()
for suite in "${suites[@]}"; do version_of "$suite" || missing+=("$suite"); done
[ ${#missing[@]} -gt 0 ] || exit 0

command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || die "needs Debian or Ubuntu: there is no apt-get here"
[ -e "$key" ] || die "$key is missing: run install.sh"
mirror=$(debian_mirror)
# On another host, that of mmdebstrap, which makes the trees.
[ -n "$mirror" ] || mirror=$(sed -n "s/^ *my \$mirror *= '\(.*\)';$/\1/p" "$(command -v mmdebstrap)" 2>/dev/null | head -n 1)
[ -n "$mirror" ] || die "no mirror of Debian's is known: run install.sh"

mkdir -p "$unpacked"
work=$(mktemp -d "$unpacked/.work.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
# apt loads as a user of its own.
chmod 755 "$work"

# Of the host's own settings those for its network alone: others run programs after an update.
settings() { # settings DIR
    apt-config dump | grep -E '^Acquire::https?::' || true
    cat <<S
Dir::Etc "$1/etc";
Dir::Etc::Parts "none";
Dir::Etc::Main "none";
Dir::Etc::SourceParts "none";
Dir::Etc::Preferences "none";
Dir::Etc::PreferencesParts "none";
Dir::State "$1/state";
Dir::State::Status "$1/status";
Dir::Cache "$1/cache";
Dir::Log "$1/log";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::Check-Valid-Until "false";
S
}

# What apt says goes to a log: it is shown if there is nothing to show for it.
fetch() { # fetch SUITE
    local dir=$work/$1 deb version
    mkdir -p "$dir"/{etc,state/lists/partial,cache/archives/partial,log,debs,root}
    : >"$dir/status"
    settings "$dir" >"$dir/apt.conf"
    echo "deb [signed-by=$key] $mirror $1 non-free" >"$dir/etc/sources.list"
    export APT_CONFIG=$dir/apt.conf
    apt-get update --error-on=any -q || return
    cd "$dir/debs" || return
    apt-get download -q "${packages[@]}" || return
    for deb in *.deb; do dpkg-deb --extract "$deb" "$dir/root" || return; done
    # The package's version, without its epoch and Debian's part.
    version=$(dpkg-deb --field nvidia-cuda-mps_*.deb Version) || return
    version=${version#*:} version=${version%-*}
    [ -x "$dir/root/usr/bin/nvidia-cuda-mps-control" ] || { echo "E: no nvidia-cuda-mps-control in it"; return 1; }
    [ -e "$dir/root/usr/lib/$(uname -m)-linux-gnu/nvidia/current/libcuda.so.$version" ] ||
        { echo "E: no libcuda.so.$version in it"; return 1; }
    rm -rf --one-file-system "${unpacked:?}/$version"
    mv -T "$dir/root" "$unpacked/$version" || return
    printf '%s\n' "$stamp" "$version" >"$dir/suite"
    mv -T "$dir/suite" "$unpacked/.$1"
}

status=0
for suite in "${missing[@]}"; do
    if ! (fetch "$suite") >"$work/log" 2>&1; then
        why=$(sed -n 's/^E: //p' "$work/log" | head -n 1)
        echo "mps.sh: no MPS programs of $suite: ${why:-$(tail -n 1 "$work/log")}" >&2
        status=1
    fi
done
exit $status
