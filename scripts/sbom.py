"""Print the bill of materials (SBOM) of an image as CycloneDX JSON. scripts/sbom describes the arguments."""

from __future__ import annotations

import json
import os
import re
import sys
import tarfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.contrib.this.builders import this_component
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.contact import OrganizationalEntity
from cyclonedx.model.license import License, LicenseAcknowledgement
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

LOCKED = Path(__file__).parent.parent / "requirements.txt"

DEBIAN_PACKAGE = re.compile(r"var/lib/dpkg/status\.d/[^/]+(?<!\.md5sums)")
DISTRIBUTION = re.compile(r"(.+\.dist-info)/METADATA")
DESCRIPTIVE = re.compile(
    r"var/lib/dpkg/.+|usr/share/doc/.+|usr/lib/os-release|.+\.dist-info/(METADATA|direct_url\.json)"
)


@dataclass(frozen=True)
class Image:
    """An image for one platform.

    Args:
        digest: of its manifest.
        config: its configuration.
        files: the files that describe packages, by path.
        links: the targets of links in the same folders, by path.
    """

    digest: str
    config: Any
    files: dict[str, str]
    links: dict[str, str]


def read(archive: tarfile.TarFile, platform: str) -> Image:
    """Read an image from an OCI archive."""
    index: Any = archive.extractfile("index.json")
    for digest, manifest, config in images(archive, json.load(index)):
        if f"{config['os']}/{config['architecture']}" == platform:
            image = Image(digest, config, {}, {})
            for layer in manifest["layers"]:
                add(image, blob(archive, layer["digest"]))
            return image
    sys.exit(f"The archive contains no image for {platform}.")


def images(archive: tarfile.TarFile, index: Any) -> Iterator[tuple[str, Any, Any]]:
    """Return the digest, manifest and configuration of each platform's image."""
    for entry in index["manifests"]:
        content = json.load(blob(archive, entry["digest"]))
        # The index of an archive for several platforms contains another index.
        if "manifests" in content:
            yield from images(archive, content)
        else:
            yield entry["digest"], content, json.load(blob(archive, content["config"]["digest"]))


def blob(archive: tarfile.TarFile, digest: str) -> Any:
    """Open a file of the archive by its digest."""
    return archive.extractfile(f"blobs/{digest.replace(':', '/')}")


def add(image: Image, layer: Any) -> None:
    """Add the files of a layer that describe packages."""
    with tarfile.open(fileobj=layer) as members:
        for member in members:
            if DESCRIPTIVE.fullmatch(member.name):
                if member.issym():
                    image.links[member.name] = member.linkname
                elif file := members.extractfile(member):
                    image.files[member.name] = file.read().decode()


def declared(*names: str) -> list[License]:
    """Return licenses. One name can also be an expression; the schema allows no expressions among several."""
    make = LicenseFactory()
    how = LicenseAcknowledgement.DECLARED
    if len(names) == 1:
        return [make.make_from_string(names[0], license_acknowledgement=how)]
    return [make.make_with_name(name, acknowledgement=how) for name in names]


def field(path: str, fields: Message, *names: str) -> str:
    """Return the first of these fields that a package has. Exit if it has none."""
    for name in names:
        if fields[name]:
            return str(fields[name])
    sys.exit(f"{path}: the package has no field {' or '.join(names)}.")


def debian_packages(image: Image) -> Iterator[Component]:
    """Describe Debian's packages. The interpreter is one of them."""
    release = dict(line.replace('"', "").split("=", 1) for line in image.files["usr/lib/os-release"].splitlines())
    for path in filter(DEBIAN_PACKAGE.fullmatch, image.files):
        fields = HeaderParser().parsestr(image.files[path])
        name, version = field(path, fields, "Package"), field(path, fields, "Version")
        qualifiers = {
            "arch": field(path, fields, "Architecture"),
            "distro": f"{release['ID']}-{release['VERSION_ID']}",
            # Debian's security advisories name source packages.
            "upstream": field(path, fields, "Source", "Package").split()[0],
        }
        documentation = f"usr/share/doc/{name}"
        documentation = f"usr/share/doc/{image.links.get(documentation, name)}/copyright"
        names = re.findall(r"^License: *(\S.*)$", image.files.get(documentation, ""), flags=re.MULTILINE)
        yield Component(
            name=name,
            version=version,
            purl=PackageURL("deb", "debian", name, version, qualifiers),
            supplier=OrganizationalEntity(name=field(path, fields, "Maintainer")),
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=field(path, fields, "SHA256"))],
            # Some packages describe their licenses in prose.
            licenses=declared(*sorted(set(names) or {f"/{documentation}"})),
        )


def distributions(image: Image) -> Iterator[Component]:
    """Describe the distributions of Python."""
    locked = LOCKED.read_text()
    own = re.sub("[-_.]+", "-", image.config["config"]["Labels"]["org.opencontainers.image.title"]).lower()
    for path, text in image.files.items():
        if (match := DISTRIBUTION.fullmatch(path)) is None:
            continue
        fields = HeaderParser().parsestr(text)
        name = re.sub("[-_.]+", "-", field(path, fields, "Name")).lower()
        version = field(path, fields, "Version")
        source = image.files.get(f"{match[1]}/direct_url.json")
        if source is None:
            sys.exit(f"{path}: the hash of the wheel is not recorded in direct_url.json.")
        sha256 = json.loads(source)["archive_info"]["hashes"]["sha256"]
        if name != own and f"sha256:{sha256}" not in locked:
            sys.exit(
                f"{path}: the wheel {sha256} is not in {LOCKED.name}. Use the sources that the image was built from."
            )
        yield Component(
            name=name,
            version=version,
            purl=PackageURL("pypi", None, name, version),
            supplier=OrganizationalEntity(name=field(path, fields, "Author", "Author-email", "Maintainer-email")),
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)],
            licenses=declared(field(path, fields, "License-Expression", "License")),
        )


def main(path: str, platform: str = "linux/amd64") -> None:
    """Print the document."""
    with tarfile.open(path) as archive:
        image = read(archive, platform)
    labels = image.config["config"]["Labels"]
    described = Component(
        name=labels["org.opencontainers.image.title"],
        version=labels["org.opencontainers.image.version"],
        type=ComponentType.CONTAINER,
        purl=PackageURL(
            "oci", None, labels["org.opencontainers.image.title"], image.digest, {"arch": image.config["architecture"]}
        ),
        licenses=declared(labels["org.opencontainers.image.licenses"]),
    )
    components = [*debian_packages(image), *distributions(image)]
    for component in (described, *components):
        component.bom_ref.value = str(component.purl)
    # The same image has the same document, if SOURCE_DATE_EPOCH is set.
    bom = Bom(components=components, serial_number=uuid.uuid5(uuid.NAMESPACE_OID, image.digest))
    bom.metadata.component = described
    bom.metadata.tools.components.add(this_component())
    if "SOURCE_DATE_EPOCH" in os.environ:
        bom.metadata.timestamp = datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), UTC)
    bom.register_dependency(described, components)
    print(JsonV1Dot6(bom).output_as_string(indent=2))


if __name__ == "__main__":
    main(*sys.argv[1:])
