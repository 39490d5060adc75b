"""A cluster node in namespaces of the test machine: containerd, kubelet and kube-proxy.

The cluster node has its own PID, mount and network namespaces and cgroups, and a folder as its disk. The API server
runs in the same network namespace. `ClusterNode.stop` ends all processes and mounts, like a power failure.
`ClusterNode.start` boots the cluster node again with the same disk.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

import yaml

from tests.cluster.api_server import PROGRAMS_VARIABLE, ApiServer
from tests.pod.namespaces import private_init
from tests.pod.network import Host, run
from tests.real.programs import BackgroundProcess, eventually

NODE_NAME: Final = "node-1"
NODE_ADDRESS: Final = "10.244.0.1"
"""The address of the cluster node, the API server and the DNS server, and the gateway of the pods."""
POD_NETWORK: Final = "10.244.0.0/16"

CNI: Final = Path("/usr/lib/cni")
SOCKET: Final = "/run/containerd/containerd.sock"

PROGRAMS: Final = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")
_COMMANDS: Final = ("catatonit", "conntrack", "containerd", "ctr", "ip", "iptables", "nsenter", "openssl", "runc")
_PACKAGES: Final = (
    "catatonit conntrack containerd containernetworking-plugins etcd-server iproute2 iptables openssl runc"
)

_SYSCTLS: Final = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""The values that the kubelet writes to /proc/sys (setupKernelTunables in container_manager_linux.go of Kubernetes).

These sysctls have no namespace, so the kubelet would change the test machine. Files with these values are mounted over
them, so the kubelet finds the values that it wants.
"""

_CPU_WEIGHTS: Final = {"cpu.shares": "20480", "cpu.weight": "2000"}
"""Twenty times the default weight of a cgroup. On a busy machine, the pods would otherwise get too little CPU time."""

_MOUNT_SCRIPT: Final = """
mount --make-rshared /
mount --bind "$1/disk" /var/lib
mount -t tmpfs -o mode=0755 tmpfs /run
mount --bind "$1/log" /var/log
mkdir -p /run/lock
cd "$1/tunables"
find . -type f | while read -r name; do mount --bind "$name" "/proc/sys/$name"; done
"""
"""Mounts the folders of the node at the usual paths, so that hostPath volumes do not reach the test machine's files."""


def missing_programs() -> str:
    """Return a message that says what is missing to run a node; "" if nothing is."""
    folder = os.environ.get(PROGRAMS_VARIABLE, "")
    programs = [name for name in PROGRAMS if not (Path(folder) / name).exists()]
    if not folder or programs:
        return f"set {PROGRAMS_VARIABLE} to a folder with {', '.join(PROGRAMS)}, built from k8s.io/kubernetes"
    commands = [name for name in (*_COMMANDS, "etcd") if shutil.which(name) is None]
    if sys.platform != "linux" or os.geteuid() != 0 or commands or not (CNI / "bridge").exists():
        required = ", ".join(commands or _COMMANDS)
        return f"needs root on Linux, the CNI plugins in {CNI}, and {required}: on Debian, install {_PACKAGES}"
    return ""


