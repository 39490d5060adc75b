"""A real Headscale and the Cloudflare simulator for the pods of a cluster.

Headscale runs in the namespace `headscale`, as the Service and with the labels that the manifests expect. Its https
URL is the login server that deploy/ ships, behind an nginx with a certificate that the tailscale image trusts. The
simulator listens on the node's address.

The namespace `services` has the Pod Security label and the Secrets that docs/add-a-service.md asks for.
`Tailnet.deploy` is a copy of deploy/ with the URL of the simulator, and otherwise as shipped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from tests.cluster.cluster import STARTED_S, Cluster, Document
from tests.cluster.images import HEADSCALE, NGINX
from tests.cluster.node import ADDRESS
from tests.pod.reference import USER, configure
from tests.pod.rendering import DOMAIN, SITE, copy_deploy, read_env_file
from tests.real.programs import eventually
from tests.real.server import configuration
from tests.simulators.cloudflare import CloudflareSimulator
from tests.simulators.dns import Record
from tests.simulators.serve import serve

NAMESPACE: Final = "headscale"
URL: Final = SITE["LOGIN_SERVER"]
NAME: Final = URL.removeprefix("https://")
CLUSTER_IP: Final = "10.96.0.20"
FOLDER: Final = "/var/lib/headscale"

_NGINX: Final = """
worker_processes 1;
pid /tmp/nginx.pid;
error_log stderr warn;
events {}
http {
    access_log off;
    client_body_temp_path /tmp/body;
    proxy_temp_path /tmp/proxy;
    fastcgi_temp_path /tmp/fastcgi;
    uwsgi_temp_path /tmp/uwsgi;
    scgi_temp_path /tmp/scgi;
    map $http_upgrade $connection_upgrade {
        default upgrade;
        "" close;
    }
    server {
        listen 8443 ssl;
        ssl_certificate /tls/tls.crt;
        ssl_certificate_key /tls/tls.key;
        location / {
            proxy_pass http://127.0.0.1:8080;
            proxy_http_version 1.1;
            proxy_set_header Host $host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_buffering off;
            proxy_read_timeout 1h;
            proxy_send_timeout 1h;
        }
    }
}
"""


@dataclass(frozen=True)
class Tailnet:
    """The tailnet of a cluster.

    Attributes:
        cloudflare: the zone of the pods' records.
        zone_id: its id.
        cloudflare_url: the URL of the simulated API, the value of CLOUDFLARE_API_URL.
        deploy: a copy of deploy/, to apply and to change.
        certificate: the certificate and key for all names of the domain; it is its own authority.
    """

    cluster: Cluster
    cloudflare: CloudflareSimulator
    zone_id: str
    cloudflare_url: str
    deploy: Path
    certificate: tuple[str, str]

    def headscale(self, *arguments: str) -> Any:
        """Run a command of Headscale's CLI, and return its JSON output."""
        command = ("-n", NAMESPACE, "exec", "deploy/headscale", "-c", "headscale", "--", "headscale", *arguments)
        return json.loads(self.cluster.kubectl(*command, "-o", "json"))

    def nodes(self, hostname: str) -> list[Document]:
        """Return the nodes with a hostname, oldest first."""
        nodes = [node for node in self.headscale("nodes", "list") or [] if node["name"] == hostname]
        return sorted(nodes, key=lambda node: int(node["id"]))

    def records(self, name: str) -> list[Record]:
        """Return the records with a name."""
        return self.cloudflare.records(self.zone_id, name)

    def wait_for_record(self, name: str) -> Document:
        """Wait until a name has exactly one node, and one record with its address. Return the node."""

        def find() -> Document | None:
            match self.nodes(name), self.records(name):
                case [node], [record] if record.content in node["ip_addresses"]:
                    found: Document = node
                    return found
            return None

        return eventually(
            find,
            f"one node and its record at {name}",
            details=lambda: f"{self.nodes(name)}\n{self.records(name)}",
            timeout_s=STARTED_S,
        )

    def address(self, name: str) -> str | None:
        """Return the address of a record, for the cluster's DNS."""
        return next((record.content for record in self.records(name) if record.type == "A"), None)

    def prepare(self, namespace: str) -> None:
        """Create a namespace with its label and Secrets, as docs/add-a-service.md describes."""
        cluster = self.cluster
        cluster.kubectl("create", "namespace", namespace)
        labels = ("pod-security.kubernetes.io/enforce=privileged", "pod-security.kubernetes.io/warn=restricted")
        cluster.kubectl("label", "namespace", namespace, *labels)
        key = self.headscale("apikeys", "create", "--expiration", "365d")
        secret = {"HEADSCALE_API_KEY": key, "CLOUDFLARE_API_TOKEN": self.cloudflare.token}
        tls = dict(zip(("tls.crt", "tls.key"), self.certificate, strict=True))
        cluster.apply(
            _object("Secret", "lifecycle", namespace, stringData=secret),
            _object("Secret", "wildcard-tls", namespace, type="kubernetes.io/tls", stringData=tls),
        )


