"""What deploy/ renders, as kubectl would apply it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"

(DOMAIN,) = re.findall(r"^DOMAIN_NAME=(.+)$", (DEPLOY / "base/lifecycle.env").read_text(), flags=re.MULTILINE)
"""What stands for it, or the operator's own."""

SHIPPED = tuple(sorted(folder.name for folder in (DEPLOY / "services").iterdir() if folder.name != "_template"))
NEW = ("made-by-a-test", "docker.io/library/wiki:1.2.3", "8080")
"""What scripts/new-service is given; what it makes of it passes the same tests as what is shipped."""
SERVICES = (*SHIPPED, NEW[0])
OTHERS = ("cert-manager", "ingress/examples", "ingress/external", "ingress/internal")
WITH_PODS = ("ingress/external", "ingress/internal")
"""Those of the others that make pods."""
OURS = ("cleanup", "dns-watch")

Variant = Literal["native", "plain"]
VARIANTS: tuple[tuple[str, Variant], ...] = (
    *((service, "native") for service in SERVICES),
    # FreeIPA needs a Kubernetes where sidecars are always native.
    *((service, "plain") for service in SERVICES if service != "freeipa"),
)

Document = dict[str, Any]


def render(folder: Path) -> list[Document]:
    """The documents of one kustomization, in kubectl's order."""
    done = subprocess.run(
        [Path(sys.executable).with_name("kubectl"), "kustomize", folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{folder} does not render:\n{done.stderr}"
    assert not done.stderr, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def copied(folder: Path) -> Path:
    """A copy of deploy/, and of the command that adds to it, in an empty folder."""
    shutil.copytree(DEPLOY, folder / "deploy")
    (folder / "scripts").mkdir()
    shutil.copy2(ROOT / "scripts/new-service", folder / "scripts/new-service")
    return folder


def new_service(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/new-service in a copy."""
    command: list[str | Path] = [folder / "scripts/new-service", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")


def choose(variant: Variant, kustomization: Path) -> None:
    """Choose a variant of the component as its comment says: by one line."""
    if variant == "plain":
        text = kustomization.read_text()
        native, plain = (f"- ../../components/lifecycle/{name}\n" for name in ("native", "plain"))
        assert native in text
        kustomization.write_text(text.replace(native, plain))


@cache
def _rendered(name: str, variant: Variant) -> str:
    if name in OTHERS:
        return yaml.safe_dump_all(render(DEPLOY / name))
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(Path(folder))
        if name == NEW[0]:
            done = new_service(copy, *NEW)
            assert done.returncode == 0, done.stderr
        choose(variant, copy / "deploy/services" / name / "kustomization.yaml")
        return yaml.safe_dump_all(render(copy / "deploy/services" / name))


def rendered(name: str, variant: Variant = "native") -> list[Document]:
    """The documents of a service, or of another folder of deploy/; a copy to do with as a test likes."""
    return list(yaml.safe_load_all(_rendered(name, variant)))


def of_kind(documents: list[Document], *kinds: str) -> list[Document]:
    """The documents of these kinds."""
    return [document for document in documents if document["kind"] in kinds]


def workload(documents: list[Document]) -> Document:
    """The one thing among the documents that makes pods."""
    (only,) = of_kind(documents, "DaemonSet", "Deployment", "StatefulSet")
    return only


def pod_spec(documents: list[Document]) -> Document:
    """The specification of the pod among the documents."""
    spec: Document = workload(documents)["spec"]["template"]["spec"]
    return spec


def containers(spec: Document) -> dict[str, Document]:
    """Every container of a pod by its name, in the order in which they start."""
    return {container["name"]: container for container in [*spec.get("initContainers", []), *spec["containers"]]}


def configuration(documents: list[Document], name: str) -> dict[str, str]:
    """The data of the ConfigMap that was generated under this name."""
    (only,) = [
        document
        for document in of_kind(documents, "ConfigMap")
        if document["metadata"]["name"].rpartition("-")[0] == name or document["metadata"]["name"] == name
    ]
    data: dict[str, str] = only["data"]
    return data


def images(documents: list[Document]) -> Iterator[str]:
    """Every image that the documents name."""
    for document in documents:
        template = document.get("spec", {}).get("template") if isinstance(document.get("spec"), dict) else None
        if template is not None:
            yield from (container["image"] for container in containers(template["spec"]).values())
