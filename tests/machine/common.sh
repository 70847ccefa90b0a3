# Sourced by the scripts beside it: where things lie, who may run them, and how a machine is found again.
#
#   $BUILD/trees/SUITE      a Debian tree with the engines in it, under every machine of that suite, never written to
#   $BUILD/images/*.tar     root file systems for containers
#   $BUILD/bin              divvy's own programs, seen in every machine as /divvy
#   $BUILD/mps/VERSION      NVIDIA's MPS programs and libcuda of a driver, seen as /mps
#   $BUILD/machines/NAME    one machine: its process, its cgroup, its file system and the engines' stores
#
# Nothing is written outside $BUILD, apart from the machine's cgroup.

# What is made here is read by a machine's unprivileged user too.
umask 022

HERE=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
BUILD=$(realpath -m "${DIVVY_BUILD:-$HERE/../../.build}")
TREES=$(realpath -m "${DIVVY_TREES:-$BUILD/trees}")

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# Starts the calling script again as root: as_root WHY "$@". An empty WHY says nothing.
as_root() {
    local why=$1
    shift
    [ "$(id -u)" != 0 ] || return 0
    command -v sudo >/dev/null || die "must be root${why:+: $why}, and there is no sudo"
    [ -z "$why" ] || echo "${0##*/}: going on with sudo: $why" >&2
    exec sudo env "DIVVY_BUILD=$BUILD" "DIVVY_TREES=$TREES" "$0" "$@"
}

machine_dir() {
    case $1 in
        '' | *[!a-z0-9-]*) die "a machine's name has only a-z, 0-9 and -: '$1'" ;;
    esac
    echo "$BUILD/machines/$1"
}

# When a process started, in clock ticks since boot. With the process id it names one process for good.
start_time() {
    local stat fields
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    # The command's name (field 2) may hold blanks; the fields after its closing bracket do not.
    read -ra fields <<<"${stat##*) }"
    echo "${fields[19]}"
}

# Prints the process id of the machine's init as the host sees it, or fails where that process is gone.
machine_pid() {
    local pid started
    read -r pid started 2>/dev/null <"$(machine_dir "$1")/init" || return 1
    [ "$(start_time "$pid")" = "$started" ] || return 1
    echo "$pid"
}

# The host's own Debian mirror, if it has one. Elsewhere nothing is printed: mmdebstrap knows Debian's.
debian_mirror() {
    apt-get indextargets --format '$(ORIGIN) $(LABEL) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        awk '$1 == "Debian" && $2 == "Debian" && $3 ~ /^https?:/ && !seen { print $3; seen = 1 }'
}
