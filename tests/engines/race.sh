# race.sh STATE DIES SEED CONFIG...: 200 containers with bundles of their own on runc, all started at once. The first
# config.json asks for a pool, and every second container does; the others take the other ones in turn. Run in the
# machine, as root, by race.rs. DIES is what is killed meanwhile, again and again: words of daemon, hooks, containers.
# Prints a line "start N OUTCOME" for each start: 0, or the status of the hook that refused, or what the runtime said;
# "lease ID DEVICE" and "running ID" when all is over; the same for those that were started one after the other then,
# until one was refused ("again N OUTCOME"); and "left N", the leases that are there after all containers have ended.
set -eu
state=$1 dies=$2 RANDOM=$3
shift 3
count=200
dir=$(mktemp -d /home/race-XXXXXX)
mkdir $dir/image
tar -x -C $dir/image -f /images/bb.tar ./bin/busybox
number=0
for config; do printf %s "$config" >$dir/config.$((number++)); done

serve() {
    setsid divvy serve --state-dir $state </dev/null >>$dir/log 2>&1 &
    daemon=$!
}
bundle() { # bundle N CONFIG
    mkdir -p $dir/$1/rootfs/{bin,dev,etc,proc,sys,tmp}
    ln $dir/image/bin/busybox $dir/$1/rootfs/bin/busybox
    cp $dir/config.$2 $dir/$1/config.json
}
start() { # start N WORD: prints what came of it
    local status=0 said
    runc run --detach --bundle $dir/$1 race-$1 </dev/null >/dev/null 2>$dir/$1/err || status=$?
    if [ $status != 0 ]; then
        said=$(sed -n 's/.*hook #[0-9]*: exit status \([0-9]*\).*/\1/p' $dir/$1/err | head -n 1)
        status=${said:-$(tr '\n' ' ' <$dir/$1/err)}
    fi
    echo "$2 $1 $status" >$dir/$1/outcome.new
    mv $dir/$1/outcome.new $dir/$1/outcome
}
outcomes() { find $dir -mindepth 2 -maxdepth 2 -name outcome | wc -l; }
holders() { cat $state/leases/*.json 2>/dev/null | grep -o '"pid":[0-9]*' | cut -d: -f2; }
one_of() { [ $# = 0 ] || echo ${!((RANDOM % $# + 1))}; }
report() {
    local id
    for id in $(cat $state/leases/*.json 2>/dev/null | grep -o '"id":"race-[0-9]*"' | cut -d'"' -f4); do :; done
    cat $state/leases/*.json 2>/dev/null | sed 's/}{/}\n{/g' >$dir/leases || true
    sed -n 's/.*"id":"\([^"]*\)".*"devices":\[{[^]]*"name":"\([^"]*\)".*/lease \1 \2/p' $dir/leases
    runc list --format json | sed 's/},{/}\n{/g' | sed -n 's/.*"id":"\([^"]*\)".*"status":"running".*/running \1/p'
}
