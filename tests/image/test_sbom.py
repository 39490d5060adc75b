"""Test that the software bill of materials (SBOM) from scripts/sbom lists exactly the packages in the image."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import sys
from email.parser import HeaderParser
from importlib.metadata import distributions
from os.path import normpath
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from tests.image.tools import ROOT, ImageBuild, run, run_checked

STATUS = "var/lib/dpkg/status.d"
"""A folder with a control file and a list of files (`.md5sums`) for each Debian package.

The image does not have dpkg's usual file with all packages.
"""

SITE_PACKAGES = "opt/lifecycle/lib/python3*/site-packages"

UNPACKAGED_FILES = re.compile(
    rf"{STATUS}/.+|etc/.+|opt/lifecycle/(pyvenv\.cfg|\.gitignore|bin/[Aa]ctivate.*|etc/ssl/certs/[0-9a-f]{{8}}\.\d)|"
    r".+\.pyc"
)
"""Paths of files in the image that are in no package's list of files.

- dpkg's data about packages
- configuration files, which the lists of Debian packages omit
- byte code
- files that the build adds to the venv, among them one file for each certificate of certifi, named by its hash
"""


def make_sbom(archive: Path) -> str:
    """Return the SBOM of an image archive. The timestamp in the SBOM is always the same."""
    return run_checked([ROOT / "scripts/sbom", archive], env={**os.environ, "SOURCE_DATE_EPOCH": "0"})


@pytest.fixture(scope="module")
def document(shared_build: ImageBuild) -> Any:
    return json.loads(make_sbom(shared_build.archive.path))


@pytest.fixture(scope="module")
def root(shared_build: ImageBuild, scratch_dir: Path) -> Path:
    """The file system of the image."""
    folder = scratch_dir / "root"
    unpacked = scratch_dir / "unpacked"
    for path in (folder, unpacked):
        path.mkdir()
    run_checked(["tar", "-xf", shared_build.archive.path, "-C", unpacked])
    for layer in shared_build.archive.manifest["layers"]:
        run_checked(["tar", "-xzf", unpacked / "blobs" / layer["digest"].replace(":", "/"), "-C", folder])
    return folder


def installed_packages(root: Path) -> set[tuple[str, str, str]]:
    """Return the type, name and version of everything that is installed in the image."""
    [site] = root.glob(SITE_PACKAGES)
    # Names are compared in the normalized form of PyPI.
    python = {
        ("pypi", re.sub("[-_.]+", "-", package.name).lower(), package.version)
        for package in distributions(path=[str(site)])
    }
    files = [path for path in (root / STATUS).iterdir() if path.suffix != ".md5sums"]
    debian = [HeaderParser().parsestr(path.read_text()) for path in files]
    return python | {("deb", package["Package"], package["Version"]) for package in debian}


def test_sbom_and_image_have_the_same_packages(document: Any, root: Path) -> None:
    listed = [PackageURL.from_string(component["purl"]) for component in document["components"]]
    assert {(purl.type, purl.name, purl.version) for purl in listed} == installed_packages(root)
    assert len(listed) == len(installed_packages(root))


def test_sbom_lists_the_python_interpreter(document: Any, root: Path) -> None:
    venv = dict(line.split(" = ", 1) for line in (root / "opt/lifecycle/pyvenv.cfg").read_text().splitlines())
    minor = ".".join(venv["version"].split(".")[:2])
    [interpreter] = [part for part in document["components"] if part["name"] == f"python{minor}-minimal"]
    assert interpreter["version"].startswith(venv["version"])


def test_every_file_belongs_to_a_listed_package(root: Path) -> None:
    """The SBOM would not list a program that was copied into the image without a package."""
    [site] = root.glob(SITE_PACKAGES)
    owned = {
        line.split(None, 1)[1] for path in (root / STATUS).glob("*.md5sums") for line in path.read_text().splitlines()
    }
    for record in site.glob("*.dist-info/RECORD"):
        with record.open(newline="") as file:
            owned |= {normpath(f"{site.relative_to(root)}/{row[0]}") for row in csv.reader(file)}
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and not path.is_symlink()}
    assert {path for path in files - owned if not UNPACKAGED_FILES.fullmatch(path)} == set()


def test_every_component_has_a_hash_a_license_and_a_supplier(document: Any) -> None:
    for component in document["components"]:
        [hashed] = component["hashes"]
        assert hashed["alg"] == "SHA-256"
        assert component["licenses"]
        assert component["supplier"]["name"]


def test_sbom_is_valid(document: Any) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document)) is None


def test_sbom_names_the_image(document: Any, shared_build: ImageBuild) -> None:
    image = PackageURL.from_string(document["metadata"]["component"]["purl"])
    assert image.version == shared_build.archive.digest
    assert image.qualifiers == {"arch": shared_build.archive.config["architecture"]}


def test_same_image_has_the_same_sbom(document: Any, shared_build: ImageBuild) -> None:
    assert json.loads(make_sbom(shared_build.archive.path)) == document


def test_platform_that_is_not_in_the_archive_is_refused(shared_build: ImageBuild) -> None:
    done = run([ROOT / "scripts/sbom", shared_build.archive.path, "linux/riscv64"])
    assert done.returncode == 1
    assert "linux/riscv64" in done.stderr


def test_wheel_that_is_not_locked_is_refused(shared_build: ImageBuild, tmp_path: Path) -> None:
    # A copy of the script whose requirements.txt lacks httpx.
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/sbom.py", tmp_path / "scripts")
    locked = (ROOT / "requirements.txt").read_text()
    (tmp_path / "requirements.txt").write_text(re.sub(r"(?m)^httpx==.*\\\n(.*\\\n)*.*$", "", locked))
    done = run([sys.executable, tmp_path / "scripts/sbom.py", shared_build.archive.path])
    assert done.returncode == 1
    assert "/httpx-" in done.stderr
