"""Test `cleanup` with HEADSCALE_ACCESS=exec in a real cluster: the program runs Headscale's CLI in Headscale's pod."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.cluster.api_server import RefusedError
from tests.cluster.cluster import START_TIMEOUT_S, Cluster, Document, manifest
from tests.cluster.images import HEADSCALE, PATH, Image, newest_headscale, write_layer
from tests.cluster.tailnet import LOGIN_URL, Tailnet
from tests.pod.rendering import DOMAIN, USER
from tests.real.command import events_named
from tests.real.programs import eventually
from tests.real.server import configuration

DISTROLESS_IMAGE: Final = "docker.io/headscale/headscale:distroless"
LIFECYCLE_IMAGE: Final = "localhost/tailscale-lifecycle:latest"
SERVICE_ACCOUNT: Final = "cleanup"
"""The service account of the pods that run `cleanup`."""
CONFIG_PATH: Final = "/elsewhere/headscale.yaml"
DATA_FOLDER: Final = "/data"

_numbers = count(1)

WRAPPER = """\
#!/bin/sh
if [ -e /tmp/hang ] && [ "$1 $2" = "$(cat /tmp/hang)" ]; then
    [ -e /tmp/after ] && /usr/local/bin/headscale "$@"
    touch /tmp/hanging
    exec sleep 1000
fi
exec /usr/local/bin/headscale "$@"
"""
"""A script in place of `headscale`. It hangs at the command that the file /tmp/hang contains.

