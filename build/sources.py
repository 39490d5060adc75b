"""Pack the sources of the image into one file. The same sources give the same bytes on every machine."""

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
    """Return the sorted paths of the Containerfile, .containerignore and the files that it lists after a `!`."""
    ignore = ROOT / ".containerignore"
    files = {ignore, ROOT / "Containerfile"}
    for line in ignore.read_text().splitlines():
        if line.startswith("!"):
            path = ROOT / line.removeprefix("!")
            files.update(path.rglob("*") if path.is_dir() else [path])
    return sorted(path for path in files if path.is_file() and "__pycache__" not in path.parts)


def git(*arguments: str) -> str:
    """Run Git and return its output without the last newline, or "" if Git or the repository is missing."""
    try:
        result = subprocess.run(  # noqa: S603 - fixed arguments, no shell
            ["git", "-C", str(ROOT), *arguments],  # noqa: S607 - Git is found on PATH
            capture_output=True,
            text=True,
            check=True,
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""
    return result.stdout.strip()


def revision(files: list[Path]) -> str:
    """Return the last commit that changed these files, and whether they differ from it; "unknown" without Git.

    A shallow clone may not contain this commit, so the result is "unknown", too.
    """
    if git("rev-parse", "--is-shallow-repository") == "true":
        return "unknown"
    names = [str(path.relative_to(ROOT)) for path in files]
    commit = git("log", "-1", "--format=%H", "--", *names)
    if not commit:
        return "unknown"
    return f"{commit}+changes" if git("status", "--porcelain", "--", *names) else commit


def origin() -> str:
    """Return the HTTPS address of the remote without credentials, or "unknown"."""
    url = urlsplit(git("remote", "get-url", "origin"))
    return f"https://{url.netloc.rpartition('@')[2]}{url.path}" if url.scheme == "https" else "unknown"


def members() -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of each file to pack, in the order of the archive."""
    files = paths()
    for path in files:
        yield str(path.relative_to(ROOT)), path.read_bytes()
    yield "REVISION", revision(files).encode()
    yield "ORIGIN", origin().encode()


def main(target: str) -> None:
    """Write the packed file. An older file is replaced."""
    with (
        Path(target).open("wb") as file,
        # The header has no name and no time, and the members have no owner and no time, so that the same sources give
        # the same bytes.
        gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=9, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, content in members():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except OSError as error:
        sys.exit(f"The sources cannot be packed: {error}")
