"""Build stand-ins for the images in the manifests from local programs, because tests have no registry.

Each stand-in has the programs of the real image in the same places: the real tailscale and Headscale, but nginx and
busybox of Debian. `write_archive` writes several `Image`s into an archive for `ctr images import`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.image.tools import ACCEPT_OLD_MIRRORS
from tests.pod.network import run
from tests.pod.rendering import containers, manifests_of, pod_spec
from tests.real.container import PROGRAMS
from tests.real.programs import CLIENTS_VARIABLE, SERVERS_VARIABLE

_CONTAINERS: Final = containers(pod_spec(manifests_of("ollama")))
TAILSCALE: Final[str] = _CONTAINERS["tailscale"]["image"]
NGINX: Final[str] = _CONTAINERS["nginx-tls"]["image"]
BUSYBOX: Final = "docker.io/library/busybox:1.37"
HEADSCALE: Final = "docker.io/headscale/headscale:0.29"
"""The stand-in for this image contains the newest installed release."""
PAUSE: Final = "registry.k8s.io/pause:3.10"
"""The image of the container with which containerd holds the namespaces of a pod."""

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True)
class Image:
    """A container image.

    Attributes:
        layers: the layers as uncompressed tar files, from the bottom up.
        entrypoint: the start of the command line, which is always run.
        command: the default rest of the command line.
        user: the user; "" = root.
        environment: environment variables in addition to PATH.
    """

    layers: Sequence[Path]
    entrypoint: Sequence[str] = ()
    command: Sequence[str] = ()
    user: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


def write_archive(images: Mapping[str, Image], archive: Path) -> None:
    """Write images, by name, into an OCI archive. A digest in a name does not have to be the image's real digest."""
    manifests: list[dict[str, Any]] = []
    with tarfile.open(archive, "w") as file:
        written: set[str] = set()

        def add(media_type: str, data: bytes | Path) -> dict[str, Any]:
            """Add a blob once, and return its descriptor."""
            if isinstance(data, Path):
                with data.open("rb") as content:
                    digest = hashlib.file_digest(content, "sha256").hexdigest()
                size = data.stat().st_size
            else:
                digest, size = hashlib.sha256(data).hexdigest(), len(data)
            if digest not in written:
                written.add(digest)
                member = tarfile.TarInfo(f"blobs/sha256/{digest}")
                member.size = size
                with data.open("rb") if isinstance(data, Path) else io.BytesIO(data) as content:
                    file.addfile(member, content)
            return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": size}

        for name, image in images.items():
            layers = [add(_LAYER, layer) for layer in image.layers]
            config = {
                "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()],
                "os": "linux",
                "config": {
                    "Entrypoint": list(image.entrypoint),
                    "Cmd": list(image.command),
                    "User": image.user,
                    "Env": [f"{key}={value}" for key, value in {"PATH": PATH, **image.environment}.items()],
                },
                "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
            }
            manifest = {
                "schemaVersion": 2,
                "mediaType": _MANIFEST,
                "config": add(_CONFIG, json.dumps(config).encode()),
                "layers": layers,
            }
            descriptor = add(_MANIFEST, json.dumps(manifest).encode())
            # containerd omits the tag of a name that also has a digest.
            reference = re.sub(r":[^/@]+@", "@", name)
            manifests.append({**descriptor, "annotations": {"io.containerd.image.name": reference}})
        index = {"schemaVersion": 2, "manifests": manifests}
        for path, content in (("oci-layout", {"imageLayoutVersion": "1.0.0"}), ("index.json", index)):
            data = json.dumps(content).encode()
            member = tarfile.TarInfo(path)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))


def write_layer(archive: Path, files: Mapping[str, str | Path]) -> Path:
    """Write a layer, and return its file.

    Args:
        archive: the file of the layer.
        files: the files by their path in the image. A value is the content of a file, or a local program to copy. A
            path that ends in "/" is a folder in which all users can write.
    """
    with tarfile.open(archive, "w") as file:
        for path, source in files.items():
            member = tarfile.TarInfo(path.strip("/"))
            if path.endswith("/"):
                member.type, member.mode = tarfile.DIRTYPE, 0o1777
                file.addfile(member)
            elif isinstance(source, Path):
                member.mode, member.size = 0o755, source.stat().st_size
                with source.open("rb") as content:
                    file.addfile(member, content)
            else:
                data = source.encode()
                member.mode, member.size = 0o644, len(data)
                file.addfile(member, io.BytesIO(data))
    return archive


