#!/bin/sh
# Usage: import.sh [check]
# Import ARCHIVE into this node's containerd, pin it, and look again every CHECK_INTERVAL seconds for as long as we run;
# with "check", only say whether the archive's image is there: whole, pinned and under its exact name.
#
# ARCHIVE               what build.sh saved
# CONTAINERD_ADDRESS    containerd's socket; unset = k3s' where there is one, else containerd's own place
# CHECK_INTERVAL        seconds, greater than 0
# STATE                 a folder for the archive's parts while it is looked at, and for what was imported last
set -eu
# shellcheck source=build/archive.sh
. "$(dirname "$0")/archive.sh"

: "${CHECK_INTERVAL:=30}"
: "${STATE:=/tmp}"
PIN=io.cri-containerd.pinned=pinned
# What it is called until it has proved to be whole.
NEXT=localhost/tailscale-lifecycle:next
# After a failed import: looks until the next try, and how many there were before the last one.
looks_left=0
looks_before=1

if [ -z "${CONTAINERD_ADDRESS-}" ]; then
    # k3s first: where it runs, another containerd beside it is that of somebody's Docker.
    CONTAINERD_ADDRESS=/run/k3s/containerd/containerd.sock
    if ! [ -S "$CONTAINERD_ADDRESS" ]; then
        CONTAINERD_ADDRESS=/run/containerd/containerd.sock
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

# Import the archive, and give the name to its image only when that has proved to be whole under another: a runtime
# gives a name away before it unpacks what it names.
import() {
    # containerd 2's other way of importing drops the labels of a name that is there already, the pin among them.
    local_flag=''
    if images import --help | grep -q -- '--local'; then
        local_flag=--local
    fi
    sed -i "s|\"$IMAGE\"|\"$NEXT\"|" "$STATE/archive/index.json" &&
        tar -cf - -C "$STATE/archive" blobs index.json oci-layout | images import $local_flag - >&2 &&
        whole "$NEXT" && images import $local_flag "$ARCHIVE" >&2 && there
}

# What is there is what pods run, whatever the archive is: it stays, and stays pinned.
guard() {
    if ! pinned && whole "$IMAGE"; then
        say "pinning $IMAGE"
        pin
    fi
    # Not needed any more; also what an import left there that was cut off.
    if [ -n "$(digest_of "$NEXT")" ]; then
        images rm "$NEXT" >/dev/null
    fi
}

# Import the archive unless its image is there.
bring() {
    if there; then
        return
    fi
    if [ "$looks_left" -gt 0 ]; then
        looks_left=$((looks_left - 1))
        return 1
    fi
    if ! open_archive "$ARCHIVE" "$STATE/archive"; then
        say "refused: $refused; delete this pod to build the image again"
        return 1
    fi
    printf '%s\n' "$manifest" >"$STATE/wanted"
    if there; then
        return
    fi
    say "importing $IMAGE, sha256:$manifest"
    if ! import; then
        # For good or for now, as on a full disk; nobody can tell, so each time it takes longer until we try again.
        [ "$looks_before" -ge 32 ] || looks_before=$((looks_before * 2))
        looks_left=$looks_before
        say "the import failed, and what was there stays; trying again after $looks_left looks"
        return 1
    fi
    looks_before=1
}

# One look, and what it takes to make it right.
ensure() {
    # No answer is not "no such image".
    if ! images ls -q >/dev/null; then
        say "containerd does not answer at $CONTAINERD_ADDRESS"
        return 1
    fi
    status=0
    bring || status=1
    rm -rf "$STATE/archive"
    guard && return "$status"
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
