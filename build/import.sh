#!/bin/sh
# Usage: import.sh [check]
# Import ARCHIVE into this node's containerd, pin it, and look again every CHECK_INTERVAL seconds for as long as we run;
# with "check", only say whether the archive's image is there: whole, pinned and under its exact name.
#
# ARCHIVE               what build.sh saved
# CONTAINERD_ADDRESS    containerd's socket; unset = containerd's own place, else k3s'
# CHECK_INTERVAL        seconds, greater than 0
# STATE                 a folder for the archive's parts while it is looked at, and for what was imported last
set -eu
# shellcheck source=build/archive.sh
. "$(dirname "$0")/archive.sh"

: "${CHECK_INTERVAL:=30}"
: "${STATE:=/tmp}"
PIN=io.cri-containerd.pinned=pinned
PREVIOUS=localhost/tailscale-lifecycle:previous

if [ -z "${CONTAINERD_ADDRESS-}" ]; then
    CONTAINERD_ADDRESS=/run/containerd/containerd.sock
    if ! [ -S "$CONTAINERD_ADDRESS" ] && [ -S /run/k3s/containerd/containerd.sock ]; then
        CONTAINERD_ADDRESS=/run/k3s/containerd/containerd.sock
    fi
fi
export CONTAINERD_ADDRESS

# Kubernetes sees the images of this namespace and no others.
images() {
    ctr --namespace k8s.io --connect-timeout 2s --timeout 2m images "$@"
}

# The digest a name stands for, without "sha256:"; nothing when there is no such name: digest_of NAME
digest_of() {
    images ls "name==$1" | awk -v name="$1" '$1 == name { sub("sha256:", "", $3); print $3 }'
}

# True when the name stands for an image that is all there and unpacked: whole NAME
whole() {
    images check "name==$1" | awk -v name="$1" '$1 == name && / complete / && $NF == "true" { found = 1 } END { exit !found }'
}

pinned() {
    images ls "name==$IMAGE" | grep -qF "$PIN"
}

pin() {
    images label "$IMAGE" "$PIN" >/dev/null && pinned
}

# True when the image of the archive, as we last saw it, is what the name stands for.
there() {
    [ -f "$STATE/wanted" ] && [ "$(digest_of "$IMAGE")" = "$(cat "$STATE/wanted")" ] && whole "$IMAGE"
}

# Import the archive; when that fails half-way, the name goes back to the image it stood for.
import() {
    # containerd 2's other way of importing drops the labels of a name that is there already, the pin among them.
    local_flag=''
    if images import --help | grep -q -- '--local'; then
        local_flag=--local
    fi
    previous=$(digest_of "$IMAGE")
    if [ -n "$previous" ] && whole "$IMAGE"; then
        images tag --force "$IMAGE" "$PREVIOUS" >/dev/null
    fi
    if ! images import $local_flag "$ARCHIVE" >&2 || ! there; then
        say "the import failed"
        if [ -n "$(digest_of "$PREVIOUS")" ]; then
            say "going back to the previous image"
            images tag --force "$PREVIOUS" "$IMAGE" >/dev/null
        fi
        return 1
    fi
}

# One look, and what it takes to make it right.
ensure() {
    # No answer is not "no such image".
    if ! images ls -q >/dev/null; then
        say "containerd does not answer at $CONTAINERD_ADDRESS"
        return 1
    fi
    if ! there; then
        if ! open_archive "$ARCHIVE" "$STATE/archive"; then
            rm -rf "$STATE/archive"
            say "refused: $refused; delete this pod to build the image again"
            # What is there stays, and stays pinned.
            pinned || [ -z "$(digest_of "$IMAGE")" ] || pin
            return 1
        fi
        rm -rf "$STATE/archive"
        printf '%s\n' "$manifest" >"$STATE/wanted"
        if ! there; then
            say "importing $IMAGE, sha256:$manifest"
            import || { pin || true; return 1; }
        fi
    fi
    if ! pinned; then
        say "pinning $IMAGE"
        pin
    fi
    # Not needed any more; also what an import left there that was cut off.
    if [ -n "$(digest_of "$PREVIOUS")" ]; then
        images rm "$PREVIOUS" >/dev/null
    fi
}

if [ "${1-}" = check ]; then
    there && pinned
    exit
fi

# Not ready until this archive has been looked at.
rm -f "$STATE/wanted"
trap 'exit 0' INT TERM
while :; do
    ensure || say "looking again in ${CHECK_INTERVAL}s"
    sleep "$CHECK_INTERVAL" &
    wait $! || true
done
