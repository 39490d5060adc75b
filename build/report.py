"""Print the size of an image archive."""

import json
import sys
import tarfile
from typing import Any


def layer_sizes(path: str) -> list[int]:
    """Return the compressed sizes of the layers in bytes, the lowest layer first."""
    with tarfile.open(path) as archive:
        index: Any = archive.extractfile("index.json")
        digest = json.load(index)["manifests"][0]["digest"]
        manifest: Any = archive.extractfile("blobs/" + digest.replace(":", "/"))
        return [layer["size"] for layer in json.load(manifest)["layers"]]


def main(archive: str) -> None:
    """Print the size of the image and of each layer."""
    sizes = layer_sizes(archive)
    each = " + ".join(f"{size / 1e6:.1f}" for size in sizes)
    print(f"{sum(sizes) / 1e6:.1f} MB compressed, {len(sizes)} layers ({each} MB)")


if __name__ == "__main__":
    main(*sys.argv[1:])
