"""The rendered manifests of deploy/, as kubectl would apply them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

import kubernetes_validate
import yaml
from dotenv import dotenv_values

from tests.pages import blocks

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def values(file: Path) -> dict[str, str]:
    """Return the variables of an env file of a kustomization."""
    return {name: value or "" for name, value in dotenv_values(file).items()}


SITE = values(DEPLOY / "site/site.env")
"""The names of the site."""
DOMAIN = SITE["DOMAIN_NAME"]

SHIPPED = tuple(sorted(folder.name for folder in (DEPLOY / "services").iterdir() if folder.name != "_template"))
GENERATED = ("made-by-a-test", "docker.io/library/wiki:1.2.3", "8080")
"""Arguments for scripts/new-service. The generated workload passes the same tests as the shipped ones."""
WORKLOADS = (*SHIPPED, GENERATED[0])
"""Folder names in deploy/services."""
CONTROLLERS = ("ingress/external", "ingress/internal")
"""The folders of the ingress controllers."""
WITH_PODS = (*CONTROLLERS, "ingress/headscale-ui")
"""The folders in OTHERS that create pods."""
OTHERS = ("cert-manager", "ingress/examples", *WITH_PODS)
OURS = ("cleanup", "dns-watch")

NEWEST = kubernetes_validate.latest_version().rpartition(".")[0]
"""The newest Kubernetes version that there are schemas for."""

Variant = Literal["native", "plain"]
VARIANTS: tuple[tuple[str, Variant], ...] = (
    *((name, "native") for name in WORKLOADS),
    # Every Kubernetes version that FreeIPA supports has native sidecars.
    *((name, "plain") for name in WORKLOADS if name != "freeipa"),
)

Document = dict[str, Any]


def render(folder: Path) -> list[Document]:
    """Render a kustomization."""
    done = subprocess.run(
        [Path(sys.executable).with_name("kubectl"), "kustomize", folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{folder} does not render:\n{done.stderr}"
    assert not done.stderr, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def copied(folder: Path) -> Path:
    """Copy deploy/ and scripts/new-service into an empty folder, and return the folder."""
    shutil.copytree(DEPLOY, folder / "deploy")
    (folder / "scripts").mkdir()
    shutil.copy2(ROOT / "scripts/new-service", folder / "scripts/new-service")
    return folder


def new_service(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/new-service in a copy of the repository."""
    command: list[str | Path] = [folder / "scripts/new-service", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")


def write(folder: Path, text: str, deploy: Path = DEPLOY) -> Path:
    """Write a documented kustomization, with a local path in place of the URL of deploy/, and a file for Argo CD's."""
    folder.mkdir(parents=True)
    here = os.path.relpath(deploy, folder.resolve())
    text = re.sub(r"https://\S+//deploy(\S*)\?ref=\S+", rf"{here}\1", text)
    if (replaced := re.sub(r"https://\S+/install\.yaml", "install.yaml", text)) != text:
        shutil.copy(Path(__file__).with_name("argocd.yaml"), folder / "install.yaml")
    (folder / "kustomization.yaml").write_text(replaced)
    return folder


def argocd() -> str:
    """Return the documented kustomization that installs Argo CD."""
    (block,) = blocks((DEPLOY / "services/argocd/README.md").read_text(), "yaml")
    return block.text


def choose(variant: Variant, kustomization: Path) -> None:
    """Select a variant of the component by changing one line, as the template's comment describes."""
    if variant == "plain":
        text = kustomization.read_text()
        line = "- ../../components/lifecycle/with-tailscale\n"
        assert line in text
        kustomization.write_text(text.replace(line, line.replace("\n", "/plain\n")))


@cache
def _rendered(name: str, variant: Variant) -> str:
    if name in OTHERS:
        return yaml.safe_dump_all(render(DEPLOY / name))
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(Path(folder))
        if name == GENERATED[0]:
            done = new_service(copy, *GENERATED)
            assert done.returncode == 0, done.stderr
        choose(variant, copy / "deploy/services" / name / "kustomization.yaml")
        if name == "argocd":
            # In a clone, the site is in deploy/.
            write(copy / name, argocd().replace("  - ../site\n", ""), copy / "deploy")
            return yaml.safe_dump_all(render(copy / name))
        return yaml.safe_dump_all(render(copy / "deploy/services" / name))


def rendered(name: str, variant: Variant = "native") -> list[Document]:
    """Return the rendered documents of a workload or another folder of deploy/, as a fresh copy."""
    return list(yaml.safe_load_all(_rendered(name, variant)))


def of_kind(documents: list[Document], *kinds: str) -> list[Document]:
    """Return the documents of these kinds."""
    return [document for document in documents if document["kind"] in kinds]


def workload_resource(documents: list[Document]) -> Document:
    """Return the only DaemonSet, Deployment or StatefulSet."""
    (only,) = of_kind(documents, "DaemonSet", "Deployment", "StatefulSet")
    return only


def pod_spec(documents: list[Document]) -> Document:
    """Return the pod template's spec."""
    spec: Document = workload_resource(documents)["spec"]["template"]["spec"]
    return spec


def containers(spec: Document) -> dict[str, Document]:
    """Return all containers by name, in start order."""
    return {container["name"]: container for container in [*spec.get("initContainers", []), *spec["containers"]]}


def environment(container: Document, documents: list[Document]) -> dict[str, Any]:
    """Return a container's variables. The value is None if only a running pod has it."""
    maps = {document["metadata"]["name"]: document["data"] for document in of_kind(documents, "ConfigMap")}
    values: dict[str, Any] = {}
    for source in container.get("envFrom", []):
        values |= maps[source["configMapRef"]["name"]]
    for variable in container.get("env", []):
        source = variable.get("valueFrom", {})
        if "configMapKeyRef" in source:
            reference = source["configMapKeyRef"]
            data = maps[reference["name"]]
            if reference["key"] in data or not reference.get("optional"):
                values[variable["name"]] = data[reference["key"]]
        else:
            values[variable["name"]] = variable.get("value")
    return values


def configuration(documents: list[Document], name: str) -> dict[str, str]:
    """Return the data of a ConfigMap, by its name without the generated suffix."""
    (only,) = [
        document
        for document in of_kind(documents, "ConfigMap")
        if document["metadata"]["name"].rpartition("-")[0] == name or document["metadata"]["name"] == name
    ]
    data: dict[str, str] = only["data"]
    return data


def images(documents: list[Document]) -> Iterator[str]:
    """Iterate over the images of all containers."""
    for document in documents:
        template = document.get("spec", {}).get("template") if isinstance(document.get("spec"), dict) else None
        if template is not None:
            yield from (container["image"] for container in containers(template["spec"]).values())
