# shellcheck shell=sh
# What build.sh and import.sh both know: the image's one name, what a sound archive is, how to say what went wrong.

# "localhost/" keeps every runtime from looking for it at a registry; kubelet and containerd compare it exactly.
IMAGE=localhost/tailscale-lifecycle:latest
: "${ARCHIVE:=/var/lib/tailscale-lifecycle-image.tar}"
: "${TERMINATION_LOG:=/dev/termination-log}"

say() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
}

# Say it where "kubectl describe pod" shows it, too; Kubernetes keeps 4096 bytes.
fail() {
    say "$*"
    if [ -w "$TERMINATION_LOG" ]; then
        printf '%s\n' "$*" | tail -c 4000 >"$TERMINATION_LOG"
    fi
    exit 1
}

# The digests that a piece of JSON refers to, in hexadecimal, one a line and in its order: digests FILE
digests() {
    grep -o '"digest":"sha256:[0-9a-f]*"' "$1" | sed 's/.*:\([0-9a-f]*\)"/\1/'
}

# Unpack an archive and look at all of it: open_archive FILE FOLDER
# True: it holds one image under exactly our name, and each part of it is what its digest says; then $manifest and
# $config are the digests. False: $refused says why. A digest is checked here because a runtime notices some damage
# only when it has already given the name away.
# shellcheck disable=SC2034 # the scripts that read this file use $config and $refused
open_archive() {
    manifest='' config='' refused=''
    rm -rf "$2"
    mkdir -p "$2"
    if ! tar -xf "$1" -C "$2" 2>/dev/null || ! [ -f "$2/index.json" ]; then
        refused="$1 is cut short or no image archive"
        return 1
    fi
    # containerd, too, goes by its own annotation where there is one: docker puts only the tag into the other.
    names=$(grep -o '"io.containerd.image.name":"[^"]*"' "$2/index.json" ||
        grep -o '"org.opencontainers.image.ref.name":"[^"]*"' "$2/index.json" || true)
    names=$(printf %s "$names" | cut -d '"' -f 4)
    if [ "$names" != "$IMAGE" ]; then
        refused="$1 holds \"$names\", not $IMAGE"
        return 1
    fi
    manifest=$(digests "$2/index.json")
    if ! [ -f "$2/blobs/sha256/$manifest" ]; then
        refused="$1 lacks its manifest"
        return 1
    fi
    # A manifest names its configuration first, then the layers.
    config=$(digests "$2/blobs/sha256/$manifest" | head -n 1)
    { printf '%s\n' "$manifest" && digests "$2/blobs/sha256/$manifest"; } | sed 's/.*/&  &/' >"$2/sums"
    if ! (cd "$2/blobs/sha256" && sha256sum -c "$2/sums" >/dev/null 2>&1); then
        refused="$1 is damaged: a part of it is missing or not what its digest says"
        return 1
    fi
}
