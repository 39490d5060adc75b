"""Print the size of the image, its start-up time, and the duration of a build without changes."""

import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
IMAGE = "localhost/tailscale-lifecycle:latest"
RUNS = 15

MEASURE = f"""
import statistics, subprocess, sys, time
def once():
    begin = time.perf_counter()
    subprocess.run([sys.argv[1], "--version"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin
once()
print(statistics.median(once() for _ in range({RUNS})))
"""


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


def output(*command: str) -> str:
    """Run a command and return its output without the last newline."""
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout.strip()  # noqa: S603 - fixed commands


def start_inside_s(archive: str, builder: str) -> float:
    """Return the seconds that `lifecycle --version` takes in a container, without starting the container."""
    measure = ["/opt/lifecycle/bin/python", "-c", MEASURE, "/opt/lifecycle/bin/lifecycle"]
    # If the archive was up to date, nothing was built, and the builder may not have the image.
    image = f"oci-archive:{archive}"
    if builder == "docker":
        output("docker", "load", "--quiet", "--input", archive)
        image = IMAGE
    if builder != "buildah":
        # The default limits of podman exceed what some machines allow.
        limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]
        return float(output(builder, "run", "--rm", *limits, "--entrypoint", measure[0], image, *measure[1:]))
    container = output("buildah", "from", "--quiet", image)
    try:
        return float(output("buildah", "run", container, "--", *measure))
    finally:
        output("buildah", "rm", container)


def start_outside_s() -> float:
    """Return the seconds that `lifecycle --version` takes in .venv."""
    return float(output(str(ROOT / ".venv/bin/python"), "-c", MEASURE, str(ROOT / ".venv/bin/lifecycle")))


def no_change_s() -> float:
    """Return the seconds that build.sh takes if the archive is up to date."""
    begin = time.perf_counter()
    subprocess.run(["sh", str(ROOT / "build/build.sh")], check=True, stderr=subprocess.DEVNULL)  # noqa: S603, S607
    return time.perf_counter() - begin


def main(archive: str, builder: str) -> None:
    """Print one figure on each line."""
    sizes = layers(archive)
    inside, outside = start_inside_s(archive, builder), start_outside_s()
    print(f"compressed   {sum(sizes) / 1e6:.1f} MB")
    print(f"layers       {len(sizes)} ({' + '.join(f'{size / 1e6:.1f}' for size in sizes)} MB)")
    print(f"start        {inside:.2f} s, in .venv {outside:.2f} s (ratio {inside / outside:.2f})")
    print(f"no change    {no_change_s():.2f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