If /tmp/after exists, the script runs this command before it hangs.
"""


class Server:
    """Headscale in its own namespace, with its configuration at an unusual path.

    Args:
        kind: Deployment or StatefulSet.
        container: the name of the container.
        image: the image of the container.
    """

    def __init__(self, tailnet: Tailnet, *, kind: str, container: str, image: str) -> None:
        self.tailnet = tailnet
        self.cluster: Cluster = tailnet.cluster
        self.namespace = f"headscale-{next(_numbers)}"
        self._container = container
        self.cluster.kubectl("create", "namespace", self.namespace)
        self.cluster.apply(*self._manifests(kind, image))
        self.cluster.kubectl(
            *("-n", self.namespace, "rollout", "status", f"{kind.lower()}/headscale", f"--timeout={START_TIMEOUT_S:g}s")
        )
        self.run(self.pod, "users", "create", USER)

    def _manifests(self, kind: str, image: str) -> Iterator[Document]:
        ports = (8080, 9090, 50443, 3478)  # the API, the metrics, gRPC and STUN
        config, relays = configuration(LOGIN_URL, DATA_FOLDER, ports=ports, relay=LOGIN_URL, listen="0.0.0.0")
        config["derp"]["paths"] = ["/elsewhere/derp.yaml"]
        files = {"headscale.yaml": yaml.safe_dump(config), "derp.yaml": yaml.safe_dump(relays), "headscale": WRAPPER}
        yield manifest("ConfigMap", "headscale", self.namespace, data=files)
        labels = {"app.kubernetes.io/name": "headscale"}
        server = {
            "name": self._container,
            "image": image,
            "args": ["serve"],
            # The distroless image has no shell, which the wrapper needs.
            "env": [
                {"name": "HEADSCALE_CONFIG", "value": CONFIG_PATH},
                *([{"name": "PATH", "value": f"/wrapper:{PATH}"}] if image == HEADSCALE else []),
            ],
            "readinessProbe": {"httpGet": {"path": "/health", "port": 8080}, "periodSeconds": 1},
            "volumeMounts": [
                {"name": "config", "mountPath": "/elsewhere"},
                {"name": "config", "mountPath": "/wrapper"},
                {"name": "data", "mountPath": DATA_FOLDER},
            ],
        }
        # A hostPath volume, so that the database is kept when the pod is replaced.
        folder = {"hostPath": {"path": f"/var/lib/{self.namespace}", "type": "DirectoryOrCreate"}}
        pod = {
            "containers": [server],
            "volumes": [
                {"name": "config", "configMap": {"name": "headscale", "defaultMode": 0o755}},
                {"name": "data", **folder},
            ],
            "terminationGracePeriodSeconds": 1,
        }
        yield manifest(
            kind,
            "headscale",
            self.namespace,
            api="apps/v1",
            spec={
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
                **({"serviceName": "headscale"} if kind == "StatefulSet" else {"strategy": {"type": "Recreate"}}),
            },
        )

    @property
    def pod(self) -> str:
        """The name of the pod that is not being deleted."""
        pods = self.cluster.pods("app.kubernetes.io/name=headscale", self.namespace)
        (name,) = [pod["metadata"]["name"] for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        return str(name)

    def run(self, pod: str, *arguments: str) -> Any:
        """Run a command of Headscale's CLI in a pod, and return its JSON output."""
        command = ("headscale", *arguments, "-o", "json")
        return json.loads(self.cluster.exec(pod, self._container, *command, namespace=self.namespace))

    def keys(self, pod: str) -> list[Document]:
        """Return the pre-auth keys, oldest first."""
        return sorted(self.run(pod, "preauthkeys", "list") or [], key=lambda key: int(key["id"]))

    # --- Pods that run cleanup ------------------------------------------------------------------

    def allow(self, *rules: Document) -> None:
        """Give the pods that run `cleanup` the permissions of these rules."""
        name = f"rules-{next(_numbers)}"
        api = "rbac.authorization.k8s.io"
        role = {"apiGroup": api, "kind": "Role", "name": name}
        subject = {"kind": "ServiceAccount", "name": SERVICE_ACCOUNT, "namespace": "services"}
        self.cluster.apply(
            manifest("Role", name, self.namespace, api=f"{api}/v1", rules=list(rules)),
            manifest("RoleBinding", name, self.namespace, api=f"{api}/v1", roleRef=role, subjects=[subject]),
        )

    def allow_all(self) -> None:
        """Give the pods that run `cleanup` all permissions that they need."""
        self.allow(
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
            {"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["create", "get"]},
        )

    def start_cleanup(self, **settings: str) -> CleanupPod:
        """Start a pod that runs `cleanup` with additional settings."""
        return CleanupPod(self, settings)


class CleanupPod:
    """A pod that runs `cleanup` once."""

    def __init__(self, server: Server, settings: dict[str, str]) -> None:
        self._cluster = server.cluster
        self._name = f"cleanup-{next(_numbers)}"
        variables = {
            "HEADSCALE_ACCESS": "exec",
            "HEADSCALE_NAMESPACE": server.namespace,
            "CLOUDFLARE_API_URL": server.tailnet.cloudflare_url,
            "CLOUDFLARE_API_TOKEN": server.tailnet.cloudflare.token,
            "CLOUDFLARE_ZONE_ID": server.tailnet.zone_id,
            "DOMAIN_NAME": DOMAIN,
            "TS_HOSTNAME": f"{self._name}.{DOMAIN}",
            "AUTHKEY_OUTPUT_PATH": "/key/authkey",
            **settings,
        }
        container = {
            "name": "cleanup",
            "image": LIFECYCLE_IMAGE,
            "imagePullPolicy": "Never",
            "args": ["cleanup"],
            "env": [{"name": name, "value": value} for name, value in variables.items()],
            "volumeMounts": [{"name": "key", "mountPath": "/key"}],
        }
        spec = {
            "serviceAccountName": SERVICE_ACCOUNT,
            "restartPolicy": "Never",
            "containers": [container],
            "volumes": [{"name": "key", "emptyDir": {"medium": "Memory"}}],
            "securityContext": {"fsGroup": 65532},
        }
        self._cluster.apply(manifest("Pod", self._name, "services", spec=spec))

    def wait(self) -> tuple[int, list[Document]]:
        """Wait until the command has ended, and return its exit status and the logged events."""

        def terminated() -> Document | None:
            statuses = self._cluster.get("pod", self._name)["status"].get("containerStatuses", ())
            states = [status["state"]["terminated"] for status in statuses if "terminated" in status["state"]]
            return states[0] if states else None

        state = eventually(
            terminated,
            f"the end of {self._name}",
            details=lambda: self._cluster.describe_pod(self._name),
            timeout_s=START_TIMEOUT_S,
        )
        return state["exitCode"], self._cluster.events(self._name, "cleanup")

    def succeed(self) -> list[Document]:
        """Wait until the command has succeeded, and return the logged events."""
        status, events = self.wait()
        assert status == 0, events
        return events

    def fail(self) -> str:
        """Wait until the command has failed, and return the error message."""
        status, events = self.wait()
        assert status == 1, events
        (failed,) = events_named(events, "command.failed")
        error: str = failed["error"]
        return error


@pytest.fixture(scope="module")
def exec_tailnet(tailnet: Tailnet, tmp_path_factory: pytest.TempPathFactory) -> Tailnet:
    """The tailnet with a service account, and with an image that contains only `headscale`, like the official image."""
    archive: Path = tmp_path_factory.mktemp("distroless") / "layer.tar"
    program = newest_headscale()
    assert program is not None
    files: dict[str, str | Path] = {"ko-app/headscale": program, "tmp/": ""}
    image = Image([write_layer(archive, files)], ["/ko-app/headscale"], environment={"PATH": f"{PATH}:/ko-app"})
    tailnet.cluster.load({DISTROLESS_IMAGE: image})
    tailnet.cluster.kubectl("-n", "services", "create", "serviceaccount", SERVICE_ACCOUNT)
    return tailnet


@contextmanager
def running_server(tailnet: Tailnet, **options: Any) -> Iterator[Server]:
    """Run a server for the duration of the block."""
    server = Server(tailnet, **options)
    try:
        yield server
    finally:
        with suppress(RefusedError):
            tailnet.cluster.kubectl("delete", "namespace", server.namespace, "--wait=false")


@pytest.mark.parametrize("container", ["headscale", "server"])
def test_container_without_shell_and_with_other_configuration_path_works(exec_tailnet: Tailnet, container: str) -> None:
    """The name of the container does not matter, because the pod has only one container."""
    with running_server(exec_tailnet, kind="Deployment", container=container, image=DISTROLESS_IMAGE) as server:
        pod = server.pod
        with pytest.raises(RefusedError):
            exec_tailnet.cluster.exec(pod, container, "sh", "-c", "true", namespace=server.namespace)
        server.allow_all()
        events = server.start_cleanup().succeed()
        (created,) = events_named(events, "pre_auth_key.created")
        assert [(str(key["id"]), key.get("used", False)) for key in server.keys(pod)] == [(created["key_id"], False)]


def test_missing_permissions_are_named_with_the_rule_to_add(exec_tailnet: Tailnet) -> None:
    """With the rules from both error messages, the command succeeds."""
    with running_server(exec_tailnet, kind="StatefulSet", container="headscale", image=DISTROLESS_IMAGE) as server:
        added = []
        for _ in range(2):
            message = server.start_cleanup().fail()
            assert f"system:serviceaccount:services:{SERVICE_ACCOUNT}" in message
            assert f"in namespace {server.namespace}" in message
            (rule,) = yaml.safe_load(message.partition("with this rule: ")[2])
            server.allow(rule)
            added.append(rule)
        assert added == [
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
            {
                "apiGroups": [""],
                "resources": ["pods/exec"],
                "resourceNames": ["headscale-0"],
                "verbs": ["create", "get"],
            },
        ]
        server.start_cleanup().succeed()


@pytest.mark.parametrize(
    ("command", "hangs_after", "key_count"),
    [
        pytest.param("users list", False, 1, id="while cleanup lists users"),
        pytest.param("preauthkeys create", False, 1, id="before cleanup creates a key"),
        pytest.param("preauthkeys create", True, 2, id="after cleanup has created a key"),
    ],
)
def test_command_is_repeated_when_the_pod_of_headscale_is_replaced(
    exec_tailnet: Tailnet, command: str, hangs_after: bool, key_count: int
) -> None:
    """The command runs again in the new pod. If the first run created a key, the key is expired."""
    with running_server(exec_tailnet, kind="Deployment", container="headscale", image=HEADSCALE) as server:
        server.allow_all()
        cluster, pod = exec_tailnet.cluster, server.pod
        script = f"echo {command} >/tmp/hang" + ("; touch /tmp/after" if hangs_after else "")
        cluster.exec(pod, "headscale", "sh", "-c", script, namespace=server.namespace)
        # The command must not time out before the pod is deleted.
        cleanup = server.start_cleanup(HTTP_TIMEOUT="30s")

        def hangs() -> bool:
            with suppress(RefusedError):
                cluster.exec(pod, "headscale", "ls", "/tmp/hanging", namespace=server.namespace)
                return True
            return False

        eventually(hangs, "the command to hang", timeout_s=START_TIMEOUT_S)
        cluster.kubectl("-n", server.namespace, "delete", "pod", pod, "--wait=false")

        events = cleanup.succeed()
        assert events_named(events, "retry.scheduled")
        (created,) = events_named(events, "pre_auth_key.created")
        keys = server.keys(server.pod)
        assert len(keys) == key_count
        assert str(keys[-1]["id"]) == created["key_id"]
        expirations = [key["expiration"]["seconds"] for key in keys]
        # A key is valid for an hour, so a key that expires much earlier than the last one has been expired by cleanup.
        assert all(expiration < expirations[-1] - 3000 for expiration in expirations[:-1])
