# Sourced by the benchmarks in real engines: bench_machine NAME makes a throw-away machine (tests/machine) with Podman and
# Docker, laid out as a host with eight H100 GPUs. It ends with the script that asked for it.
bench_machine() {
  machine=tests/machine name=$1
  [ "$(id -u)" = 0 ] || { echo "error: the benchmark needs root" >&2; echo "hint: sudo make bench" >&2; exit 1; }
  $machine/install.sh && $machine/tree.sh sid && $machine/images.sh
  trap '$machine/down.sh $name' EXIT
  $machine/up.sh sid $name
  $machine/in.sh $name sh -ec 'install /divvy/divvy /divvy/divvy-hook /usr/bin/
    divvy --quiet sim h100x8 /sim
    for dir in dev etc lib run usr; do cp -a /sim/$dir/. /$dir/; done
    ldconfig
    podman import --quiet --change "CMD /bin/sh" /images/bb.tar bb >/dev/null'
  $machine/dockerd.sh $name
  $machine/in.sh $name docker import --change 'CMD ["/bin/sh"]' /images/bb.tar bb >/dev/null
}
