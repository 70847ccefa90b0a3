# Sourced by the transcripts: commands as they would be typed, with what they print.

# shown COMMAND: with what it prints on either stream, as root or, with prompt='$', as the unprivileged user.
shown() {
    printf '%s %s\n' "${prompt:-#}" "$1"
    local command=$1
    if [ "${prompt:-#}" = '$' ]; then
        (cd /home/dev && setpriv --reuid 1001 --regid 1001 --clear-groups env HOME=/home/dev USER=dev \
            XDG_RUNTIME_DIR=/run/user/1001 sh -c "$command") </dev/null 2>&1 || echo "[status $?]"
    else
        sh -c "$command" </dev/null 2>&1 || echo "[status $?]"
    fi
}

# Starts a machine's engines, each with the image `debian`: engines_with_image NAME. Root's Podman has it by then.
engines_with_image() {
    "$HERE/as-user.sh" "$1" podman import --quiet --change 'CMD /bin/sh' /images/glibc.tar debian >/dev/null
    "$HERE/dockerd.sh" "$1"
    "$HERE/in.sh" "$1" docker import --change 'CMD ["/bin/sh"]' /images/glibc.tar debian >/dev/null
    "$HERE/containerd.sh" "$1"
    "$HERE/in.sh" "$1" install --mode=755 /dev/stdin /usr/bin/cri-run \
        <"${CARGO_TARGET_DIR:-$HERE/../../target}/debug/cri-run"
}
