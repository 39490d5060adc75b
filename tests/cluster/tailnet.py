"""Run a real Headscale and a simulated Cloudflare for the pods of a cluster.

Headscale runs in the namespace `headscale`, with the Service and the labels that the manifests expect. nginx in the
same pod serves the login server's URL, with a certificate that the tailscale image trusts. The simulated Cloudflare
listens on the address of the cluster node.

The namespace `services` has the labels and the Secrets that docs/add-a-service.md describes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from tests.cluster.cluster import START_TIMEOUT_S, Cluster, Document, manifest
from tests.cluster.images import HEADSCALE, NGINX
from tests.cluster.node import NODE_ADDRESS
from tests.pod.rendering import DOMAIN, SITE, USER, configure, copy_deploy, read_env_file
from tests.real.programs import eventually
from tests.real.proxy import NGINX_START
from tests.real.server import configuration
from tests.simulators.cloudflare import CloudflareSimulator
from tests.simulators.dns import Record
from tests.simulators.serve import serve

HEADSCALE_NAMESPACE: Final = "headscale"
LOGIN_URL: Final = SITE["LOGIN_SERVER"]
LOGIN_NAME: Final = LOGIN_URL.removeprefix("https://")
HEADSCALE_CLUSTER_IP: Final = "10.96.0.20"
DATA_FOLDER: Final = "/var/lib/headscale"

# NGINX_START opens the block `http`. It is a format string, so `format` makes its double braces single.
_NGINX: Final = (
    NGINX_START.format()
    + """
    server {
        listen 8443 ssl;
        ssl_certificate /tls/tls.crt;
        ssl_certificate_key /tls/tls.key;
        location / {
            proxy_pass http://127.0.0.1:8080;
        }
    }
}
"""
)


@dataclass(frozen=True)
class Tailnet:
    """Headscale in a cluster, and the simulated Cloudflare.

    Attributes:
        cloudflare: the Cloudflare simulator, with the zone of the pods' records.
        zone_id: the id of this zone.
        cloudflare_url: the URL of the simulated API, the value of CLOUDFLARE_API_URL.
        deploy_folder: a copy of deploy/ with the URL of the simulator. Tests may change its files.
        certificate: a self-signed certificate for all names of the domain, and its key.
    """

    cluster: Cluster
    cloudflare: CloudflareSimulator
    zone_id: str
    cloudflare_url: str
    deploy_folder: Path
    certificate: tuple[str, str]

    def run_headscale(self, *arguments: str) -> Any:
        """Run a command of Headscale's CLI, and return its JSON output."""
        command = ("exec", "deploy/headscale", "-c", "headscale", "--", "headscale", *arguments, "-o", "json")
        return json.loads(self.cluster.kubectl("-n", HEADSCALE_NAMESPACE, *command))

    def nodes(self, hostname: str) -> list[Document]:
        """Return the nodes with this hostname, oldest first."""
        nodes = [node for node in self.run_headscale("nodes", "list") or [] if node["name"] == hostname]
        return sorted(nodes, key=lambda node: int(node["id"]))

    def records(self, name: str) -> list[Record]:
        """Return the records with this name."""
        return self.cloudflare.records(self.zone_id, name)

    def wait_for_published_node(self, name: str, hostname: str = "") -> Document:
        """Wait until a name has exactly one node, and one record with its address. Return the node.

        Args:
            name: the name of the record.
            hostname: the hostname of the node; "" = the name.
        """

        def find() -> Document | None:
            match self.nodes(hostname or name), self.records(name):
                case [node], [record] if record.content in node["ip_addresses"]:
                    result: Document = node
                    return result
            return None

        return eventually(
            find,
            f"one node and its record at {name}",
            details=lambda: f"{self.nodes(hostname or name)}\n{self.records(name)}",
            timeout_s=START_TIMEOUT_S,
        )

    def address(self, name: str) -> str | None:
        """Return the address in the A record with this name, or None."""
        return next((record.content for record in self.records(name) if record.type == "A"), None)

    def prepare_namespace(self, namespace: str) -> None:
        """Create a namespace with the labels and the Secrets that docs/add-a-service.md describes."""
        cluster = self.cluster
        cluster.kubectl("create", "namespace", namespace)
        labels = ("pod-security.kubernetes.io/enforce=privileged", "pod-security.kubernetes.io/warn=restricted")
        cluster.kubectl("label", "namespace", namespace, *labels)
        key = self.run_headscale("apikeys", "create", "--expiration", "365d")
        secret = {"HEADSCALE_API_KEY": key, "CLOUDFLARE_API_TOKEN": self.cloudflare.token}
        tls = dict(zip(("tls.crt", "tls.key"), self.certificate, strict=True))
        cluster.apply(
            manifest("Secret", "lifecycle", namespace, stringData=secret),
            manifest("Secret", "wildcard-tls", namespace, type="kubernetes.io/tls", stringData=tls),
        )


