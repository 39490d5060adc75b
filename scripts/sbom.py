"""Print the software bill of materials (SBOM) of an image as CycloneDX JSON. scripts/sbom describes the arguments."""

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

LOCK_FILE = Path(__file__).parent.parent / "requirements.txt"

# Distroless images have one status file for each Debian package.
DEBIAN_PACKAGE = re.compile(r"var/lib/dpkg/status\.d/[^/]+(?<!\.md5sums)")
DISTRIBUTION = re.compile(r"(.+\.dist-info)/METADATA")
PACKAGE_FILE = re.compile(
    r"var/lib/dpkg/.+|usr/share/doc/.+|usr/lib/os-release|.+\.dist-info/(METADATA|direct_url\.json)"
)


@dataclass(frozen=True)
class Image:
    """An image for one platform.

    Attributes:
        digest: the digest of the image's manifest.
        config: the image's configuration.
        files: the content of the files that describe packages, by path.
        links: the targets of the symbolic links in the folders of these files, by path.
    """

    digest: str
    config: Any
    files: dict[str, str]
    links: dict[str, str]


def read_image(archive: tarfile.TarFile, platform: str) -> Image:
    """Read the image for a platform from an OCI archive. Exit with an error if the archive has no such image."""
    index: Any = archive.extractfile("index.json")
    for digest, manifest, config in images(archive, json.load(index)):
        if f"{config['os']}/{config['architecture']}" == platform:
            image = Image(digest, config, {}, {})
            for layer in manifest["layers"]:
                add_package_files(image, open_blob(archive, layer["digest"]))
            return image
    sys.exit(f"The archive contains no image for {platform}.")


