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
mkdir -p /etc/containerd /etc/cni/net.d /opt/cni/bin
# Pods here use the machine's own network, and the CRI says that it is not ready without a configuration.
echo '{"cniVersion":"1.0.0","name":"lo","plugins":[{"type":"loopback"}]}' >/etc/cni/net.d/10-lo.conflist
case $(containerd --version) in
    *' 1.7.'* | *' v1.7.'*) version=2 runtime=io.containerd.grpc.v1.cri images='sandbox_image = "docker.io/library/pause:latest"' ;;
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
  sandbox = "docker.io/library/pause:latest"
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
# Root file systems as plain tars are nothing that containerd takes: Podman makes images of them.
[ -n "$(podman images --quiet pause)" ] ||
    podman import --quiet --change 'CMD ["/bin/sleep", "1000000"]' /images/bb.tar pause:latest >/dev/null
for tar in /images/*.tar; do
    image=${tar##*/}; image=${image%.tar}
    [ -n "$(podman images --quiet "$image")" ] ||
        podman import --quiet --change 'ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin' --change 'CMD ["/bin/sh"]' \
            "$tar" "$image:latest" >/dev/null
done
for image in pause $(cd /images && ls *.tar | sed 's/\.tar$//'); do
    podman save --quiet --format oci-archive --output /tmp/image.tar "localhost/$image:latest"
    for namespace in default k8s.io; do
        ctr --namespace $namespace images import --index-name "docker.io/library/$image:latest" /tmp/image.tar >/dev/null
    done
    rm /tmp/image.tar
done
S
