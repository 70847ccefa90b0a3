# The specs that tests/engines/honours.rs asks engines with, of a vendor that nobody has. They are written in the machine,
# once for all engines. What one engine refuses is in a file of its own, since an engine refuses a whole file.
set -e
# No driver answers for the node: opening it gives ENXIO where it is admitted, and EPERM where it is denied.
mknod -m 666 /dev/probe-node c 195 200
mkdir -p -m 755 /srv/probe
cd /srv/probe
echo mounted >file
echo other >other
# crun says in the state where the root file system is (with \/ for /), and runc starts a hook there.
cat >writes <<'S'
#!/bin/sh
root=$(sed -n '/"root":/ { s/.*"root": *"\([^"]*\)".*/\1/; s#\\/#/#g; p }')
cd "${root:-.}" && echo written >usr/probe
S
printf '#!/bin/sh\necho ran >>/tmp/probe-$1\n' >runs
printf '#!/bin/sh\necho the hook says why >&2\nexit 7\n' >fails
chmod 755 writes runs fails

cd /etc/cdi
edits() { # edits VERSION CLASS DEVICE EDITS: a spec with one device
    printf '{"cdiVersion":"%s","kind":"example.com/%s","devices":[{"name":"%s","containerEdits":{%s}}]}\n' "$@"
}
node() { # node PERMISSIONS MODE, decimal
    echo '"deviceNodes":[{"path":"/dev/probe-node","type":"c","permissions":"'$1'","fileMode":'$2',"gid":44}]'
}
mount() { # mount PATH MORE OPTION
    echo '"mounts":[{"containerPath":"'$1'",'$2',"options":["ro","nosuid","nodev","'$3'"]}]'
}
hook() { # hook PROGRAM [ARGUMENT]
    echo '"hooks":[{"hookName":"createContainer","path":"'$1'","args":["hook"'${2:+,\"$2\"}'],"env":["PATH=/usr/bin"]}]'
}
edits 0.5.0 probe node "$(node rw 416)" >probe-node.json
edits 0.5.0 probe open "$(node rw 438)" >probe-open.json
edits 0.5.0 probe read "$(node r 438)" >probe-read.json
edits 0.5.0 probe renamed '"deviceNodes":[{"path":"/dev/renamed","hostPath":"/dev/probe-node"}]' >probe-renamed.json
edits 0.5.0 probe mount "$(mount /srv/file '"hostPath":"/srv/probe/file","type":"bind"' rbind)" >probe-mount.json
edits 0.5.0 probe untyped "$(mount /srv/file '"hostPath":"/srv/probe/file"' rbind)" >probe-untyped.json
edits 0.5.0 probe tmpfs "$(mount /srv/tmpfs '"hostPath":"tmpfs","type":"tmpfs"' size=64k)" >probe-tmpfs.json
edits 0.5.0 probe env '"env":["PROBE=cdi"]' >probe-env.json
edits 0.5.0 probe second '"env":["SECOND=cdi"]' >probe-second.json
edits 0.5.0 probe hook "$(hook /usr/bin/true)" >probe-hook.json
edits 0.5.0 probe writes "$(hook /srv/probe/writes)" >probe-writes.json
edits 0.5.0 probe fails "$(hook /srv/probe/fails)" >probe-fails.json
for engine in "$@"; do
    # The program is a copy that tests/engines/environment.rs makes.
    edits 0.5.0 "preload-$engine" one \
        '"hooks":[{"hookName":"createContainer","path":"/poc.d/bin/'$engine'"}]' >"probe-preload-$engine.json"
    edits 0.5.0 "runs-$engine" one "$(hook /srv/probe/runs "$engine")" >"probe-runs-$engine.json"
done
edits 0.7.0 groups one '"additionalGids":[44]' >probe-groups.json
edits 0.6.0 with.dot one '"env":["PROBE=cdi"]' >probe-dot.json
for version in 0.3.0 0.4.0 0.5.0 0.6.0 0.7.0 0.8.0 1.0.0 1.1.0; do
    edits $version "v$(echo $version | tr -d .)" one '"env":["PROBE=cdi"]' >probe-$version.json
done
