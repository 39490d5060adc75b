"""Test that scripts with a path as argument can be run from any folder."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.pages import ROOT

# Prints the last argument as an absolute path.
STUB = '#!/bin/sh\nfor last; do :; done\ncd "$last" && pwd\n'


@pytest.mark.parametrize("name", ["package-chart", "checkov"])
def test_a_path_is_relative_to_the_folder_of_the_caller(name: str, tmp_path: Path) -> None:
    repository, folder = tmp_path / "a repository", tmp_path / "elsewhere"
    (folder / "out").mkdir(parents=True)
    for stub in ("helm", ".venv/checkov/bin/checkov", "scripts/image", "scripts/bootstrap"):
        path = repository / stub
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(STUB if stub.endswith(("helm", "checkov")) else "#!/bin/sh\n")
        path.chmod(0o755)
    for file in ("requirements-checkov.txt", ".venv/checkov/requirements.txt"):
        (repository / file).touch()
    for script in (name, "install.sh"):
        (repository / "scripts" / script).write_bytes((ROOT / "scripts" / script).read_bytes())
    done = subprocess.run(
        ["/bin/sh", repository / "scripts" / name, "out"],
        cwd=folder,
        env={**os.environ, "HELM": str(repository / "helm")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == str(folder / "out"), done.stderr
