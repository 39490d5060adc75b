"""Prepare the workload that the tests of a running pod use: ollama of deploy/services.

The manifests are rendered without native sidecars, and with the addresses of the test network.
"""

from __future__ import annotations

from pathlib import Path

from tests.pod.certificates import issue
from tests.pod.conftest import STAND_INS
from tests.pod.kubelet import Kubelet, Podman
from tests.pod.network import Hosts
from tests.pod.rendering import DOMAIN, SITE, copy_deploy, read_env_file, render, select_plain_containers

NAME = f"ollama.{DOMAIN}"
RECORD_COMMENT = "tailscale-lifecycle/1 services"
"""The comment by which the program recognizes its DNS records."""
USER = "services"

_PYTHON = ["env", "PYTHONPATH=/opt", "PYTHONDONTWRITEBYTECODE=1", "python3", "-u"]
STAND_IN_COMMANDS = {
    "application": [*_PYTHON, "/opt/tests/pod/application.py", "11434"],
    "tailscale": [*_PYTHON, "-m", "tests.pod.tailscale_container"],
}
"""The commands of the programs that replace the application and tailscale, by container."""

TEST_SETTINGS = {
    # The default "keep" reads the Secret with the state of tailscale, and these tests have no Kubernetes API.
    "NODE_POLICY": "replace",
    # Short intervals keep the tests fast.
    "POLL_INTERVAL": "1s",
    "RETRY_INTERVAL": "1s",
    "VERIFY_INTERVAL": "2s",
}


def configure(repository: Path, **settings: str) -> None:
    """Set variables in site.env and lifecycle.env of a copy of deploy/, as an operator does before `kubectl apply`."""
    for path, names in (
        ("deploy/site/site.env", settings.keys() & SITE),
        ("deploy/base/resources/lifecycle.env", settings.keys() - SITE),
    ):
        file = repository / path
        variables = read_env_file(file) | {name: settings[name] for name in names}
        file.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))


def prepare_reference_workload(
    runtime: Podman, hosts: Hosts, folder: Path, *, headscale: tuple[str, str], cloudflare: tuple[str, str]
) -> tuple[Kubelet, Path]:
    """Return a kubelet that can run the workload's pod, and the file with the certificate that clients have to trust.

    Args:
        headscale: the URL and the API key of Headscale.
        cloudflare: the URL and the token of Cloudflare's API.
    """
    repository = copy_deploy(folder / "repository")
    configure(
        repository,
        **TEST_SETTINGS,
        HEADSCALE_URL=headscale[0],
        CLOUDFLARE_API_URL=f"{cloudflare[0]}/client/v4",
        LOGIN_SERVER=headscale[0],
    )
    kustomization = repository / "deploy/services/ollama/kustomization.yaml"
    select_plain_containers(kustomization)
    certificate, key = issue(f"*.{DOMAIN}")
    trust = folder / "trust.pem"
    trust.write_text(certificate)
    kubelet = Kubelet(
        runtime,
        hosts,
        folder,
        render(kustomization.parent),
        images=dict.fromkeys(("application", "nginx-tls", "tailscale"), STAND_INS),
        commands=STAND_IN_COMMANDS,
        secrets={
            "lifecycle": {"HEADSCALE_API_KEY": headscale[1], "CLOUDFLARE_API_TOKEN": cloudflare[1]},
            "wildcard-tls": {"tls.crt": certificate, "tls.key": key},
        },
    )
    return kubelet, trust
