# bundle.sh TREE LOOK RUNTIME CONFIG...: unpacks a tree of tests/machine/ into a bundle of its own and runs a runtime on
# it once for each config.json, always on the same root. Run in the machine, by bundle.rs, for root or for a user.
# Prints for each run "status N", standard output, "--", standard error, "--", what changed below the root, "--": a line
# PATH|KIND|SIZE of whatever is new or whose inode, owner, mode or time of change is another; a final run of LOOK
# in the root comes last.
set -e
tree=$1 look=$2 runtime=$3
shift 3
[ -w /home ] && home=/home || home=$HOME
dir=$(mktemp -d $home/bundle-XXXXXX)
# A container's root may have made what its owner cannot enter.
trap 'chmod -R u+rwx $dir/rootfs; rm -rf $dir' EXIT
mkdir $dir/rootfs
tar -x -C $dir/rootfs -f /images/$tree.tar
inventory() {
    find $dir/rootfs -xdev -printf '%P|%y|%s|%l|%i|%m|%U:%G|%C@\n' | LC_ALL=C sort
}
inventory >$dir/before
for config; do
    printf %s "$config" >$dir/config.json
    status=0
    $runtime run --bundle $dir ${dir##*/} </dev/null >$dir/out 2>$dir/err || status=$?
    echo status $status
    cat $dir/out
    echo --
    cat $dir/err
    echo --
    inventory >$dir/after
    LC_ALL=C comm -13 $dir/before $dir/after | cut -d'|' -f1-3
    mv $dir/after $dir/before
    echo --
done
cd $dir/rootfs
eval "$look"