@contextmanager
def tailnet_in(cluster: Cluster, certificate: tuple[str, str]) -> Iterator[Tailnet]:
    """Start Headscale in a cluster, and prepare the namespace `services`."""
    cloudflare = CloudflareSimulator()
    zone_id = cloudflare.add_zone(DOMAIN)
    with ExitStack() as stack:
        with cluster.host.inside():
            url = stack.enter_context(serve(cloudflare, host=NODE_ADDRESS))
        repository = copy_deploy(cluster.folder / "repository")
        settings = {"CLOUDFLARE_API_URL": f"{url}/client/v4"}
        configure(repository, **settings)
        for name in ("inject/settings.env", "prune/prune.env"):
            file = repository / "deploy" / name
            file.write_text(_env(read_env_file(file) | settings))
        tailnet = Tailnet(
            cluster, cloudflare, zone_id, settings["CLOUDFLARE_API_URL"], repository / "deploy", certificate
        )
        # The cluster's DNS resolves the name of the login server and the names of the records.
        cluster.names[LOGIN_NAME] = HEADSCALE_CLUSTER_IP
        cluster.lookups.append(tailnet.address)
        cluster.kubectl("create", "namespace", HEADSCALE_NAMESPACE)
        cluster.apply(*_server(certificate))
        cluster.kubectl(
            "-n", HEADSCALE_NAMESPACE, "rollout", "status", "deployment/headscale", f"--timeout={START_TIMEOUT_S:g}s"
        )
        tailnet.run_headscale("users", "create", USER)
        tailnet.prepare_namespace("services")
        yield tailnet


def _server(certificate: tuple[str, str]) -> Iterator[Document]:
    """Iterate over the Kubernetes objects with which Headscale runs."""
    # The API, the metrics, gRPC and STUN.
    ports = (8080, 9090, 50443, 3478)
    config, relays = configuration(
        LOGIN_URL, DATA_FOLDER, ports=ports, relay=LOGIN_URL, listen="0.0.0.0", address=HEADSCALE_CLUSTER_IP
    )
    config["derp"]["paths"] = ["/etc/headscale/derp.yaml"]
    config["unix_socket"] = "/var/run/headscale/headscale.sock"
    files = {"config.yaml": yaml.safe_dump(config), "derp.yaml": yaml.safe_dump(relays), "nginx.conf": _NGINX}
    labels = {"app.kubernetes.io/name": "headscale"}
    yield manifest("ConfigMap", "headscale", HEADSCALE_NAMESPACE, data=files)
    tls = dict(zip(("tls.crt", "tls.key"), certificate, strict=True))
    yield manifest("Secret", "tls", HEADSCALE_NAMESPACE, type="kubernetes.io/tls", stringData=tls)
    service_ports = [
        {"name": "http", "port": 8080, "targetPort": 8080},
        {"name": "https", "port": 443, "targetPort": 8443},
        {"name": "stun", "port": 3478, "targetPort": 3478, "protocol": "UDP"},
    ]
    spec = {"clusterIP": HEADSCALE_CLUSTER_IP, "selector": labels, "ports": service_ports}
    yield manifest("Service", "headscale", HEADSCALE_NAMESPACE, spec=spec)
    volumes: dict[str, Document] = {
        "config": {"configMap": {"name": "headscale"}},
        "tls": {"secret": {"secretName": "tls", "defaultMode": 0o444}},
        # A hostPath volume, so that the database is kept when the pod is replaced.
        "data": {"hostPath": {"path": DATA_FOLDER, "type": "DirectoryOrCreate"}},
        "run": {"emptyDir": {}},
    }
    containers = [
        {
            "name": "headscale",
            "image": HEADSCALE,
            "args": ["serve"],
            # Under load, the probe would fail with shorter limits, and the Service would have no endpoint.
            "readinessProbe": {
                "httpGet": {"path": "/health", "port": 8080},
                "periodSeconds": 1,
                "timeoutSeconds": 15,
                "failureThreshold": 10,
            },
            "volumeMounts": [
                {"name": "config", "mountPath": "/etc/headscale"},
                {"name": "data", "mountPath": DATA_FOLDER},
                {"name": "run", "mountPath": "/var/run/headscale"},
            ],
        },
        {
            "name": "tls",
            "image": NGINX,
            "command": ["nginx", "-e", "stderr", "-p", "/tmp/", "-c", "/etc/headscale/nginx.conf", "-g", "daemon off;"],
            "volumeMounts": [
                {"name": "config", "mountPath": "/etc/headscale"},
                {"name": "tls", "mountPath": "/tls"},
            ],
        },
    ]
    pod = {
        "containers": containers,
        "volumes": [{"name": name, **volume} for name, volume in volumes.items()],
        # Before it ends, Headscale waits for long-running requests of clients. The kubelet kills it after this period.
        "terminationGracePeriodSeconds": 2,
    }
    deployment = {
        "selector": {"matchLabels": labels},
        "strategy": {"type": "Recreate"},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    yield manifest("Deployment", "headscale", HEADSCALE_NAMESPACE, api="apps/v1", spec=deployment)


def _env(variables: dict[str, str]) -> str:
    """Return the content of an env file with these variables."""
    return "".join(f"{name}={value}\n" for name, value in variables.items())
