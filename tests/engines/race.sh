# race.sh STATE DIES SEED CONFIG...: 200 containers with bundles of their own on runc, all started at once. Every second
# one has the first config.json, which asks for a pool; the others have the other ones in turn. Run in the machine, as
# root, by race.rs. DIES is what is killed meanwhile, again and again: words of daemon, hooks, containers.
# Prints a line "start N OUTCOME" for each: 0, or the status of the hook that refused, or what the runtime said. Then
# "lease JSON" for each lease, and "running ID" for each container; then "again N OUTCOME" for containers that are started
# one after the other until one gets nothing, and "killed" with how many daemons, hooks and containers were; and once all
# containers have ended, "left" with the number of leases.
set -u
state=$1 dies=$2 RANDOM=$3
shift 3
count=200 daemons=0 hooks=0 containers=0
dir=$(mktemp -d /home/race-XXXXXX)
mkdir $dir/image
daemon=
trap '[ -z "$daemon" ] || end_daemon; rm -rf $dir' EXIT
tar -x -C $dir/image -f /images/bb.tar ./bin/busybox
configs=0
for config; do printf %s "$config" >$dir/config.$((configs++)); done

serve() {
    setsid divvy serve --state-dir $state </dev/null >>$state/log 2>&1 &
    daemon=$!
}
end_daemon() {
    kill -9 $daemon
    wait $daemon 2>/dev/null
}
bundle() { # bundle N CONFIG
    mkdir -p $dir/$1/rootfs/{bin,dev,etc,proc,sys,tmp}
    ln $dir/image/bin/busybox $dir/$1/rootfs/bin/busybox
    cp $dir/config.$2 $dir/$1/config.json
}
start() { # start WORD N
    local status=0 said
    runc run --detach --bundle $dir/$2 race-$2 </dev/null >/dev/null 2>$dir/$2/err || status=$?
    if [ $status != 0 ]; then
        said=$(sed -n 's/.*hook #[0-9]*: exit status \([0-9]*\).*/\1/p' $dir/$2/err | head -n 1)
        status=${said:-$(tr '\n' ' ' <$dir/$2/err)}
    fi
    echo "$1 $2 $status" >$dir/$2/outcome.new
    mv $dir/$2/outcome.new $dir/$2/outcome
}
outcomes() { find $dir -mindepth 2 -maxdepth 2 -name outcome | wc -l; }
one_of() { [ $# = 0 ] || echo "${@:RANDOM % $# + 1:1}"; }
# Of these containers: others are started in the machine meanwhile.
hooks_of_these() {
    local pid
    for pid in $(grep -lx divvy-hook /proc/[0-9]*/comm 2>/dev/null | cut -d/ -f3); do
        if grep -qaF -- "=$state" /proc/$pid/cmdline 2>/dev/null; then echo $pid; fi
    done
}
hook() { one_of $(hooks_of_these); }
holder() { one_of $(sed -n 's/.*"pid":\([0-9]*\).*/\1/p' $state/leases/*.json 2>/dev/null); }

for ((n = 0; n < count; n++)); do bundle $n $((n % 2 ? 1 + n / 2 % (configs - 1) : 0)); done
serve
for ((n = 0; n < count; n++)); do start start $n & done
# What is killed next depends on how far it has come.
seen=0
while [ $seen -lt $count ]; do
    now=$(outcomes)
    [ $now -ge $((seen + 8)) ] || [ $now = $count ] || { sleep 0.1; continue; }
    seen=$now
    [[ $dies != *daemon* ]] || { end_daemon; serve; daemons=$((daemons + 1)); }
    [[ $dies != *hooks* ]] || { pid=$(hook); [ -z "$pid" ] || { kill -9 $pid && hooks=$((hooks + 1)); }; }
    [[ $dies != *containers* ]] || { pid=$(holder); [ -z "$pid" ] || { kill -9 $pid && containers=$((containers + 1)); }; }
done 2>/dev/null
cat $dir/*/outcome

# A container that was killed is gone when its lease is; nothing else is left to end.
for id in $(runc list --quiet); do
    runc state $id | grep -q '"status": "running"' || runc delete --force $id
done
running() { runc list --quiet | sort; }
holders() { sed -n 's/.*"id":"\(race-[0-9]*\)".*/\1/p' $state/leases/*.json 2>/dev/null | sort; }
for ((i = 0; i < 300; i++)); do [ "$(running)" != "$(holders)" ] || break; sleep 0.1; done
for lease in $state/leases/*.json; do echo "lease $(cat $lease)"; done
running | sed 's/^/running /'
for ((n = count; n < count + 40; n++)); do
    bundle $n 0
    start again $n
    cat $dir/$n/outcome
    grep -q ' 0$' $dir/$n/outcome || break
done
echo killed $daemons $hooks $containers
for id in $(runc list --quiet); do runc delete --force $id; done
for ((i = 0; i < 300; i++)); do [ -n "$(holders)" ] || break; sleep 0.1; done
echo left $(holders | wc -l)
