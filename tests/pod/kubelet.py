"""A minimal kubelet, which runs a rendered pod with `podman kube play`.

It implements what the kubelet does and podman 4.3 does not: the content and group of volumes, sysctls, and variables
from fields of the pod. Tests run the probes explicitly. It does not implement native sidecars, the service account
token, size limits of volumes, container restarts and network policies, so tests that use it do not cover them.
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
from tests.pod.namespaces import private_init
from tests.pod.network import POD_ADDRESSES, TIMEOUT_S, Host, Hosts, named_namespace, run
from tests.pod.rendering import Document, claim_names, config_map_data, containers, of_kind, pod_spec, workload_resource

PROBES: Final = ("startupProbe", "readinessProbe", "livenessProbe")

STORAGE: Final = "/mnt"
"""The folder of podman's storage, a tmpfs in a private mount namespace. Podman requires a short path."""

CONFIGURATION: Final = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
"""podman's configuration, with ulimits that can be set without privileges.

The runtime is runc, because crun (podman's default) needs features that some kernels lack.
"""


@dataclass
class Podman:
    """podman with private storage, in private PID and mount namespaces.

    Attributes:
        folder: for podman's configuration.
        init_pid: the process id of the init process of the namespaces.
    """

    folder: Path
    init_pid: int
    _numbers: Iterator[int] = field(default_factory=count)

    def new_name(self, pod: str) -> str:
        """Return a unique name for a pod, because several tests run the same pod."""
        return f"{pod}-{next(self._numbers)}"

    def command(self, *words: str | Path) -> list[str]:
        """Return a podman command line that runs in the namespaces."""
        return [
            *("nsenter", f"--target={self.init_pid}", "--pid", "--mount", "--", "podman"),
            *(f"--{name}={STORAGE}/{name}" for name in ("root", "runroot", "tmpdir", "volumepath")),
            *map(str, words),
        ]

    @property
    def environment(self) -> dict[str, str]:
        """The environment, with a private configuration instead of the machine's."""
        return {**os.environ, "CONTAINERS_CONF": str(self.folder / "containers.conf"), "TMPDIR": STORAGE}

    def run(self, *words: str | Path) -> str:
        """Run a podman command that must succeed, and return its standard output."""
        return run(*self.command(*words), env=self.environment, timeout=TIMEOUT_S * 3)

    def try_to(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a podman command that may fail, and return its exit status and output."""
        return subprocess.run(
            self.command(*words),
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )

    def process(self, container: str) -> Path:
        """Return the directory in /proc of a container's first process. The path is valid outside of the namespaces."""
        pid = self.run("inspect", "--format", "{{.State.Pid}}", container).strip()
        return Path(f"/proc/{self.init_pid}/root/proc/{pid}")


@contextmanager
def podman(folder: Path) -> Iterator[Podman]:
    """Set up podman for the duration of the block, and remove everything afterwards."""
    (folder / "containers.conf").write_text(CONFIGURATION)
    with private_init() as init_pid:
        runtime = Podman(folder, init_pid)
        # A tmpfs is fast, and the kernel deletes it with the mount namespace.
        run("nsenter", f"--target={init_pid}", "--mount", "--", "mount", "-t", "tmpfs", "tmpfs", STORAGE)
        yield runtime
        runtime.try_to("pod", "rm", "--all", "--force", "--time", "0")
        runtime.try_to("rm", "--all", "--force", "--time", "0")


@dataclass
class Kubelet:
    """Runs the pods of one workload, one at a time.

    Args:
        folder: the folder for the manifests and volumes of the pods.
        documents: the rendered manifests.
        images: for some container names, the image that replaces the rendered image.
        commands: for some container names, the command that replaces the rendered command.
        secrets: the content of each Secret that an operator creates, by name.
    """

    podman: Podman
    hosts: Hosts
    folder: Path
    documents: list[Document]
    images: Mapping[str, str]
    commands: Mapping[str, list[str]]
    secrets: Mapping[str, Mapping[str, str]]
    _pod_count: int = 0

    @property
    def name(self) -> str:
        """The pod's name."""
        return f"{workload_resource(self.documents)['metadata']['name']}-0"

    @property
    def spec(self) -> Document:
        """The pod's spec, as rendered."""
        return pod_spec(self.documents)

    @property
    def group(self) -> int:
        """The group id of the volumes."""
        group: int = self.spec["securityContext"]["fsGroup"]
        return group

    @contextmanager
    def pod(self) -> Iterator[Pod]:
        """Run a new pod for the duration of the block. Its network is set up before its containers start."""
        self._pod_count += 1
        folder = self.folder / str(self._pod_count)
        folder.mkdir()
        manifest = folder / "pod.yaml"
        name = self.podman.new_name(self.name)
        manifest.write_text(yaml.safe_dump_all(self._manifest(folder, name)))
        self.podman.run("kube", "play", "--network=none", "--start=false", manifest)
        infra = json.loads(self.podman.run("pod", "inspect", name))["InfraContainerID"]
        self.podman.run("start", infra)
        try:
            with named_namespace(self.podman.process(infra) / "ns/net", f"pod-{os.getpid()}-{name}") as host:
                self.hosts.connect(host)
                host.set_sysctls(self.spec["securityContext"]["sysctls"])
                pod = Pod(self, name, host)
                started = self.podman.try_to("pod", "start", name)
                assert started.returncode == 0, f"{started.stderr}\n{pod.log('cleanup')[-2000:]}"
                yield pod
        finally:
            self.podman.run("pod", "rm", "--force", "--time", "0", name)

    def _manifest(self, folder: Path, name: str) -> list[Document]:
        """Return a manifest of the pod that podman accepts, with the pod's ConfigMaps."""
        spec = copy.deepcopy(self.spec)
        spec["volumes"] = [
            {"name": volume["name"], "hostPath": {"path": str(path), "type": "Directory"}}
            for volume, path in self._volumes(folder)
        ]
        volume_names = {volume["name"] for volume in spec["volumes"]}
        context = spec["securityContext"]
        # The kubelet adds fsGroup to the supplemental groups of every process. podman 4.3 does not implement it.
        context["supplementalGroups"] = [context.pop("fsGroup")]
        del context["fsGroupChangePolicy"], context["sysctls"], spec["enableServiceLinks"]
        # With the policy Always, podman restarts init containers that have succeeded.
        spec["restartPolicy"] = "OnFailure"
        for container_name, container in containers(spec).items():
            # podman would publish the ports on the test machine. Tests run the probes themselves.
            for key in ("ports", *PROBES):
                container.pop(key, None)
            container["image"] = self.images.get(container_name, container["image"])
            if container_name in self.commands:
                container["command"] = self.commands[container_name]
            container["volumeMounts"] = [mount for mount in container["volumeMounts"] if mount["name"] in volume_names]
            for variable in container.get("env", []):
                path = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
                if path is not None:
                    del variable["valueFrom"]
                    variable["value"] = self._field(path)
        metadata = {
            "name": name,
            "labels": workload_resource(self.documents)["spec"]["template"]["metadata"]["labels"],
            "annotations": {"io.podman.annotations.init.container.type": "always"},
        }
        maps = of_kind(self.documents, "ConfigMap")
        return [*maps, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}]

    def _field(self, path: str) -> str:
        """Return the value of a field of the pod that a variable refers to."""
        namespace: str = workload_resource(self.documents)["metadata"]["namespace"]
        return {"metadata.name": self.name, "metadata.namespace": namespace, "metadata.uid": f"uid-{self._pod_count}"}[
            path
        ]

    def _volumes(self, folder: Path) -> Iterator[tuple[Document, Path]]:
        """Create and fill all volumes except the service account token. Yield each volume and its folder.

        The folders have the modes that Kubernetes sets in pkg/volume/emptydir and pkg/volume/volume_linux.go. With an
        fsGroup, the kubelet sets the group and the setgid bit of a volume.
        """
        for claim in claim_names(self.documents):
            path = self.folder / f"claim-{claim}"
            path.mkdir(exist_ok=True)
            os.chown(path, 0, self.group)
            path.chmod(0o2775)
            yield {"name": claim}, path
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
                    # The mount is in podman's mount namespace, so the kernel removes it with this namespace.
                    mount = ("mount", "-t", "tmpfs", "-o", f"mode=2777,gid={self.group}", "tmpfs", path)
                    run("nsenter", f"--target={self.podman.init_pid}", "--mount", "--", *mount)
            elif "secret" in volume:
                # With an fsGroup, the kubelet adds read permission for the owner and the group to every mode.
                mode = volume["secret"].get("defaultMode", 0o644) | 0o440
                MountedSecret(path, mode).write(dict(self.secrets[volume["secret"]["secretName"]]), group=self.group)
            elif "configMap" in volume:
                path.mkdir()
                for key, text in config_map_data(self.documents, volume["configMap"]["name"]).items():
                    (path / key).write_text(text)
            else:
                continue
            yield volume, path


