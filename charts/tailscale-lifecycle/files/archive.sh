# shellcheck shell=sh
# Functions and variables that build.sh and import.sh share: the image's name, messages, and the verification of an
# archive.

# The name of the image in the manifests of pods. It starts with "localhost/", so that a container runtime does not pull
# the image from a registry.
IMAGE=localhost/tailscale-lifecycle:latest
: "${ARCHIVE:=/var/lib/tailscale-lifecycle-image.tar}"
: "${TERMINATION_LOG:=/dev/termination-log}"

log() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
}

# Log an error, write it to the termination log, which "kubectl describe pod" shows, and exit.
fail() {
    log "$*"
    if [ -w "$TERMINATION_LOG" ]; then
        # Kubernetes truncates the message at 4096 bytes.
        printf '%s\n' "$*" | tail -c 4000 >"$TERMINATION_LOG"
    fi
    exit 1
}

# Print the digests that a JSON file contains, one on each line, in the order of the file: digests FILE
# docker writes a space after the colon.
digests() {
    grep -o '"digest": *"sha256:[0-9a-f]*"' "$1" | sed 's/.*:\([0-9a-f]*\)"/\1/'
}

# Unpack and verify an archive: open_archive FILE FOLDER
# FILE must contain exactly one image, which is named $IMAGE, and all its parts must match their digests. In this case,
# the function sets $manifest_digest and $config_digest. Otherwise, it sets $invalid to the reason and returns 1.
# The function verifies the digests, because a container runtime can give the name to a damaged image before it
# detects the damage.
# shellcheck disable=SC2034 # build.sh and import.sh use $config_digest and $invalid
open_archive() {
    manifest_digest='' config_digest='' invalid=''
    rm -rf "$2"
    mkdir -p "$2"
    if ! tar -xf "$1" -C "$2" 2>/dev/null || ! [ -f "$2/index.json" ]; then
        invalid="$1 is truncated or is not an image archive"
        return 1
    fi
    # The name of the image is in an annotation of containerd, or in an annotation of OCI. If both exist, use the one of
    # containerd, because docker writes only the tag into the other one.
    names=$(grep -o '"io.containerd.image.name":"[^"]*"' "$2/index.json" ||
        grep -o '"org.opencontainers.image.ref.name":"[^"]*"' "$2/index.json" || true)
    names=$(printf %s "$names" | cut -d '"' -f 4)
    if [ "$names" != "$IMAGE" ]; then
        invalid="$1 contains \"$names\", expected $IMAGE"
        return 1
    fi
    manifest_digest=$(digests "$2/index.json")
    if ! [ -f "$2/blobs/sha256/$manifest_digest" ]; then
        invalid="$1 has no manifest"
        return 1
    fi
    # In a manifest, the digest of the configuration comes before those of the layers.
    config_digest=$(digests "$2/blobs/sha256/$manifest_digest" | head -n 1)
    { printf '%s\n' "$manifest_digest" && digests "$2/blobs/sha256/$manifest_digest"; } | sed 's/.*/&  &/' >"$2/sums"
    if ! (cd "$2/blobs/sha256" && sha256sum -c "$2/sums" >/dev/null 2>&1); then
        invalid="$1 is damaged: a part is missing or does not match its digest"
        return 1
    fi
}
