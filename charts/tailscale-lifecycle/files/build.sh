#!/bin/sh
# Usage: build.sh
# Build the image from SOURCES and save it as ARCHIVE. If ARCHIVE was built from the same sources, do nothing.
#
# These variables are settings:
#
# SOURCES       the file that scripts/image --sources created
# ARCHIVE       the file for the image; it is replaced atomically, and does not change if the build fails
# BASE_IMAGE    the base image to use instead of that in the Containerfile; if it changes, the image is built again
# BUILD_FLAGS   more options for the build, separated by spaces, for example for a mirror or a private CA
# BUILDER       the program that builds the image: buildah, podman or docker (25 or newer)
# KEEP_LAYERS   "no" to delete all images and layers of buildah or podman after the image is saved
set -eu
here=$(dirname "$0")
# Sets IMAGE and the default of ARCHIVE. Its function open_archive sets config_digest or invalid.
# shellcheck source=build/archive.sh
. "$here/archive.sh"

: "${SOURCES:=$here/sources.tar.gz}"
: "${BUILDER:=buildah}"
: "${KEEP_LAYERS:=yes}"

# tar and the builders take what precedes a colon as a host or as the whole path.
case $ARCHIVE in
*:*) fail "ARCHIVE must not contain a colon: $ARCHIVE" ;;
esac

work=$(mktemp -d)
builder_pid=''
clean_up() {
    # Stop the builder first. Otherwise it would create the files again.
    if [ -n "$builder_pid" ]; then
        kill "$builder_pid" 2>/dev/null || true
        wait "$builder_pid" || true
    fi
    rm -rf "$work" "$ARCHIVE.new"
}
trap clean_up EXIT
trap 'exit 1' HUP INT TERM

mkdir "$work/context"
tar -xzf "$SOURCES" -C "$work/context" || fail "$SOURCES is not readable. Create it with scripts/image --sources"
# If a container mounted ARCHIVE before the file existed, the container runtime created a folder in its place.
if [ -d "$ARCHIVE" ]; then
    rmdir "$ARCHIVE" || fail "$ARCHIVE is a folder and is not empty. Move it, because the image is saved there"
fi
# The hash does not cover the commit (REVISION) and the repository's URL (ORIGIN), which do not affect the program.
names=$(tar -tzf "$SOURCES" | grep -Ev '^(REVISION|ORIGIN)$|/$' | LC_ALL=C sort)
# shellcheck disable=SC2086 # a list of names without spaces
hash=$(cd "$work/context" && { sha256sum $names && printf %s "${BASE_IMAGE-}"; } | sha256sum | cut -d ' ' -f 1)

if open_archive "$ARCHIVE" "$work/archive" &&
    grep -q "\"tailscale-lifecycle.sources\":\"$hash\"" "$work/archive/blobs/sha256/$config_digest"; then
    log "$ARCHIVE is up to date"
    exit 0
fi
rm -rf "$work/archive"

log "building $IMAGE from sources $hash"
# Print the output of the builder, and keep it for the error message. Descriptor 3 keeps the FIFO open between two runs.
mkfifo "$work/output"
tee "$work/log" <"$work/output" >&2 &
tee_pid=$!
exec 3>"$work/output"

# Run the builder in the background: the shell handles signals during "wait", but not during a foreground command.
run_builder() {
    "$BUILDER" "$@" >&3 2>&1 3>&- &
    builder_pid=$!
    if ! wait "$builder_pid"; then
        builder_pid=''
        exec 3>&-
        wait "$tee_pid"
        fail "The build failed. The previous image, if there is one, was not changed.
$(tail -n 12 "$work/log")"
    fi
    builder_pid=''
}

case $BUILDER in
docker)
    set --
    # Without this setting, docker adds a provenance attestation, which would be a second image in the archive.
    export BUILDX_NO_DEFAULT_ATTESTATIONS=1
    ;;
*)
    # All timestamps are 0, so that the same sources and packages give the same image on every machine. The build steps
    # get only the capabilities that they need to install packages. With more capabilities or higher ulimits, the
    # Buildah container in the cluster would need more privileges.
    set -- --layers --timestamp 0 --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 \
        --cap-drop all --cap-add CHOWN,DAC_OVERRIDE,FOWNER,SETGID,SETUID,SYS_CHROOT
    ;;
esac
if [ -n "${BASE_IMAGE-}" ]; then
    set -- "$@" --build-arg "BASE_IMAGE=$BASE_IMAGE"
fi
# The labels are set by options. With build arguments, Buildah would use a cached label although the argument has
# changed.
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$work/context/lifecycle/__init__.py")
# shellcheck disable=SC2086 # BUILD_FLAGS is a list
run_builder build "$@" ${BUILD_FLAGS-} \
    --label "org.opencontainers.image.version=$version" \
    --label "org.opencontainers.image.revision=$(cat "$work/context/REVISION")" \
    --label "org.opencontainers.image.source=$(cat "$work/context/ORIGIN")" \
    --label "tailscale-lifecycle.sources=$hash" \
    --tag "$IMAGE" --file "$work/context/Containerfile" "$work/context"
rm -f "$ARCHIVE.new"
# The archive must contain the full name of the image. Otherwise containerd imports no image, or an image with another
# name, and reports success.
case $BUILDER in
docker) run_builder save --output "$ARCHIVE.new" "$IMAGE" ;;
*) run_builder push --quiet "$IMAGE" "oci-archive:$ARCHIVE.new:$IMAGE" ;;
esac
exec 3>&-
wait "$tee_pid"

open_archive "$ARCHIVE.new" "$work/archive" || fail "The image was built, but its archive is invalid: $invalid"
# Write the new archive to disk before it replaces the old one. After a power failure, ARCHIVE is then one of the two,
# and not a part of the new one.
sync "$ARCHIVE.new"
mv -f "$ARCHIVE.new" "$ARCHIVE"
log "saved $ARCHIVE"

if [ "$KEEP_LAYERS" = no ]; then
    "$BUILDER" rmi --all --force >/dev/null 2>&1 || log "the layers of the build could not be deleted"
fi
