"""Pack what the image is built from into one file: the same bytes for the same sources, on every machine."""

import gzip
import io
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent


def paths() -> list[Path]:
    """Files that .containerignore lets into a build, and the two that steer it; sorted, no folder among them."""
    ignore = ROOT / ".containerignore"
    found = {ignore, ROOT / "Containerfile"}
    for line in ignore.read_text().splitlines():
        if line.startswith("!"):
            path = ROOT / line.removeprefix("!")
            found.update(path.rglob("*") if path.is_dir() else [path])
    return sorted(path for path in found if path.is_file() and "__pycache__" not in path.parts)


def git(*arguments: str) -> str:
    """What Git prints, without the newline at its end; empty where there is no Git or no repository."""
    try:
        done = subprocess.run(  # noqa: S603 - our own arguments, no shell
            ["git", "-C", str(ROOT), *arguments],  # noqa: S607 - the Git on PATH is the user's own
            capture_output=True,
            text=True,
            check=True,
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def revision(files: list[Path]) -> str:
    """The last commit that touched these files; a clone that does not reach back to it would name another."""
    if git("rev-parse", "--is-shallow-repository") == "true":
        return "unknown"
    names = [str(path.relative_to(ROOT)) for path in files]
    commit = git("log", "-1", "--format=%H", "--", *names)
    if not commit:
        return "unknown"
    return f"{commit}+changes" if git("status", "--porcelain", "--", *names) else commit


def origin() -> str:
    """Where the repository was cloned from, when that is a public address; never a user or token in it."""
    url = urlsplit(git("remote", "get-url", "origin"))
    return f"https://{url.hostname}{url.path}" if url.scheme == "https" else "unknown"


def members() -> Iterator[tuple[str, bytes]]:
    """Name and content of what goes into the file, in its order."""
    files = paths()
    for path in files:
        yield str(path.relative_to(ROOT)), path.read_bytes()
    yield "REVISION", revision(files).encode()
    yield "ORIGIN", origin().encode()


def main(target: str) -> None:
    """Write the file; an older one is replaced."""
    with (
        Path(target).open("wb") as file,
        # Neither a name nor a time in the header, no owner and no time in the members: same sources, same bytes.
        gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=9, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, content in members():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
    main(sys.argv[1])