def images(archive: tarfile.TarFile, index: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the digest, manifest and configuration of each image in an index."""
    for entry in index["manifests"]:
        content = json.load(open_blob(archive, entry["digest"]))
        # The index of an archive for several platforms contains another index.
        if "manifests" in content:
            yield from images(archive, content)
        else:
            yield entry["digest"], content, json.load(open_blob(archive, content["config"]["digest"]))


def open_blob(archive: tarfile.TarFile, digest: str) -> Any:
    """Open a file of the archive by its digest."""
    return archive.extractfile(f"blobs/{digest.replace(':', '/')}")


def add_package_files(image: Image, layer: Any) -> None:
    """Add the files of a layer that describe packages to the image."""
    with tarfile.open(fileobj=layer) as members:
        for member in members:
            if PACKAGE_FILE.fullmatch(member.name):
                if member.issym():
                    image.links[member.name] = member.linkname
                elif file := members.extractfile(member):
                    image.files[member.name] = file.read().decode()


def declared_licenses(*names: str) -> list[License]:
    """Return the licenses with these names, as licenses that a package declares.

    If there is only one name, it can be a license expression, such as "MIT OR Apache-2.0". CycloneDX does not allow
    expressions in a list of several licenses.
    """
    factory = LicenseFactory()
    declared = LicenseAcknowledgement.DECLARED
    if len(names) == 1:
        return [factory.make_from_string(names[0], license_acknowledgement=declared)]
    return [factory.make_with_name(name, acknowledgement=declared) for name in names]


def required_field(path: str, fields: Message, *names: str) -> str:
    """Return the first of the named fields that a package has. Exit with an error if the package has none of them."""
    for name in names:
        if fields[name]:
            return str(fields[name])
    sys.exit(f"{path}: the package has no field {' or '.join(names)}.")


def debian_packages(image: Image) -> Iterator[Component]:
    """Yield a component for each Debian package. The Python interpreter is also a Debian package."""
    release = dict(line.replace('"', "").split("=", 1) for line in image.files["usr/lib/os-release"].splitlines())
    for path in filter(DEBIAN_PACKAGE.fullmatch, image.files):
        fields = HeaderParser().parsestr(image.files[path])
        name, version = required_field(path, fields, "Package"), required_field(path, fields, "Version")
        qualifiers = {
            "arch": required_field(path, fields, "Architecture"),
            "distro": f"{release['ID']}-{release['VERSION_ID']}",
            # Debian's security advisories name source packages.
            "upstream": required_field(path, fields, "Source", "Package").split()[0],
        }
        # The folder of a package can be a link to the folder of another package.
        folder = image.links.get(f"usr/share/doc/{name}", name)
        copyright_file = f"usr/share/doc/{folder}/copyright"
        names = re.findall(r"^License: *(\S.*)$", image.files.get(copyright_file, ""), flags=re.MULTILINE)
        yield Component(
            name=name,
            version=version,
            purl=PackageURL("deb", "debian", name, version, qualifiers),
            supplier=OrganizationalEntity(name=required_field(path, fields, "Maintainer")),
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=required_field(path, fields, "SHA256"))],
            # If the file has no license fields, use the path of the file as the name of the license.
            licenses=declared_licenses(*sorted(set(names) or {f"/{copyright_file}"})),
        )


def normalized(name: str) -> str:
    """Return the normalized name of a distribution, as package indexes write it."""
    return re.sub("[-_.]+", "-", name).lower()


def distributions(image: Image) -> Iterator[Component]:
    """Yield a component for each Python distribution. Exit with an error if the wheel of a dependency is not locked."""
    locked = LOCK_FILE.read_text()
    project = normalized(image.config["config"]["Labels"]["org.opencontainers.image.title"])
    for path, text in image.files.items():
        if (match := DISTRIBUTION.fullmatch(path)) is None:
            continue
        fields = HeaderParser().parsestr(text)
        name = normalized(required_field(path, fields, "Name"))
        version = required_field(path, fields, "Version")
        source = image.files.get(f"{match[1]}/direct_url.json")
        if source is None:
            sys.exit(f"{path}: the hash of the wheel is not recorded in direct_url.json.")
        sha256 = json.loads(source)["archive_info"]["hashes"]["sha256"]
        if name != project and f"sha256:{sha256}" not in locked:
            sys.exit(
                f"{path}: the wheel {sha256} is not in {LOCK_FILE.name}. Use the sources that the image was built from."
            )
        yield Component(
            name=name,
            version=version,
            purl=PackageURL("pypi", None, name, version),
            supplier=OrganizationalEntity(
                name=required_field(path, fields, "Author", "Author-email", "Maintainer-email")
            ),
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)],
            licenses=declared_licenses(required_field(path, fields, "License-Expression", "License")),
        )


def main(path: str, platform: str = "linux/amd64") -> None:
    """Print the SBOM of the image in an archive."""
    with tarfile.open(path) as archive:
        image = read_image(archive, platform)
    labels = image.config["config"]["Labels"]
    image_component = Component(
        name=labels["org.opencontainers.image.title"],
        version=labels["org.opencontainers.image.version"],
        type=ComponentType.CONTAINER,
        purl=PackageURL(
            "oci", None, labels["org.opencontainers.image.title"], image.digest, {"arch": image.config["architecture"]}
        ),
        licenses=declared_licenses(labels["org.opencontainers.image.licenses"]),
    )
    components = [*debian_packages(image), *distributions(image)]
    for component in (image_component, *components):
        component.bom_ref.value = str(component.purl)
    # The serial number depends only on the image, so that the same image gives the same document.
    bom = Bom(components=components, serial_number=uuid.uuid5(uuid.NAMESPACE_OID, image.digest))
    bom.metadata.component = image_component
    bom.metadata.tools.components.add(this_component())
    if "SOURCE_DATE_EPOCH" in os.environ:
        bom.metadata.timestamp = datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), UTC)
    bom.register_dependency(image_component, components)
    print(JsonV1Dot6(bom).output_as_string(indent=2))


if __name__ == "__main__":
    main(*sys.argv[1:])
