"""Print the size of an image archive, and how long build.sh takes if nothing has changed."""

import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def read_json(archive: tarfile.TarFile, name: str) -> Any:
    """Read one JSON file of an OCI archive."""
    file = archive.extractfile(name)
    if file is None:
        sys.exit(f"the archive has no file {name}")
    return json.load(file)


def layers(path: str) -> list[int]:
    """Return the compressed sizes of the layers in bytes, the lowest layer first."""
    with tarfile.open(path) as archive:
        digest = read_json(archive, "index.json")["manifests"][0]["digest"]
        manifest = read_json(archive, "blobs/" + digest.replace(":", "/"))
    return [layer["size"] for layer in manifest["layers"]]


def no_change_s() -> float:
    """Return the seconds that build.sh takes if the archive is up to date."""
    begin = time.perf_counter()
    subprocess.run(["sh", str(ROOT / "build/build.sh")], check=True, stderr=subprocess.DEVNULL)  # noqa: S603, S607
    return time.perf_counter() - begin


def main(archive: str) -> None:
    """Print the figures, one on each line."""
    sizes = layers(archive)
    print(f"compressed   {sum(sizes) / 1e6:.1f} MB")
    print(f"layers       {len(sizes)} ({' + '.join(f'{size / 1e6:.1f}' for size in sizes)} MB)")
    print(f"no change    {no_change_s():.2f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