class ClusterNode:
    """The only node of a cluster.

    Args:
        folder: an empty folder for the disk, the logs and the configuration.
        host: the network namespace, in which the API server also runs.
        server: the API server.

    Attributes:
        host: the network namespace.
        disk: the folder that is /var/lib of the node.
        init_pid: the process id of the node's init process; 0 before the first start.
    """

    def __init__(self, folder: Path, host: Host, server: ApiServer) -> None:
        self.host = host
        self.init_pid = 0
        self.disk = folder / "disk"
        self._folder = folder
        self._server = server
        self._binaries = Path(os.environ[PROGRAMS_VARIABLE])
        self._stack = ExitStack()
        self._processes: dict[str, BackgroundProcess] = {}
        self._cgroup = f"tailscale-lifecycle-{host.name}"
        for name in ("disk", "log", "cni"):
            (folder / name).mkdir()
        for name, value in _SYSCTLS.items():
            (folder / "tunables" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "tunables" / name).write_text(f"{value}\n")
        self._configure()

    # --- Configuration ------------------------------------------------------------------------------

    def _configure(self) -> None:
        runtime = f"""
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.10"
  # Processes without CAP_SYS_RESOURCE, such as those in a container, cannot lower their OOM score.
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{CNI}"
  conf_dir = "{self._folder}/cni"
"""
        (self._folder / "containerd.toml").write_text(runtime)
        bridge = {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": POD_NETWORK, "rangeStart": "10.244.1.0", "gateway": NODE_ADDRESS}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
        plugins = [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}]
        network = {"cniVersion": "0.4.0", "name": "pods", "plugins": plugins}
        (self._folder / "cni/10-pods.conflist").write_text(json.dumps(network))
        kubelet: dict[str, Any] = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            # The API server has no client certificate, so the kubelet accepts all requests. The kubelet is reachable
            # only in this network namespace.
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "address": "0.0.0.0",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self._cgroup}",
            "clusterDNS": [NODE_ADDRESS],
            "clusterDomain": "cluster.local",
            "containerRuntimeEndpoint": f"unix://{SOCKET}",
            "failSwapOn": False,
            "maxPods": 250,
            # The kubelet must not evict pods or delete images when the test machine is short of memory or disk space.
            "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,
        }
        if self._server.version >= (1, 31):
            # Start on a test machine with cgroup v1, too.
            kubelet["failCgroupV1"] = False
        (self._folder / "kubelet.yaml").write_text(yaml.safe_dump(kubelet))
        proxy = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "clientConnection": {"kubeconfig": str(self._server.kubeconfig)},
            "clusterCIDR": POD_NETWORK,
            "hostnameOverride": NODE_NAME,
            # With 0, kube-proxy does not change these settings of the test machine.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        }
        (self._folder / "proxy.yaml").write_text(yaml.safe_dump(proxy))

    # --- Start and stop -----------------------------------------------------------------------------

    def start(self) -> None:
        """Boot the node, and wait until containerd responds. The kubelet does not run yet."""
        for cgroup in self.cgroups():
            cgroup.mkdir(exist_ok=True)
            for name, weight in _CPU_WEIGHTS.items():
                if (cgroup / name).exists():
                    (cgroup / name).write_text(weight)
        self._stack.callback(self._remove_cgroups)
        self.init_pid = self._stack.enter_context(private_init("nsenter", f"--net=/run/netns/{self.host.name}"))
        run(*self.command("sh", "-euc", _MOUNT_SCRIPT, "sh", self._folder))
        self._start("containerd", "--config", self._folder / "containerd.toml")
        eventually(lambda: self._succeeds(*self.ctr("version")), "containerd", details=lambda: self.log("containerd"))

    def start_kubelet(self) -> None:
        """Start the kubelet and kube-proxy. Do not wait until the node is ready."""
        self._start(
            self._binaries / "kubelet",
            f"--config={self._folder / 'kubelet.yaml'}",
            f"--kubeconfig={self._server.kubeconfig}",
            f"--node-ip={NODE_ADDRESS}",
            f"--hostname-override={NODE_NAME}",
        )
        self._start(self._binaries / "kube-proxy", f"--config={self._folder / 'proxy.yaml'}")

    def stop(self) -> None:
        """End all processes and mounts of the node, like a power failure. Its disk remains."""
        self._stack.close()
        for process in self._processes.values():
            process.stop()
        self._processes.clear()

    def reboot(self) -> None:
        """Stop the node, and boot it again."""
        self.stop()
        self.start()
        self.start_kubelet()

    def _start(self, program: str | Path, *options: str | Path) -> None:
        name = Path(program).name
        self._processes[name] = BackgroundProcess(
            self.command(program, *options),
            log=self._folder / f"{name}.log",
            environment=os.environ,
            folder=self._folder,
        )

    def log(self, name: str) -> str:
        """Return the end of the log of a program."""
        return (self._folder / f"{name}.log").read_text(errors="replace")[-4000:]

    # --- Commands -----------------------------------------------------------------------------------

    def command(self, *words: str | Path) -> list[str | Path]:
        """Return a command line that runs on the node."""
        return ["nsenter", f"--target={self.init_pid}", "--pid", "--mount", "--net", "--", *words]

    def ctr(self, *words: str | Path) -> list[str | Path]:
        """Return a command line of containerd's client, for the images and containers of Kubernetes."""
        return self.command("ctr", f"--address={SOCKET}", "--namespace=k8s.io", *words)

    def load(self, archive: Path) -> None:
        """Import the images of an archive."""
        run(*self.ctr("images", "import", archive))

    def _succeeds(self, *command: str | Path) -> bool:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    # --- Cgroups ------------------------------------------------------------------------------------

    def cgroups(self) -> list[Path]:
        """Return the node's cgroup in each hierarchy of cgroup v1, or in the only hierarchy of cgroup v2."""
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        return [Path(mount[1]) / self._cgroup for mount in mounts if mount[2] in {"cgroup", "cgroup2"}]

    def _remove_cgroups(self) -> None:
        def are_removed() -> bool:
            for top in self.cgroups():
                for folder, _, _ in os.walk(top, topdown=False):
                    with suppress(OSError):
                        Path(folder).rmdir()
            return not any(top.exists() for top in self.cgroups())

        eventually(are_removed, "removed cgroups")
