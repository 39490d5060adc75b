"""Say how large the image is, and how long it takes to start and to find that there is nothing to build."""

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
    """One file of an OCI archive."""
    file = archive.extractfile(name)
    if file is None:
        sys.exit(f"{name} is no file")
    return json.load(file)


def layers(path: str) -> list[int]:
    """Compressed sizes of the image's layers, in bytes, the lowest first."""
    with tarfile.open(path) as archive:
        digest = read_json(archive, "index.json")["manifests"][0]["digest"]
        manifest = read_json(archive, "blobs/" + digest.replace(":", "/"))
    return [layer["size"] for layer in manifest["layers"]]


def output(*command: str) -> str:
    """What a command prints, without the newline at its end."""
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout.strip()  # noqa: S603 - ours


def start_inside_s(archive: str, builder: str) -> float:
    """Seconds that `lifecycle --version` takes in a container, without those that the container takes."""
    measure = ["/opt/lifecycle/bin/python", "-c", MEASURE, "/opt/lifecycle/bin/lifecycle"]
    # Out of the archive: an archive that is there already may be all that there is of the image.
    image = f"oci-archive:{archive}"
    if builder == "docker":
        output("docker", "load", "--quiet", "--input", archive)
        image = IMAGE
    if builder != "buildah":
        # Limits that any machine can give; the builder's own are higher than some allow.
        limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]
        return float(output(builder, "run", "--rm", *limits, "--entrypoint", measure[0], image, *measure[1:]))
    container = output("buildah", "from", "--quiet", image)
    try:
        return float(output("buildah", "run", container, "--", *measure))
    finally:
        output("buildah", "rm", container)


def start_outside_s() -> float:
    """Seconds that it takes in .venv."""
    return float(output(str(ROOT / ".venv/bin/python"), "-c", MEASURE, str(ROOT / ".venv/bin/lifecycle")))


def no_op_s() -> float:
    """Seconds until build.sh has seen that the archive is made from these sources."""
    begin = time.perf_counter()
    subprocess.run(["sh", str(ROOT / "build/build.sh")], check=True, stderr=subprocess.DEVNULL)  # noqa: S603, S607 - ours
    return time.perf_counter() - begin


def main(archive: str, builder: str) -> None:
    """Print the figures, one a line."""
    sizes = layers(archive)
    inside, outside = start_inside_s(archive, builder), start_outside_s()
    print(f"compressed   {sum(sizes) / 1e6:.1f} MB")
    print(f"layers       {len(sizes)} ({' + '.join(f'{size / 1e6:.1f}' for size in sizes)} MB)")
    print(f"start        {inside:.2f} s, {outside:.2f} s outside ({inside / outside:.2f} times)")
    print(f"nothing new  {no_op_s():.2f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
