"""Simulate `docker build` and `docker save` with containerd's image store, which Docker 29 uses by default.

Usage: docker_simulator.py FOLDER build OPTION... CONTEXT
       docker_simulator.py FOLDER save --output FILE IMAGE

The image has one layer with any content. FOLDER keeps the labels of the image between the two commands.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
from itertools import pairwise
from pathlib import Path


def main(folder: Path, command: str, *arguments: str) -> None:
    """Run one command."""
    labels = folder / "labels.json"
    if command == "build":
        pairs = [value.split("=", 1) for option, value in pairwise(arguments) if option == "--label"]
        labels.write_text(json.dumps(dict(pairs)))
    else:
        _save(Path(arguments[1]), arguments[2], json.loads(labels.read_text()))


def _save(path: Path, image: str, labels: dict[str, str]) -> None:
    config = json.dumps({"config": {"Labels": labels}}, separators=(",", ":")).encode()
    layer = b"layer" * 1000
    # BuildKit writes a manifest over several lines.
    manifest = json.dumps({"config": _descriptor(config), "layers": [_descriptor(layer)]}, indent=2).encode()
    # OCI's annotation has only the tag, and containerd's has the full name.
    names = {"io.containerd.image.name": image, "org.opencontainers.image.ref.name": image.rpartition(":")[2]}
    index = json.dumps({"manifests": [_descriptor(manifest) | {"annotations": names}]}, separators=(",", ":")).encode()
    files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": index}
    files |= {f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}": blob for blob in (config, layer, manifest)}
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _descriptor(blob: bytes) -> dict[str, object]:
    return {"digest": f"sha256:{hashlib.sha256(blob).hexdigest()}", "size": len(blob)}


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