@contextmanager
def tailnet_in(cluster: Cluster, certificate: tuple[str, str]) -> Iterator[Tailnet]:
    """Start Headscale in a cluster, and prepare the namespace `services`."""
    cloudflare = CloudflareSimulator()
    zone_id = cloudflare.add_zone(DOMAIN)
    with ExitStack() as stack:
        with cluster.host.inside():
            url = stack.enter_context(serve(cloudflare, host=ADDRESS))
        repository = copy_deploy(cluster.folder / "repository")
        settings = {"CLOUDFLARE_API_URL": f"{url}/client/v4"}
        configure(repository, **settings)
        for name in ("inject/settings.env", "prune/prune.env"):
            file = repository / "deploy" / name
            file.write_text(_env(read_env_file(file) | settings))
        made = Tailnet(cluster, cloudflare, zone_id, settings["CLOUDFLARE_API_URL"], repository / "deploy", certificate)
        cluster.names[NAME] = CLUSTER_IP
        cluster.lookups.append(made.address)
        cluster.kubectl("create", "namespace", NAMESPACE)
        cluster.apply(*_server(certificate))
        cluster.kubectl("-n", NAMESPACE, "rollout", "status", "deployment/headscale", f"--timeout={STARTED_S:g}s")
        made.headscale("users", "create", USER)
        made.prepare("services")
        yield made


def _server(certificate: tuple[str, str]) -> Iterator[Document]:
    """Iterate over the objects of Headscale."""
    ports = (8080, 9090, 50443, 3478)
    config, relays = configuration(URL, FOLDER, ports=ports, relay=URL, listen="0.0.0.0", address=CLUSTER_IP)
    config["derp"]["paths"] = ["/etc/headscale/derp.yaml"]
    config["unix_socket"] = "/var/run/headscale/headscale.sock"
    files = {"config.yaml": yaml.safe_dump(config), "derp.yaml": yaml.safe_dump(relays), "nginx.conf": _NGINX}
    labels = {"app.kubernetes.io/name": "headscale"}
    yield _object("ConfigMap", "headscale", NAMESPACE, data=files)
    tls = dict(zip(("tls.crt", "tls.key"), certificate, strict=True))
    yield _object("Secret", "tls", NAMESPACE, type="kubernetes.io/tls", stringData=tls)
    service_ports = [
        {"name": "http", "port": 8080, "targetPort": 8080},
        {"name": "https", "port": 443, "targetPort": 8443},
        {"name": "stun", "port": 3478, "targetPort": 3478, "protocol": "UDP"},
    ]
    yield _object(
        "Service", "headscale", NAMESPACE, spec={"clusterIP": CLUSTER_IP, "selector": labels, "ports": service_ports}
    )
    volumes: dict[str, Document] = {
        "config": {"configMap": {"name": "headscale"}},
        "tls": {"secret": {"secretName": "tls", "defaultMode": 0o444}},
        # On the node's disk, so that the database outlives the pod.
        "data": {"hostPath": {"path": FOLDER, "type": "DirectoryOrCreate"}},
        "run": {"emptyDir": {}},
    }
    containers = [
        {
            "name": "headscale",
            "image": HEADSCALE,
            "args": ["serve"],
            # On a busy machine, shorter limits would take the server out of its Service.
            "readinessProbe": {
                "httpGet": {"path": "/health", "port": 8080},
                "periodSeconds": 1,
                "timeoutSeconds": 15,
                "failureThreshold": 10,
            },
            "volumeMounts": [
                {"name": "config", "mountPath": "/etc/headscale"},
                {"name": "data", "mountPath": FOLDER},
                {"name": "run", "mountPath": "/var/run/headscale"},
            ],
        },
        {
            "name": "tls",
            "image": NGINX,
            "command": ["nginx", "-e", "stderr", "-c", "/etc/headscale/nginx.conf", "-g", "daemon off;"],
            "volumeMounts": [
                {"name": "config", "mountPath": "/etc/headscale"},
                {"name": "tls", "mountPath": "/tls"},
            ],
        },
    ]
    pod = {
        "containers": containers,
        "volumes": [{"name": name, **volume} for name, volume in volumes.items()],
        # The server waits for open polls.
        "terminationGracePeriodSeconds": 2,
    }
    yield _object(
        "Deployment",
        "headscale",
        NAMESPACE,
        api="apps/v1",
        spec={
            "selector": {"matchLabels": labels},
            "strategy": {"type": "Recreate"},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    )


def _object(kind: str, name: str, namespace: str, *, api: str = "v1", **fields: Any) -> Document:
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name, "namespace": namespace}, **fields}


def _env(variables: dict[str, str]) -> str:
    return "".join(f"{name}={value}\n" for name, value in variables.items())
