#!/bin/sh
# Usage: import.sh [check]
# Import ARCHIVE into the containerd of this cluster node and pin the image. Check both every CHECK_INTERVAL seconds, and
# repair them if needed. With "check", exit with status 0 if the image of the archive is complete, is pinned and has its
# exact name. Otherwise print the reason.
#
# ARCHIVE               the file that build.sh saved
# CONTAINERD_ADDRESS    containerd's socket; if empty, that of k3s if it exists, else containerd's default
# CHECK_INTERVAL        seconds, greater than 0
# STATE                 a folder for the unpacked archive and the digest of the image
set -eu
# shellcheck source=build/archive.sh
. "$(dirname "$0")/archive.sh"

: "${CHECK_INTERVAL:=30}"
: "${STATE:=/tmp}"
PIN=io.cri-containerd.pinned=pinned
# The name of an image until containerd has unpacked it.
NEXT=localhost/tailscale-lifecycle:next
# Backoff after a failed import: checks to skip before the next attempt, and the length of the last backoff.
skip=0
backoff=1

if [ -z "${CONTAINERD_ADDRESS-}" ]; then
    # k3s comes first: on its nodes, the default socket can belong to a containerd that Docker started.
    CONTAINERD_ADDRESS=/run/k3s/containerd/containerd.sock
    if ! [ -S "$CONTAINERD_ADDRESS" ]; then
        CONTAINERD_ADDRESS=/run/containerd/containerd.sock
    fi
fi
export CONTAINERD_ADDRESS

# Log a message, and save it for "check", which prints the last one: report MESSAGE
report() {
    log "$*"
    printf '%s\n' "$*" >"$STATE/report"
}

# Kubernetes uses only the images of the namespace k8s.io.
images() {
    ctr --namespace k8s.io --connect-timeout 2s --timeout 2m images "$@"
}

# Print the digest of a name, without "sha256:", or nothing if the name does not exist: digest_of NAME
digest_of() {
    images ls "name==$1" | awk -v name="$1" '$1 == name { sub("sha256:", "", $3); print $3 }'
}

# Succeed if all parts of an image exist and are unpacked: is_complete NAME
is_complete() {
    images check "name==$1" |
        awk -v name="$1" '$1 == name && / complete / && $NF == "true" { found = 1 } END { exit !found }'
}

is_pinned() {
    images ls "name==$IMAGE" | grep -qF "$PIN"
}

# Succeed if the image has the digest of the archive, which is known after it was read, and is complete.
is_imported() {
    [ -f "$STATE/digest" ] && [ "$(digest_of "$IMAGE")" = "$(cat "$STATE/digest")" ] && is_complete "$IMAGE"
}

# Import the archive as $NEXT first, because containerd moves a name before it unpacks the image.
# An image that cannot be unpacked must not replace the one that pods use.
import_archive() {
    # Without --local, containerd 2 drops the labels of an existing name, and with them the pin.
    local_flag=''
    if images import --help | grep -q -- '--local'; then
        local_flag=--local
    fi
    sed -i "s|\"$IMAGE\"|\"$NEXT\"|" "$STATE/archive/index.json" &&
        tar -cf - -C "$STATE/archive" blobs index.json oci-layout | images import $local_flag - >&2 &&
        is_complete "$NEXT" && images import $local_flag "$ARCHIVE" >&2 && is_imported
}

# Import the archive if its image is missing or incomplete.
import_if_missing() {
    if is_imported; then
        return
    fi
    if [ "$skip" -gt 0 ]; then
        skip=$((skip - 1))
        return 1
    fi
    if ! open_archive "$ARCHIVE" "$STATE/archive"; then
        report "not importing: $invalid. Delete this pod to build the image again"
        return 1
    fi
    printf '%s\n' "$manifest" >"$STATE/digest"
    if is_imported; then
        return
    fi
    report "importing $IMAGE, sha256:$manifest"
    if ! import_archive; then
        # The cause can be permanent, or temporary such as a full disk. Each attempt reads and writes the whole image.
        [ "$backoff" -ge 32 ] || backoff=$((backoff * 2))
        skip=$backoff
        report "the import failed and the existing image was kept; skipping $skip checks before the next attempt"
        return 1
    fi
    backoff=1
}

# Pin the image, even if it is not that of the archive, because pods use it.
pin() {
    if ! is_pinned && is_complete "$IMAGE"; then
        log "pinning $IMAGE"
        images label "$IMAGE" "$PIN" >/dev/null && is_pinned
    fi
}

# Compare containerd with the archive, and repair what differs.
reconcile() {
    # If containerd does not respond, nothing is known about its images.
    if ! images ls -q >/dev/null; then
        report "containerd does not respond at $CONTAINERD_ADDRESS"
        return 1
    fi
    status=0
    import_if_missing || status=1
    rm -rf "$STATE/archive"
    pin || status=1
    # Remove the temporary name after an import, or after an import that was interrupted.
    if [ -n "$(digest_of "$NEXT")" ]; then
        images rm "$NEXT" >/dev/null || status=1
    fi
    return "$status"
}

if [ "${1-}" = check ]; then
    if is_imported && is_pinned; then
        exit
    fi
    # Kubernetes shows this as the event of the failed probe.
    printf '%s is not ready: %s\n' "$IMAGE" "$(cat "$STATE/report" 2>/dev/null || echo "import.sh has not started")"
    exit 1
fi

# The pod is not ready until this archive has been read.
rm -f "$STATE/digest"
report "reading $ARCHIVE"
trap 'exit 0' INT TERM
while :; do
    if reconcile; then
        printf 'the next check is in %ss\n' "$CHECK_INTERVAL" >"$STATE/report"
    else
        log "retrying in ${CHECK_INTERVAL}s"
    fi
    sleep "$CHECK_INTERVAL" &
    wait $! || true
done
