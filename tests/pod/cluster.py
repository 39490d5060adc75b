"""The reference workload, rendered with plain containers and configured for the test network."""

from __future__ import annotations

from pathlib import Path

from tests.pod.certificates import issue
from tests.pod.conftest import STAND_INS
from tests.pod.network import Hosts
from tests.pod.play import Kubelet, Podman
from tests.pod.rendering import DOMAIN, SITE, choose, copied, render, values

NAME = f"ollama.{DOMAIN}"
MARK = "tailscale-lifecycle/1 services"
USER = "services"

PYTHON = ["env", "PYTHONPATH=/opt", "PYTHONDONTWRITEBYTECODE=1", "python3", "-u"]
COMMANDS = {
    "application": [*PYTHON, "/opt/tests/pod/application.py", "11434"],
    "tailscale": [*PYTHON, "-m", "tests.pod.tailscale_container"],
}

FAST_SETTINGS = {
    # "keep" reads the state Secret, and these tests have no Kubernetes API.
    "NODE_POLICY": "replace",
    # Short intervals keep the tests fast.
    "POLL_INTERVAL": "1s",
    "RETRY_INTERVAL": "1s",
    "VERIFY_INTERVAL": "2s",
}


def configure(repository: Path, **settings: str) -> None:
    """Change the names of the site and the settings of the base, as an operator does before the first `apply`."""
    for file, names in (
        ("site/site.env", settings.keys() & SITE),
        ("base/resources/lifecycle.env", settings.keys() - SITE),
    ):
        changed = values(repository / "deploy" / file) | {name: settings[name] for name in names}
        (repository / "deploy" / file).write_text("".join(f"{name}={value}\n" for name, value in changed.items()))


def deployed(
    runtime: Podman,
    hosts: Hosts,
    folder: Path,
    *,
    headscale: tuple[str, str],
    cloudflare: tuple[str, str],
    tailscale: tuple[str, list[str]] = (STAND_INS, COMMANDS["tailscale"]),
) -> tuple[Kubelet, Path]:
    """Return a kubelet for the workload's pod, and the file with the CA of its certificate.

    Args:
        headscale: its URL and API key.
        cloudflare: its URL and token.
        tailscale: image and command for the tailscale container.
    """
    repository = copied(folder / "repository")
    configure(
        repository,
        **FAST_SETTINGS,
        HEADSCALE_URL=headscale[0],
        CLOUDFLARE_API_URL=f"{cloudflare[0]}/client/v4",
        LOGIN_SERVER=headscale[0],
    )
    kustomization = repository / "deploy/services/ollama/kustomization.yaml"
    choose("plain", kustomization)
    certificate, key = issue(f"*.{DOMAIN}")
    trust = folder / "trust.pem"
    trust.write_text(certificate)
    kubelet = Kubelet(
        runtime,
        hosts,
        folder,
        render(kustomization.parent),
        images={"application": STAND_INS, "nginx-tls": STAND_INS, "tailscale": tailscale[0]},
        commands={**COMMANDS, "tailscale": tailscale[1]},
        secrets={
            "lifecycle": {"HEADSCALE_API_KEY": headscale[1], "CLOUDFLARE_API_TOKEN": cloudflare[1]},
            "wildcard-tls": {"tls.crt": certificate, "tls.key": key},
        },
    )
    return kubelet, trust
