"""Test that the manifests of deploy/prune are valid for the command that they run."""

from __future__ import annotations

from typing import Any

import pytest

from lifecycle.cli import parse_arguments
from lifecycle.commands import PRUNE_RETRY_BUDGET
from lifecycle.prune.run import CONFIRMATION_DELAY_S
from lifecycle.settings.load import load
from lifecycle.settings.models import PruneSettings, command_variables
from tests.pod.rendering import DEPLOY, Document, of_kind, render


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return render(DEPLOY / "prune")


@pytest.fixture
def container(documents: list[Document]) -> dict[str, Any]:
    (job,) = of_kind(documents, "CronJob")
    (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    return dict(container)


def test_arguments_are_valid(container: dict[str, Any]) -> None:
    options = parse_arguments(container["args"])
    assert (options.command, options.yes, options.name) == ("prune", True, None)


def test_deadline_covers_the_wait_and_the_retries(documents: list[Document]) -> None:
    (job,) = of_kind(documents, "CronJob")
    # prune has one retry budget before the wait, and another after it.
    longest_s = CONFIRMATION_DELAY_S + 2 * PRUNE_RETRY_BUDGET.total_seconds()
    # Five more minutes for everything else, such as the download of the image.
    assert job["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"] > longest_s + 300


def test_settings_are_valid(
    documents: list[Document], container: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (settings,) = of_kind(documents, "ConfigMap")
    assert container["envFrom"] == [{"configMapRef": {"name": settings["metadata"]["name"]}}]
    assert settings["data"].keys() <= command_variables(PruneSettings).keys()
    secrets = {name: value for name, value in settings["data"].items() if name.endswith("_FILE")}
    (mount,) = container["volumeMounts"]
    assert all(path.startswith(mount["mountPath"] + "/") for path in secrets.values())
    for name, value in settings["data"].items():
        # The files of the Secret exist only in a cluster.
        monkeypatch.setenv(name.removesuffix("_FILE"), "a-token" if name in secrets else value)
    assert load(PruneSettings).prune_after.days == 7


def test_pod_meets_the_restricted_standard(documents: list[Document], container: dict[str, Any]) -> None:
    (job,) = of_kind(documents, "CronJob")
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
