#!/bin/sh
# Usage: build.sh
# Build the image from SOURCES and save it as ARCHIVE. If ARCHIVE was built from the same sources, this does nothing.
#
# SOURCES       the file that scripts/image --sources created
# ARCHIVE       the image; it is replaced atomically, and kept if the build fails
# BASE_IMAGE    replaces the base image of the Containerfile; the image is built again when it changes
# BUILD_FLAGS   more options for the build, separated by spaces, for example for a mirror or a private CA
# BUILDER       buildah, podman or docker (25 or newer)
# KEEP_LAYERS   "no": delete the layers of the build after the image is saved
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
    # A builder that is still running would create the files again.
    if [ -n "$running" ]; then
        kill "$running" 2>/dev/null || true
        wait "$running" || true
    fi
    rm -rf "$work" "$ARCHIVE.new"
}
trap clean_up EXIT
trap 'exit 1' HUP INT TERM

mkdir "$work/context"
tar -xzf "$SOURCES" -C "$work/context" || fail "$SOURCES is not readable. Create it with scripts/image --sources"
# If the file is missing when a container mounts it, the container runtime creates a folder in its place.
if [ -d "$ARCHIVE" ]; then
    rmdir "$ARCHIVE" || fail "$ARCHIVE is a folder and is not empty. Move it, because the image is saved there"
fi
# The hash covers names and contents only. The same files at another commit, or of another clone, are not built again.
names=$(tar -tzf "$SOURCES" | grep -Ev '^(REVISION|ORIGIN)$|/$' | LC_ALL=C sort)
# shellcheck disable=SC2086 # a list of names without spaces
hash=$(cd "$work/context" && { sha256sum $names && printf %s "${BASE_IMAGE-}"; } | sha256sum | cut -d ' ' -f 1)

if open_archive "$ARCHIVE" "$work/archive" &&
    grep -q "\"tailscale-lifecycle.sources\":\"$hash\"" "$work/archive/blobs/sha256/$config"; then
    log "$ARCHIVE is up to date"
    exit 0
fi
rm -rf "$work/archive"

log "building $IMAGE from sources $hash"
mkfifo "$work/output"
tee "$work/log" <"$work/output" >&2 &
tee=$!
exec 3>"$work/output"

# Run the builder in the background: the shell handles signals during "wait", but not during a foreground command.
run_builder() {
    "$BUILDER" "$@" >&3 2>&1 3>&- &
    running=$!
    if ! wait "$running"; then
        running=''
        exec 3>&-
        wait "$tee"
        fail "The build failed. The previous image, if there is one, was not changed.
$(tail -n 12 "$work/log")"
    fi
    running=''
}

# All timestamps are 0, so that the same sources and packages give the same image on every machine.
# The build steps get the capabilities that installing packages needs. Raising the limits or granting more capabilities
# would need a more privileged Buildah container.
case $BUILDER in
docker)
    set --
    # A provenance attestation would be a second image in the archive.
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
# The labels are options instead of build arguments: Buildah reuses a cached label after its argument has changed.
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$work/context/lifecycle/__init__.py")
# shellcheck disable=SC2086 # BUILD_FLAGS is a list
run_builder build "$@" ${BUILD_FLAGS-} \
    --label "org.opencontainers.image.version=$version" \
    --label "org.opencontainers.image.revision=$(cat "$work/context/REVISION")" \
    --label "org.opencontainers.image.source=$(cat "$work/context/ORIGIN")" \
    --label "tailscale-lifecycle.sources=$hash" \
    --tag "$IMAGE" --file "$work/context/Containerfile" "$work/context"
rm -f "$ARCHIVE.new"
# The archive needs the full name. Without it, containerd reports success, but imports nothing or invents a name.
case $BUILDER in
docker) run_builder save --output "$ARCHIVE.new" "$IMAGE" ;;
*) run_builder push --quiet "$IMAGE" "oci-archive:$ARCHIVE.new:$IMAGE" ;;
esac
exec 3>&-
wait "$tee"

open_archive "$ARCHIVE.new" "$work/archive" || fail "The image was built, but its archive is invalid: $invalid"
# After a power failure, the archive must be either the old or the new one, complete.
sync "$ARCHIVE.new"
mv -f "$ARCHIVE.new" "$ARCHIVE"
log "saved $ARCHIVE"

if [ "$KEEP_LAYERS" = no ]; then
    "$BUILDER" rmi --all --force >/dev/null 2>&1 || log "the layers of the build could not be deleted"
fi
