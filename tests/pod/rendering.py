"""Render the manifests of deploy/ with `kubectl kustomize`, and read parts of the result."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from dotenv import dotenv_values

from tests.pages import blocks

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def read_env_file(file: Path) -> dict[str, str]:
    """Return the variables in an env file, such as deploy/site/site.env."""
    return {name: value or "" for name, value in dotenv_values(file).items()}


SITE = read_env_file(DEPLOY / "site/site.env")
"""The shipped settings of the site: domain, URLs and the like."""
DOMAIN = SITE["DOMAIN_NAME"]
USER = SITE["HEADSCALE_USER"]
RECORD_COMMENT = "tailscale-lifecycle/1 services"
"""The comment by which the program recognizes its DNS records, in the namespace services."""

SHIPPED_WORKLOADS = tuple(
    sorted(folder.name for folder in (DEPLOY / "services").iterdir() if folder.name != "_template")
)
"""The workloads in deploy/services."""
# The arguments for scripts/new-service. The workload that it generates has to pass the same tests as the others.
GENERATED_NAME = "generated"
GENERATED_IMAGE = "docker.io/library/wiki:1.2.3"
GENERATED_PORT = 8080
WORKLOADS = (*SHIPPED_WORKLOADS, GENERATED_NAME)
WORKLOAD_VARIANTS = (*WORKLOADS, *(f"{name}/plain" for name in WORKLOADS if name != "freeipa"))
"""Each workload with tailscale and dns-watch as native sidecars, and ("/plain") as ordinary containers for Kubernetes
before 1.29. FreeIPA runs only on newer versions.
"""

INGRESS_CONTROLLERS = ("ingress/external", "ingress/internal")
INGRESS_PODS = (*INGRESS_CONTROLLERS, "ingress/headscale-ui")
"""The folders below deploy/ingress that contain a pod template."""
INCLUDED_FOLDERS = {
    "base",
    "base/resources",
    "ingress/controller",
    "ingress/external/controller",
    "ingress/external/headscale",
}
"""Folders that operators do not apply, because other folders include them."""
INJECT_FOLDERS = ("inject", "inject-v1beta1")
FOLDERS = tuple(
    name
    for file in sorted(DEPLOY.rglob("kustomization.yaml"))
    if "\nkind: Kustomization\n" in file.read_text()
    and (name := str(file.parent.relative_to(DEPLOY))) not in (*INCLUDED_FOLDERS, *INJECT_FOLDERS)
    and not name.startswith(("components/", "services/"))
)
"""The folders of deploy/ that operators apply, besides those of workloads and of the admission policies."""

LIFECYCLE_CONTAINERS = ("cleanup", "dns-watch")

NEWEST_KUBERNETES = kubernetes_validate.latest_version().rpartition(".")[0]
"""The newest Kubernetes version for which kubernetes-validate has schemas."""

Document = dict[str, Any]


def parse(text: str) -> list[Document]:
    """Parse the YAML documents of a text, without empty documents."""
    # CSafeLoader is ten times as fast as SafeLoader.
    return [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]


def render(folder: Path) -> list[Document]:
    """Render the kustomization in a folder."""
    done = subprocess.run(
        [Path(sys.executable).with_name("kubectl"), "kustomize", folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{folder} does not render:\n{done.stderr}"
    assert not done.stderr, done.stderr
    return parse(done.stdout)


def render_changed(kustomization: Path, changes: dict[str, Any]) -> list[Document]:
    """Change fields of a kustomization file, and render it. Patches are added to those in the file."""
    changed = yaml.safe_load(kustomization.read_text())
    for name, value in changes.items():
        changed[name] = changed.get(name, []) + value if name == "patches" else value
    kustomization.write_text(yaml.safe_dump(changed))
    return render(kustomization.parent)


def copy_deploy(folder: Path) -> Path:
    """Copy deploy/ and scripts/new-service into an empty folder, and return the folder."""
    shutil.copytree(DEPLOY, folder / "deploy")
    (folder / "scripts").mkdir()
    shutil.copy2(ROOT / "scripts/new-service", folder / "scripts/new-service")
    return folder


def configure(repository: Path, **settings: str) -> None:
    """Set variables in site.env and lifecycle.env of a copy of deploy/, as an operator does before `kubectl apply`."""
    for path, names in (
        ("deploy/site/site.env", settings.keys() & SITE),
        ("deploy/base/resources/lifecycle.env", settings.keys() - SITE),
    ):
        file = repository / path
        variables = read_env_file(file) | {name: settings[name] for name in names}
        file.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))


def new_service(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/new-service in a copy of the repository."""
    command: list[str | Path] = [folder / "scripts/new-service", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")


def write_kustomization(folder: Path, text: str, deploy: Path = DEPLOY) -> Path:
    """Write a documented kustomization into a new folder, and return the folder.

    Tests have no network, so the URLs of this repository's folders are replaced by paths in `deploy`, and the URL of
    Argo CD's install.yaml by the path of a local excerpt.
    """
    folder.mkdir(parents=True)
    local_deploy = os.path.relpath(deploy, folder.resolve())
    text = re.sub(r"https://\S+//deploy(\S*)\?ref=\S+", rf"{local_deploy}\1", text)
    local_text = re.sub(r"https://\S+/install\.yaml", "install.yaml", text)
    if local_text != text:
        shutil.copy(Path(__file__).with_name("argocd.yaml"), folder / "install.yaml")
    (folder / "kustomization.yaml").write_text(local_text)
    return folder


def argocd_kustomization() -> str:
    """Return the documented kustomization that installs Argo CD."""
    (block,) = blocks((DEPLOY / "services/argocd/README.md").read_text(), "yaml")
    return block.text


def argocd_kustomization_in_clone() -> str:
    """Return the same kustomization for use in a clone, in which deploy/site has the settings instead of `../site`."""
    return argocd_kustomization().replace("  - ../site\n", "")


def select_plain_containers(kustomization: Path) -> None:
    """Select the component with ordinary containers, as a comment in deploy/services/_template describes."""
    text = kustomization.read_text()
    line = "- ../../components/lifecycle/with-tailscale\n"
    assert line in text
    kustomization.write_text(text.replace(line, line.replace("\n", "/plain\n")))


@cache
def _rendered(name: str) -> str:
    if name not in WORKLOAD_VARIANTS:
        return json.dumps(render(DEPLOY / name))
    name, _, variant = name.partition("/")
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_deploy(Path(folder))
        if name == GENERATED_NAME:
            done = new_service(copy, GENERATED_NAME, GENERATED_IMAGE, str(GENERATED_PORT))
            assert done.returncode == 0, done.stderr
        if variant == "plain":
            select_plain_containers(copy / "deploy/services" / name / "kustomization.yaml")
        if name == "argocd":
            write_kustomization(copy / name, argocd_kustomization_in_clone(), copy / "deploy")
            return json.dumps(render(copy / name))
        return json.dumps(render(copy / "deploy/services" / name))


def manifests_of(name: str) -> list[Document]:
    """Return the rendered manifests of one of WORKLOAD_VARIANTS or FOLDERS. The caller may change them."""
    documents: list[Document] = json.loads(_rendered(name))
    return documents


def of_kind(documents: list[Document], *kinds: str) -> list[Document]:
    """Return the documents of these kinds."""
    return [document for document in documents if document["kind"] in kinds]


def workload_resource(documents: list[Document]) -> Document:
    """Return the DaemonSet, Deployment or StatefulSet, of which there must be exactly one."""
    (workload,) = of_kind(documents, "DaemonSet", "Deployment", "StatefulSet")
    return workload


def claim_names(documents: list[Document]) -> list[str]:
    """Return the names of the workload's volume claim templates."""
    claims = workload_resource(documents)["spec"].get("volumeClaimTemplates", [])
    return [claim["metadata"]["name"] for claim in claims]


def pod_spec(documents: list[Document]) -> Document:
    """Return the pod template's spec."""
    spec: Document = workload_resource(documents)["spec"]["template"]["spec"]
    return spec


def containers(spec: Document) -> dict[str, Document]:
    """Return all containers by name, in start order."""
    return {container["name"]: container for container in [*spec.get("initContainers", []), *spec["containers"]]}


def environment(container: Document, documents: list[Document]) -> dict[str, Any]:
    """Return a container's variables. The value is None if the kubelet reads it from the pod or a Secret."""
    maps = {document["metadata"]["name"]: document["data"] for document in of_kind(documents, "ConfigMap")}
    variables: dict[str, Any] = {}
    for source in container.get("envFrom", []):
        variables |= maps[source["configMapRef"]["name"]]
    for variable in container.get("env", []):
        source = variable.get("valueFrom", {})
        if "configMapKeyRef" in source:
            reference = source["configMapKeyRef"]
            data = maps[reference["name"]]
            if reference["key"] in data or not reference.get("optional"):
                variables[variable["name"]] = data[reference["key"]]
        else:
            variables[variable["name"]] = variable.get("value")
    return variables


def expand_references(value: str, variables: Mapping[str, str]) -> str:
    """Replace references to other variables, as the kubelet does."""
    return re.sub(r"\$\((\w+)\)", lambda reference: variables[reference[1]], value)


def config_map_data(documents: list[Document], name: str) -> dict[str, str]:
    """Return the data of a ConfigMap by its name, with or without the suffix that Kustomize generates."""
    (config_map,) = [
        document
        for document in of_kind(documents, "ConfigMap")
        if name in (document["metadata"]["name"], document["metadata"]["name"].rpartition("-")[0])
    ]
    data: dict[str, str] = config_map["data"]
    return data
