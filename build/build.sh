#!/bin/sh
# Usage: build.sh
# Build the image from SOURCES and save it as ARCHIVE, unless the archive there was made from them already.
#
# SOURCES       what scripts/image --sources made
# ARCHIVE       where the image goes, replaced in one step; an image that fails to build leaves it as it is
# BASE_IMAGE    instead of the Containerfile's base; a change of it is a change of the sources
# BUILD_FLAGS   more options for the build, separated by blanks: a mirror's settings, a private CA
# BUILDER       buildah, or podman, or docker from 25 on
# KEEP_LAYERS   "no" throws the build's layers away once the image is saved
set -eu
here=$(dirname "$0")
# shellcheck source=build/archive.sh
. "$here/archive.sh"

: "${SOURCES:=$here/sources.tar.gz}"
: "${BUILDER:=buildah}"
: "${KEEP_LAYERS:=yes}"

work=$(mktemp -d)
running=''
clean_up() {
    # A builder that goes on would write what is removed here.
    if [ -n "$running" ]; then
        kill "$running" 2>/dev/null || true
        wait "$running" || true
    fi
    rm -rf "$work" "$ARCHIVE.new"
}
trap clean_up EXIT
trap 'exit 1' HUP INT TERM

mkdir "$work/context"
tar -xzf "$SOURCES" -C "$work/context" || fail "$SOURCES cannot be read: make it with scripts/image --sources"
# What a container runtime makes of a file that is to be mounted and that somebody has removed.
if [ -d "$ARCHIVE" ]; then
    rmdir "$ARCHIVE" || fail "$ARCHIVE is a folder with something in it, and the image goes there: move it away"
fi
# Of names and contents alone: the same files are the same image, at whatever commit and wherever cloned from.
names=$(tar -tzf "$SOURCES" | grep -Ev '^(REVISION|ORIGIN)$|/$' | LC_ALL=C sort)
# shellcheck disable=SC2086 # a list, and no name in it has a blank
hash=$(cd "$work/context" && { sha256sum $names && printf %s "${BASE_IMAGE-}"; } | sha256sum | cut -d ' ' -f 1)

if open_archive "$ARCHIVE" "$work/archive" &&
    grep -q "\"tailscale-lifecycle.sources\":\"$hash\"" "$work/archive/blobs/sha256/$config"; then
    say "$ARCHIVE is made from these sources already"
    exit 0
fi
rm -rf "$work/archive"

say "building $IMAGE from sources $hash"
mkfifo "$work/output"
tee "$work/log" <"$work/output" >&2 &
log=$!
exec 3>"$work/output"

# Run the builder in the background: a signal is answered at once while we wait, and only after a command that we run.
builder() {
    "$BUILDER" "$@" >&3 2>&1 3>&- &
    running=$!
    if ! wait "$running"; then
        running=''
        exec 3>&-
        wait "$log"
        fail "The image could not be built; the previous one, if there is one, stays as it is.
$(tail -n 12 "$work/log")"
    fi
    running=''
}

# No time in the image: the same sources and packages are the same image, whenever and wherever they are built.
# A step may do what installing packages takes, and Buildah must not raise limits or hand on more than that: for
# either it would itself need privileges that the build does not.
case $BUILDER in
docker)
    set --
    # A statement about the build would be a second image in the archive.
    export BUILDX_NO_DEFAULT_ATTESTATIONS=1
    ;;
*)
    set -- --layers --timestamp 0 --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 \
        --cap-drop all --cap-add CHOWN,DAC_OVERRIDE,FOWNER,SETGID,SETUID,SYS_CHROOT
    ;;
esac
if [ -n "${BASE_IMAGE-}" ]; then
    set -- "$@" --build-arg "BASE_IMAGE=$BASE_IMAGE"
fi
# Labels as options and not as build arguments: Buildah takes a label from its layers that an argument has changed.
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$work/context/lifecycle/__init__.py")
# shellcheck disable=SC2086 # BUILD_FLAGS is a list
builder build "$@" ${BUILD_FLAGS-} \
    --label "org.opencontainers.image.version=$version" \
    --label "org.opencontainers.image.revision=$(cat "$work/context/REVISION")" \
    --label "org.opencontainers.image.source=$(cat "$work/context/ORIGIN")" \
    --label "tailscale-lifecycle.sources=$hash" \
    --tag "$IMAGE" --file "$work/context/Containerfile" "$work/context"
rm -f "$ARCHIVE.new"
# The full name goes into the archive: without it, containerd imports nothing or makes a name up, and says nothing.
case $BUILDER in
docker) builder save --output "$ARCHIVE.new" "$IMAGE" ;;
*) builder push --quiet "$IMAGE" "oci-archive:$ARCHIVE.new:$IMAGE" ;;
esac
exec 3>&-
wait "$log"

open_archive "$ARCHIVE.new" "$work/archive" || fail "The image was built, but $refused"
# Onto the disk before it takes the place of the one that is known to be good.
sync "$ARCHIVE.new"
mv -f "$ARCHIVE.new" "$ARCHIVE"
say "saved $ARCHIVE"

if [ "$KEEP_LAYERS" = no ]; then
    "$BUILDER" rmi --all --force >/dev/null 2>&1 || say "the build's layers could not be removed"
fi
