#!/bin/sh
# Usage: import.sh [check]
# Import the image in ARCHIVE into the containerd of this cluster node, and pin the image, so that the kubelet does not
# delete it. Every CHECK_INTERVAL seconds, check that the image and its pin still exist, and restore what is
# missing.
#
# With "check": exit with status 0 if the complete image of ARCHIVE is in containerd, has the name $IMAGE (see
# archive.sh) and is pinned. Otherwise print the reason and exit with status 1.
#
# These variables are settings:
#
# ARCHIVE               the file that build.sh saved
# CONTAINERD_ADDRESS    containerd's socket; if empty, the socket of k3s if it exists, otherwise containerd's default
# CHECK_INTERVAL        the time between two checks in seconds, greater than 0
# STATE                 a folder for the unpacked archive, the digest of its image and the last report
set -eu
# shellcheck source=build/archive.sh
. "$(dirname "$0")/archive.sh"
command -v ctr >/dev/null || fail "the program ctr is missing, which is part of containerd"

: "${CHECK_INTERVAL:=30}"
: "${STATE:=/tmp}"
PIN=io.cri-containerd.pinned=pinned
# The temporary name of the image, until containerd has unpacked it.
NEXT=localhost/tailscale-lifecycle:next
# After a failed import, $backoff is doubled. $skip is the number of checks that are left before the next attempt.
backoff=1
skip=0

if [ -z "${CONTAINERD_ADDRESS-}" ]; then
    # The socket of k3s comes first: with k3s, the default socket can belong to a containerd that Docker started.
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

# Print the digest of the image with a name, without "sha256:", or nothing if there is no such image: digest_of NAME
digest_of() {
    images ls "name==$1" | awk -v name="$1" '$1 == name { sub("sha256:", "", $3); print $3 }'
}

# Succeed if all parts of an image exist ("complete") and are unpacked (last column): is_complete NAME
is_complete() {
    images check "name==$1" |
        awk -v name="$1" '$1 == name && / complete / && $NF == "true" { found = 1 } END { exit !found }'
}

# Succeed if $IMAGE is pinned.
is_pinned() {
    images ls "name==$IMAGE" | grep -qF "$PIN"
}

# Succeed if $IMAGE is the complete image of the archive. import_if_missing writes the digest of the archive's image to
# $STATE/digest.
is_imported() {
    [ -f "$STATE/digest" ] && [ "$(digest_of "$IMAGE")" = "$(cat "$STATE/digest")" ] && is_complete "$IMAGE"
}

# Import the archive under the name $NEXT first, and then as $IMAGE. containerd names an image before it unpacks the
# image, and an image that cannot be unpacked must not replace the image that pods use.
import_archive() {
    # Without --local, containerd 2 removes the labels of an existing image with this name. The pin is such a label.
    local_flag=''
    if images import --help | grep -q -- '--local'; then
        local_flag=--local
    fi
    sed -i "s|\"$IMAGE\"|\"$NEXT\"|" "$STATE/archive/index.json" &&
        tar -cf - -C "$STATE/archive" blobs index.json oci-layout | images import $local_flag - >&2 &&
        is_complete "$NEXT" && images import $local_flag "$ARCHIVE" >&2 && is_imported
}

# Import the archive if containerd does not have its image, or not all parts of this image.
import_if_missing() {
    if is_imported; then
        return
    fi
    if [ "$skip" -gt 0 ]; then
        skip=$((skip - 1))
        return 1
    fi
    # open_archive sets $manifest_digest, or $invalid.
    if ! open_archive "$ARCHIVE" "$STATE/archive"; then
        report "not importing: $invalid. Delete this pod to build the image again"
        return 1
    fi
    printf '%s\n' "$manifest_digest" >"$STATE/digest"
    if is_imported; then
        return
    fi
    report "importing $IMAGE, sha256:$manifest_digest"
    if ! import_archive; then
        # Double the backoff. The cause can be permanent, and each attempt reads and writes the whole image.
        [ "$backoff" -ge 32 ] || backoff=$((backoff * 2))
        skip=$backoff
        report "the import failed and the existing image was kept; skipping $skip checks before the next attempt"
        return 1
    fi
    backoff=1
}

# Pin $IMAGE, even if it is older than the image of the archive, because pods use it.
pin() {
    if ! is_pinned && is_complete "$IMAGE"; then
        log "pinning $IMAGE"
        images label "$IMAGE" "$PIN" >/dev/null && is_pinned
    fi
}

# Import the image if it is missing, pin it, and remove the temporary name.
reconcile() {
    # Stop if containerd does not respond. Otherwise the image would seem to be missing.
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
    # Kubernetes shows this line in the event of the failed probe.
    printf '%s is not ready: %s\n' "$IMAGE" "$(cat "$STATE/report" 2>/dev/null || echo "import.sh has not started")"
    exit 1
fi

# The digest of an earlier archive must not make the pod ready before this archive has been read.
rm -f "$STATE/digest"
report "reading $ARCHIVE"
trap 'exit 0' INT TERM
while :; do
    if reconcile; then
        # Only for "check". The log does not repeat this message.
        printf 'the next check is in %ss\n' "$CHECK_INTERVAL" >"$STATE/report"
    else
        log "retrying in ${CHECK_INTERVAL}s"
    fi
    sleep "$CHECK_INTERVAL" &
    wait $! || true
done
