# shellcheck shell=sh
# Shared by build.sh and import.sh: the image's name, messages, and verification of an archive.

# No container runtime pulls names that start with "localhost/". The kubelet and containerd need exactly this name.
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

# Print the digests in a JSON file, in hexadecimal, one on a line, in their order: digests FILE
digests() {
    grep -o '"digest":"sha256:[0-9a-f]*"' "$1" | sed 's/.*:\([0-9a-f]*\)"/\1/'
}

# Unpack and verify an archive: open_archive FILE FOLDER
# If FILE contains exactly one image, named $IMAGE, and all parts match their digests, $manifest and $config are set to
# the digests. Otherwise the status is 1 and $invalid is the reason. The digests are verified here because a container
# runtime can move the name to a damaged image before it detects the damage.
# shellcheck disable=SC2034 # build.sh and import.sh use $config and $invalid
open_archive() {
    manifest='' config='' invalid=''
    rm -rf "$2"
    mkdir -p "$2"
    if ! tar -xf "$1" -C "$2" 2>/dev/null || ! [ -f "$2/index.json" ]; then
        invalid="$1 is truncated or is not an image archive"
        return 1
    fi
    # containerd prefers its own annotation. docker writes the full name there and only the tag into the OCI annotation.
    names=$(grep -o '"io.containerd.image.name":"[^"]*"' "$2/index.json" ||
        grep -o '"org.opencontainers.image.ref.name":"[^"]*"' "$2/index.json" || true)
    names=$(printf %s "$names" | cut -d '"' -f 4)
    if [ "$names" != "$IMAGE" ]; then
        invalid="$1 contains \"$names\", expected $IMAGE"
        return 1
    fi
    manifest=$(digests "$2/index.json")
    if ! [ -f "$2/blobs/sha256/$manifest" ]; then
        invalid="$1 has no manifest"
        return 1
    fi
    # In a manifest, the digest of the configuration comes before those of the layers.
    config=$(digests "$2/blobs/sha256/$manifest" | head -n 1)
    { printf '%s\n' "$manifest" && digests "$2/blobs/sha256/$manifest"; } | sed 's/.*/&  &/' >"$2/sums"
    if ! (cd "$2/blobs/sha256" && sha256sum -c "$2/sums" >/dev/null 2>&1); then
        invalid="$1 is damaged: a part is missing or does not match its digest"
        return 1
    fi
}
