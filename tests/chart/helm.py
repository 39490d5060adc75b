"""Run Helm 3 or 4 with the chart. The program is `helm` on PATH, or the program that the variable HELM names."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pages import ROOT

CHART = ROOT / "charts/tailscale-lifecycle"

Document = dict[str, Any]
Values = dict[str, Any]

SITE: Values = {"DOMAIN_NAME": "example.com", "LOGIN_SERVER": "https://headscale.example.com"}
"""The settings that have no default."""


@cache
def program() -> str:
    """Return the path of Helm, or skip the test."""
    path = shutil.which(os.environ.get("HELM", "helm"))
    if path is None:
        pytest.skip("install Helm 3 or 4, or set HELM to its path")
    return path


def packed_chart(folder: Path) -> Path:
    """Copy the chart into a folder and add the sources of the image, as `scripts/package-chart` does."""
    chart = folder / CHART.name
    shutil.copytree(CHART, chart)
    subprocess.run([sys.executable, ROOT / "build/sources.py", chart / "files/sources.tar.gz"], check=True)
    return chart


def run(*arguments: str | Path, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run Helm, with `text` as its standard input, without a cluster and plugins. The command may fail."""
    environment = {**os.environ, "KUBECONFIG": os.devnull, "HELM_PLUGINS": os.devnull}
    command = [program(), *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False, env=environment)


def _template(chart: Path, values: Values, *options: str) -> subprocess.CompletedProcess[str]:
    return run("template", "tailscale-lifecycle", chart, "--values=-", *options, text=json.dumps(values))


def template(chart: Path, values: Values, *options: str) -> list[Document]:
    """Return the objects that Helm renders from the values."""
    done = _template(chart, values, *options)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if document]


def expect_refusal(chart: Path, values: Values, *options: str) -> str:
    """Assert that Helm refuses the values, and return its error message."""
    done = _template(chart, values, *options)
    assert done.returncode != 0, done.stdout
    return done.stderr
