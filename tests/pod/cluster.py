"""A cluster with the reference service in it, rendered in plain containers and ready to start."""

from __future__ import annotations

from pathlib import Path

from tests.pod.certificates import issue
from tests.pod.conftest import STAND_INS
from tests.pod.network import Surroundings
from tests.pod.play import Kubelet, Podman
from tests.pod.rendering import DOMAIN, choose, copied, render

NAME = f"ollama.{DOMAIN}"
MARK = "tailscale-lifecycle/1 services"
USER = "services"

PYTHON = ["env", "PYTHONPATH=/opt", "PYTHONDONTWRITEBYTECODE=1", "python3", "-u"]
COMMANDS = {
    "application": [*PYTHON, "/opt/tests/pod/application.py", "11434"],
    "tailscale": [*PYTHON, "-m", "tests.pod.tailscale_container"],
}

HURRY = {
    # There is no Kubernetes API here in which the state Secret would name a node to keep.
    "NODE_POLICY": "replace",
    # RetryBudget is no part of what is tested here.
    "POLL_INTERVAL": "1s",
    "RETRY_INTERVAL": "1s",
    "VERIFY_INTERVAL": "2s",
}


def configure(repository: Path, **settings: str) -> None:
    """What an operator edits before the first `apply`: the settings that are the cluster's own."""
    for name in ("lifecycle.env", "tailscale.env"):
        file = repository / "deploy/base" / name
        lines = [line for line in file.read_text().splitlines() if line.partition("=")[0] not in settings]
        added = [f"{key}={value}" for key, value in settings.items() if (key == "TS_EXTRA_ARGS") == (name[0] == "t")]
        file.write_text("\n".join([*lines, *added, ""]))


def deployed(
    runtime: Podman,
    around: Surroundings,
    folder: Path,
    *,
    headscale: tuple[str, str],
    cloudflare: tuple[str, str],
    tailscale: tuple[str, list[str]] = (STAND_INS, COMMANDS["tailscale"]),
) -> tuple[Kubelet, Path]:
    """The service, and the file with its certificate's authority.

    Args:
        headscale: where it is, and its API key.
        cloudflare: the same, with a token.
        tailscale: the image and command that stand in for the tailscale container.
    """
    repository = copied(folder / "repository")
    configure(
        repository,
        **HURRY,
        HEADSCALE_URL=headscale[0],
        CLOUDFLARE_API_URL=f"{cloudflare[0]}/client/v4",
        TS_EXTRA_ARGS=f"--login-server={headscale[0]}",
    )
    kustomization = repository / "deploy/services/ollama/kustomization.yaml"
    choose("plain", kustomization)
    certificate, key = issue(f"*.{DOMAIN}")
    trust = folder / "trust.pem"
    trust.write_text(certificate)
    kubelet = Kubelet(
        runtime,
        around,
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
