"""Runs the pod that was rendered: podman in place of the container runtime, this in place of the kubelet.

What the kubelet does and podman 4.3 does not is done here: volumes made and filled as it makes and fills them, their
group, sysctls, values from the pod's own fields, probes, which are run by hand. What neither does here, and what
therefore no test has run: native sidecars (their variant is rendered and validated), the service account's token, since
there is no Kubernetes API to show it to, limits on the size of a volume, restarts (a container that ends stays ended),
and the network policy.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

import yaml

from tests.pod.certificates import MountedSecret
from tests.pod.network import PATIENCE_S, Host, Surroundings, eventually, named, run
from tests.pod.rendering import Document, containers, of_kind, workload

PROBES: Final = ("startupProbe", "readinessProbe", "livenessProbe")

STORAGE: Final = "/mnt"
"""Where podman keeps everything, in a view of the file system that nobody else has; podman wants a short path."""

CONFIGURATION: Final = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
"""runc, since not every kernel has what crun wants; limits that need no right to be raised."""


@dataclass
class Podman:
    """podman with images and containers of its own, in a PID namespace of its own: what it leaves ends with that."""

    folder: Path
    init: int
    _pods: Iterator[int] = field(default_factory=count)

    def new_name(self, pod: str) -> str:
        """Another name for each pod: several tests run one of the same name."""
        return f"{pod}-{next(self._pods)}"

    def command(self, *words: str | Path) -> list[str]:
        """A command line that runs there."""
        return [
            *("nsenter", f"--target={self.init}", "--pid", "--mount", "--", "podman"),
            *(f"--{name}={STORAGE}/{name}" for name in ("root", "runroot", "tmpdir", "volumepath")),
            *map(str, words),
        ]

    @property
    def environment(self) -> dict[str, str]:
        """What it reads in place of this machine's configuration."""
        return {**os.environ, "CONTAINERS_CONF": str(self.folder / "containers.conf"), "TMPDIR": STORAGE}

    def run(self, *words: str | Path) -> str:
        """A podman command that must succeed; what it prints."""
        return run(*self.command(*words), env=self.environment, timeout=PATIENCE_S * 3)

    def try_to(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """A podman command whose end is the caller's to judge."""
        return subprocess.run(
            self.command(*words),
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )

    def process(self, container: str) -> Path:
        """What the kernel shows of a container's first process: its folder in the /proc of that PID namespace.

        Source: proc_pid_root(5), proc_pid_status(5).
        """
        pid = self.run("inspect", "--format", "{{.State.Pid}}", container).strip()
        return Path(f"/proc/{self.init}/root/proc/{pid}")


@contextmanager
def podman(folder: Path) -> Iterator[Podman]:
    """podman, and nothing of it left afterwards."""
    (folder / "containers.conf").write_text(CONFIGURATION)
    # Without an init of its own that collects them, the ends of its containers wait for this machine's.
    outer = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--mount-proc", "--propagation", "private", "catatonit", "--", "sleep", "inf"],
        stderr=subprocess.DEVNULL,
    )
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
    try:
        init = eventually(children.read_text, "an init").split()[0]
        eventually(lambda: Path(f"/proc/{init}/comm").read_text().strip() == "catatonit", "catatonit")
        machine = Podman(folder, int(init))
        # In memory: fast, and gone without being deleted file by file.
        run("nsenter", f"--target={init}", "--mount", "--", "mount", "-t", "tmpfs", "tmpfs", STORAGE)
        yield machine
        machine.try_to("pod", "rm", "--all", "--force", "--time", "0")
        machine.try_to("rm", "--all", "--force", "--time", "0")
    finally:
        for child in children.read_text().split():
            os.kill(int(child), 9)
        outer.wait()