def write_root_layer(archive: Path) -> Path:
    """Write a layer with all commands of Debian's busybox, and with nginx. Return its file."""
    run(
        *("mmdebstrap", "--variant=extract", ACCEPT_OLD_MIRRORS),
        "--include=busybox-static,nginx-light",
        *(f"--dpkgopt=path-exclude=/usr/{name}/*" for name in ("share", "bin", "sbin")),
        *(f"--dpkgopt=path-include=/usr/{name}" for name in ("bin/busybox", "sbin/nginx", "share/nginx/*")),
        *(f'--extract-hook=ln -s usr/{name} "$1/{name}"' for name in ("bin", "lib", "lib64", "sbin")),
        '--extract-hook=mkdir -p "$1/run" "$1/var" && ln -s /run "$1/var/run"',
        '--extract-hook=chroot "$1" /usr/bin/busybox --install -s /usr/bin',
        *("stable", archive),
    )
    return archive


def newest_headscale() -> Path | None:
    """Return the newest installed release of Headscale."""
    folder = Path(os.environ.get(SERVERS_VARIABLE, "/nonexistent"))
    matches = [(re.fullmatch(r"headscale-(\d+)\.(\d+)\.(\d+)", file.name), file) for file in folder.glob("headscale-*")]
    releases = {tuple(map(int, match.groups())): file for match, file in matches if match}
    return releases[max(releases)] if releases else None


def _client_folder() -> Path:
    """Return the folder with the tailscale programs of the version in the manifests."""
    version = TAILSCALE.rpartition(":v")[2].partition("@")[0]
    return Path(os.environ.get(CLIENTS_VARIABLE, "/nonexistent"), version)


def missing_programs() -> str:
    """Return a message that says what is missing to build the images; "" if nothing is."""
    if newest_headscale() is None:
        return f"set {SERVERS_VARIABLE} to a folder with headscale-0.29.3 or another release"
    clients = _client_folder()
    if not all((clients / name).exists() for name in PROGRAMS):
        return f"set {CLIENTS_VARIABLE} to a folder with the subfolder {clients.name}, which has {', '.join(PROGRAMS)}"
    return "" if shutil.which("mmdebstrap") else "needs mmdebstrap: as root, scripts/bootstrap --system"


def base_layers(folder: Path, *, authority: str) -> list[Path]:
    """Write the layers that all stand-ins share, and return their files.

    Args:
        folder: an empty folder.
        authority: the certificate of the only certificate authority that the images trust.
    """
    files = {
        "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnginx:x:101:101:nginx:/nonexistent:/bin/false\n",
        "etc/group": "root:x:0:\nnginx:x:101:\n",
        "etc/ssl/certs/ca-certificates.crt": authority,
        "tmp/": "",
    }
    return [write_root_layer(folder / "root.tar"), write_layer(folder / "common.tar", files)]


def stand_ins(layers: Sequence[Path], folder: Path) -> dict[str, Image]:
    """Return the stand-ins for all images except that of this project, by name.

    Args:
        layers: the result of `base_layers`.
        folder: the folder for the files of further layers.
    """
    program = newest_headscale()
    assert program is not None
    tailscale = write_layer(
        folder / "tailscale.tar", {f"usr/local/bin/{name}": _client_folder() / name for name in PROGRAMS}
    )
    server = write_layer(folder / "headscale.tar", {"usr/local/bin/headscale": program})
    return {
        PAUSE: Image(layers, ["sleep", "2147483647"], user="65535:65535"),
        BUSYBOX: Image(layers, command=["sh"]),
        NGINX: Image(layers, command=["nginx", "-g", "daemon off;"], user="101"),
        TAILSCALE: Image([*layers, tailscale], command=["/usr/local/bin/containerboot"]),
        HEADSCALE: Image([*layers, server], ["headscale"]),
    }


def application(layers: Sequence[Path], port: int, path: str = "/index.html", *, address: str = "127.0.0.1") -> Image:
    """Return an image with an HTTP server that serves one path. A container of the image needs a writable folder /tmp.

    Args:
        layers: the result of `base_layers`.
        port: the port on which the server listens.
        path: the path for which the server returns 200.
        address: the address on which the server listens.
    """
    # As process 1 of a container, httpd would ignore SIGTERM. So a shell is process 1, and handles this signal.
    serve = f"httpd -f -p {address}:{port} -h /tmp/www"
    script = f"mkdir -p /tmp/www{Path(path).parent}; echo ok >/tmp/www{path}; trap 'exit 0' TERM; {serve} & wait"
    return Image(layers, command=["sh", "-c", script])
