#!/bin/bash
# containerd.sh NAME: starts a containerd of its own in a machine, beside Docker's, and returns when it answers. It
# listens where no Docker looks for one to adopt. The images are loaded for `ctr` and for the CRI, and ctr-run.sh is put
# in place as `ctr-run`. It ends with the machine.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/common.sh"

[ $# = 1 ] || die "usage: containerd.sh NAME"
name=$1
as_root "" "$@"
machine_pid "$name" >/dev/null || die "the machine $name is not up"
"$HERE/in.sh" "$name" sh -c 'cat >/usr/bin/ctr-run && chmod 755 /usr/bin/ctr-run' <"$HERE/ctr-run.sh"
"$HERE/in.sh" "$name" sh -s <<'S' || die "containerd does not answer in $name"
set -e
mkdir -p /etc/containerd /etc/cni/net.d /usr/lib/cni
# A pod with a user namespace needs a network of its own. It has nothing in it, and this says so.
echo '{"cniVersion":"1.0.0","name":"lo","plugins":[{"type":"loopback"}]}' >/etc/cni/net.d/10-lo.conflist
cat >/usr/lib/cni/loopback <<'T'
#!/bin/sh
case $CNI_COMMAND in
    VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.3.1","1.0.0"]}' ;;
    ADD) echo '{"cniVersion":"1.0.0","interfaces":[{"name":"'"$CNI_IFNAME"'","sandbox":"'"$CNI_NETNS"'"}],
               "ips":[{"interface":0,"address":"127.0.0.1/8"}]}' ;;
esac
T
chmod 755 /usr/lib/cni/loopback
case $(containerd --version) in
    *' 1.7.'* | *' v1.7.'*)
        version=2 runtime=io.containerd.grpc.v1.cri
        images='sandbox_image = "localhost/pause:latest"' ;;
    *) version=3 runtime=io.containerd.cri.v1.runtime images= ;;
esac
cat >/etc/containerd/config.toml <<T
version = $version
state = "/run/ctrd"
[grpc]
  address = "/run/ctrd/containerd.sock"
[plugins."$runtime"]
  enable_cdi = true
  cdi_spec_dirs = ["/etc/cdi", "/var/run/cdi"]
  disable_apparmor = true
  restrict_oom_score_adj = true
  tolerate_missing_hugetlb_controller = true
  disable_hugetlb_controller = true
  $images
[plugins."$runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."$runtime".containerd.runtimes.runc.options]
  BinaryName = "/usr/bin/runc-without-limits"
T
[ $version = 2 ] || cat >>/etc/containerd/config.toml <<T
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "localhost/pause:latest"
T
# The CRI gives every pod a share of the CPU, and there may be no controller for it in this hierarchy.
cat >/usr/bin/runc-without-limits <<'T'
#!/bin/bash
previous= bundle=
for word; do [ "$previous" != --bundle ] || bundle=$word; previous=$word; done
if [ -n "$bundle" ] && ! grep -qsw cpu /sys/fs/cgroup/cgroup.controllers; then
    sed -E -i 's/"cpu":\{[^}]*\}/"cpu":{}/; s/"memory":\{"[^}]*\}/"memory":{}/' "$bundle/config.json"
fi
exec runc "$@"
T
chmod 755 /usr/bin/runc-without-limits
setsid containerd >/var/log/containerd.log 2>&1 </dev/null &
export CONTAINERD_ADDRESS=/run/ctrd/containerd.sock
for _ in $(seq 100); do
    ! ctr version >/dev/null 2>&1 || break
    sleep 0.1
done
ctr version >/dev/null || { tail -n 20 /var/log/containerd.log >&2; exit 1; }
# Root file systems as plain tars are nothing that containerd takes: Podman makes images of them, all in one archive.
# They go to the CRI's namespace alone, where ctr-run looks too.
images=
import() { # import TAR NAME COMMAND
    images="$images localhost/$2"
    [ -z "$(podman images --quiet "localhost/$2")" ] || return 0
    tar=$1 name=$2
    set -- --change 'ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin' --change "CMD $3"
    if [ -e "${tar%.tar}.changes" ]; then
        while read -r change; do set -- "$@" --change "$change"; done <"${tar%.tar}.changes"
    fi
    podman import --quiet "$@" "$tar" "$name:latest" >/dev/null
}
import /images/bb.tar pause '["/bin/sleep", "1000000"]'
for tar in /images/*.tar; do
    name=${tar##*/}
    import "$tar" "${name%.tar}" '["/bin/sh"]'
done
podman save --quiet --multi-image-archive --output /tmp/images.tar $images
ctr --namespace k8s.io images import /tmp/images.tar >/dev/null
rm /tmp/images.tar
S