@dataclass
class Kubelet:
    """Runs one workload's pods, one after another.

    Args:
        documents: what was rendered.
        images: by container, for those whose own are not to be had here.
        commands: by container, for the stand-ins among them.
        secrets: what the Secrets hold that others make: the files of each, by its name.
    """

    podman: Podman
    around: Surroundings
    folder: Path
    documents: list[Document]
    images: Mapping[str, str]
    commands: Mapping[str, list[str]]
    secrets: Mapping[str, Mapping[str, str]]
    mounted: dict[str, MountedSecret] = field(default_factory=dict)
    _pods: int = 0

    @property
    def name(self) -> str:
        """The pod's."""
        return f"{workload(self.documents)['metadata']['name']}-0"

    @property
    def spec(self) -> Document:
        """The pod's, as rendered."""
        spec: Document = workload(self.documents)["spec"]["template"]["spec"]
        return spec

    @property
    def group(self) -> int:
        """What the volumes belong to."""
        group: int = self.spec["securityContext"]["fsGroup"]
        return group

    @contextmanager
    def pod(self) -> Iterator[Pod]:
        """Start a pod with empty volumes, and its network before its containers."""
        self._pods += 1
        folder = self.folder / str(self._pods)
        folder.mkdir()
        manifest = folder / "pod.yaml"
        name = self.podman.new_name(self.name)
        manifest.write_text(yaml.safe_dump_all(self._manifest(folder, name)))
        self.podman.run("kube", "play", "--network=none", "--start=false", manifest)
        infra = json.loads(self.podman.run("pod", "inspect", name))["InfraContainerID"]
        self.podman.run("start", infra)
        try:
            with named(self.podman.process(infra) / "ns/net", f"pod-{os.getpid()}-{name}") as host:
                self.around.connect(host)
                host.set_sysctls(self.spec["securityContext"]["sysctls"])
                pod = Pod(self, name, host)
                # The init container ends first; what it says is kept in a log.
                started = self.podman.try_to("pod", "start", name)
                assert started.returncode == 0, f"{started.stderr}\n{pod.log('cleanup')[-2000:]}"
                yield pod
        finally:
            self.podman.run("pod", "rm", "--force", "--time", "0", name)

    def _manifest(self, folder: Path, name: str) -> list[Document]:
        spec = copy.deepcopy(self.spec)
        spec["volumes"] = [
            {"name": volume["name"], "hostPath": {"path": str(path), "type": "Directory"}}
            for volume, path in self._volumes(folder)
        ]
        there = {volume["name"] for volume in spec["volumes"]}
        context = spec["securityContext"]
        # What the group of the volumes is for a process.
        context["supplementalGroups"] = [context.pop("fsGroup")]
        del context["fsGroupChangePolicy"], context["sysctls"], spec["enableServiceLinks"]
        # podman would start an init container again that ended well.
        spec["restartPolicy"] = "OnFailure"
        for each, container in containers(spec).items():
            # Ports of a container are information; podman takes them for the machine's.
            for key in ("ports", *PROBES):
                container.pop(key, None)
            container["image"] = self.images.get(each, container["image"])
            if each in self.commands:
                container["command"] = self.commands[each]
            container["volumeMounts"] = [mount for mount in container["volumeMounts"] if mount["name"] in there]
            for variable in container.get("env", []):
                path = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
                if path is not None:
                    del variable["valueFrom"]
                    variable["value"] = self._field(path)
        metadata = {
            "name": name,
            "labels": workload(self.documents)["spec"]["template"]["metadata"]["labels"],
            "annotations": {"io.podman.annotations.init.container.type": "always"},
        }
        maps = of_kind(self.documents, "ConfigMap")
        return [*maps, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}]

    def _field(self, path: str) -> str:
        namespace: str = workload(self.documents)["metadata"]["namespace"]
        return {"metadata.name": self.name, "metadata.namespace": namespace, "metadata.uid": f"uid-{self._pods}"}[path]

    def _volumes(self, folder: Path) -> Iterator[tuple[Document, Path]]:
        """Every volume but the token's, made and filled.

        Source: Kubernetes, pkg/volume/emptydir and pkg/volume/volume_linux.go: 0777, then the group and its bit.
        """
        for claim in workload(self.documents)["spec"].get("volumeClaimTemplates", []):
            path = self.folder / f"claim-{claim['metadata']['name']}"
            path.mkdir(exist_ok=True)
            os.chown(path, 0, self.group)
            path.chmod(0o2775)
            yield {"name": claim["metadata"]["name"]}, path
        for volume in self.spec["volumes"]:
            name: str = volume["name"]
            path = folder / f"volume-{name}"
            if "emptyDir" in volume:
                in_memory = volume["emptyDir"].get("medium") == "Memory"
                path = folder / f"{'memory' if in_memory else 'disk'}-{name}"
                path.mkdir()
                os.chown(path, 0, self.group)
                path.chmod(0o2777)
                if in_memory:
                    # Where podman sees it, and so gone with podman.
                    mount: list[str | Path] = [
                        "mount",
                        "-t",
                        "tmpfs",
                        "-o",
                        f"mode=2777,gid={self.group}",
                        "tmpfs",
                        path,
                    ]
                    run("nsenter", f"--target={self.podman.init}", "--mount", "--", *mount)
            elif "secret" in volume:
                # The group may read whatever the mode says: that is what it is for.
                mode = volume["secret"].get("defaultMode", 0o644) | 0o440
                self.mounted[name] = MountedSecret(path, mode)
                self.mounted[name].write(dict(self.secrets[volume["secret"]["secretName"]]), owner=self.group)
            elif "configMap" in volume:
                (data,) = [
                    document["data"]
                    for document in of_kind(self.documents, "ConfigMap")
                    if document["metadata"]["name"] == volume["configMap"]["name"]
                ]
                path.mkdir()
                for key, text in data.items():
                    (path / key).write_text(text)
            else:
                continue
            yield volume, path


@dataclass(frozen=True)
class Pod:
    """A pod that runs."""

    kubelet: Kubelet
    name: str
    host: Host

    def container(self, name: str) -> str:
        """A container's name for podman."""
        return f"{self.name}-{name}"

    def log(self, name: str) -> str:
        """What a container said."""
        done = self.kubelet.podman.try_to("logs", self.container(name))
        return done.stdout + done.stderr

    def events(self, name: str) -> list[dict[str, Any]]:
        """What one of our commands logged."""
        return [json.loads(line) for line in self.log(name).splitlines() if line.startswith("{")]

    def kill(self) -> None:
        """As when its cluster node loses power: nobody says good-bye."""
        self.kubelet.podman.run("pod", "kill", self.name)

    def probe(self, name: str, kind: str) -> bool:
        """Whether a container's probe passes, run as it stands in the manifest."""
        container = containers(self.kubelet.spec)[name]
        probe = container[kind]
        if "exec" in probe:
            command = ["exec", self.container(name), *probe["exec"]["command"]]
            return self.kubelet.podman.try_to(*command).returncode == 0
        asked = probe["httpGet"]
        named = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
        port = named.get(asked["port"], asked["port"])
        answer = self.kubelet.around.cluster.ask(f"http://192.0.2.1:{port}{asked['path']}")
        return 200 <= answer.status < 400
