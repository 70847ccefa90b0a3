#!/usr/bin/env bash
# run.sh: every test. Installs what is missing, builds, runs unit, black box and engine tests, and ends with a line
# that counts them: "N passed, N failed, N skipped". A test that cannot run here is skipped with its reason;
# DIVVY_REQUIRE (root,docker,podman,containerd,cgroup2,strace,mounts,musl,mps) turns such a skip into a failure.
set -uo pipefail
cd "$(dirname "$0")/.."
export DIVVY_BUILD=${DIVVY_BUILD:-$PWD/.build}
mkdir -p "$DIVVY_BUILD"
log=$DIVVY_BUILD/test.log
export DIVVY_TEST_SUMMARY=$DIVVY_BUILD/engines.summary
rm -f "$DIVVY_TEST_SUMMARY" "$DIVVY_BUILD"/{engines,images}.md

tests/machine/install.sh && packaging/build.sh "$DIVVY_BUILD/bin" dev && cargo build --quiet --locked -p mock-nvml -p cri-run || {
  echo "error: the tests could not be set up: see above" >&2
  echo "0 passed, 1 failed, 0 skipped"
  exit 1
}

# NVIDIA's MPS programs come over the network, and may not be there: what needs them says so.
tests/machine/mps.sh || true

cargo test --workspace --locked --no-fail-fast 2>&1 | tee "$log"
status=${PIPESTATUS[0]}
# The engines once more: those of Debian's stable release, and on cgroup v1.
for setting in DIVVY_SUITE=trixie DIVVY_CGROUP=v1; do
  env "$setting" cargo test --locked --test engines 2>&1 | tee -a "$log"
  again=${PIPESTATUS[0]}
  [ "$again" -eq 0 ] || status=$again
done
# The hook once more, on a kernel that has none of the calls that came after Linux 4.9.
calls=openat2,open_tree,move_mount,fsopen,fsmount,fsconfig,mount_setattr,statx
cc -O2 -Wall -o "$DIVVY_BUILD/enosys" tests/enosys.c &&
  "$DIVVY_BUILD/enosys" "$calls" cargo test --locked --no-fail-fast -p divvy-hooks 2>&1 | tee -a "$log"
again=${PIPESTATUS[0]}
[ "$again" -eq 0 ] || status=$again

# Each test binary closes with "test result: ok. 3 passed; 0 failed; 1 ignored; ..."
read -r passed failed skipped < <(awk '
  /^test result:/ { for (i = 1; i <= NF; i++) {
    if ($i ~ /^passed/) p += $(i - 1); if ($i ~ /^failed/) f += $(i - 1); if ($i ~ /^ignored/) s += $(i - 1) } }
  END { print p + 0, f + 0, s + 0 }' "$log")
# A binary that did not build or died without its closing line failed too.
[ "$status" -eq 0 ] || [ "$failed" -gt 0 ] || failed=1

echo
if [ -s "$DIVVY_TEST_SUMMARY" ]; then sed 's/^/skipped: /' "$DIVVY_TEST_SUMMARY"; fi
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