@dataclass(frozen=True)
class Pod:
    """A running pod."""

    kubelet: Kubelet
    name: str
    host: Host

    def container(self, name: str) -> str:
        """Return podman's name for a container of this pod."""
        return f"{self.name}-{name}"

    def log(self, name: str) -> str:
        """Return a container's log."""
        done = self.kubelet.podman.try_to("logs", self.container(name))
        return done.stdout + done.stderr

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the events that cleanup or dns-watch logged."""
        return [json.loads(line) for line in self.log(name).splitlines() if line.startswith("{")]

    def kill(self) -> None:
        """Kill all containers without a graceful stop, as when the cluster node loses power."""
        self.kubelet.podman.run("pod", "kill", self.name)

    def probe(self, name: str, kind: str) -> bool:
        """Run a container's probe as the manifest defines it, and return True if it passes."""
        container = containers(self.kubelet.spec)[name]
        probe = container[kind]
        if "exec" in probe:
            command = ["exec", self.container(name), *probe["exec"]["command"]]
            return self.kubelet.podman.try_to(*command).returncode == 0
        port, path = probe["httpGet"]["port"], probe["httpGet"]["path"]
        numbers = {each["name"]: each["containerPort"] for each in container.get("ports", [])}
        url = f"http://{POD_ADDRESSES[0]}:{numbers.get(port, port)}{path}"
        response = self.kubelet.hosts.cluster.request(url)
        return 200 <= response.status < 400
