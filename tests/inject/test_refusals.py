"""Test which workloads `lifecycle inject` refuses.

The admission policies must refuse the same workloads. tests/cluster tests this.
"""

from __future__ import annotations

import json

import pytest

from lifecycle.domain.errors import ManifestError
from lifecycle.inject.rules import REFUSALS
from lifecycle.inject.template import CONTAINERS
from tests.inject.labelled_workloads import ACCEPTED, REFUSED, annotated, deployment, labelled, template_of
from tests.inject.samples import inject_text, injected


def to_text(*documents: object) -> str:
    """Return the objects as the documents of one YAML text."""
    return "---\n".join(f"{json.dumps(document)}\n" for document in documents)


@pytest.mark.parametrize("name", REFUSED)
def test_workload_is_refused_with_its_name_and_the_remedy(name: str) -> None:
    document, texts = REFUSED[name]
    with pytest.raises(ManifestError) as refused:
        inject_text(to_text(document))
    message = str(refused.value)
    assert f"{document['kind']} {document['metadata']['name']}" in message
    assert [text for text in texts if text not in message] == []


@pytest.mark.parametrize("name", ACCEPTED)
def test_workload_is_accepted(name: str) -> None:
    added = template_of(injected(ACCEPTED[name]))["spec"].get("initContainers", [])
    assert [container["name"] for container in added] == ([] if name == "label-false" else list(CONTAINERS))
    assert all(container["image"] for container in added)


def test_every_refusal_has_a_case() -> None:
    reported = set()
    for document, _ in REFUSED.values():
        with pytest.raises(ManifestError) as refused:
            inject_text(to_text(document))
        lines = str(refused.value).splitlines()
        for refusal, text in REFUSALS.items():
            # The parts of the message between the placeholders.
            parts = [part.partition("}")[2] or part for part in text.split("{")]
            if any(all(part in line for part in parts) for line in lines):
                reported.add(refusal)
    assert reported == set(REFUSALS)


def test_refusal_is_one_line() -> None:
    """A line break in a value must not look like the refusal of another workload."""
    document = annotated(deployment(), tailscale_args="--ssh\nPod other: x")
    document["metadata"]["name"] = "web\nPod other"
    with pytest.raises(ManifestError) as refused:
        inject_text(to_text(document))
    assert len(str(refused.value).splitlines()) == 1


def test_all_refusals_are_reported_in_one_error() -> None:
    first = annotated(deployment(), hostname="Web")
    second = labelled(deployment(replicas=2), inject="true")
    second["metadata"]["name"] = "second"
    with pytest.raises(ManifestError) as refused:
        inject_text(to_text(first, deployment(), second))
    lines = str(refused.value).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("Deployment web: ")
    assert lines[1].startswith("Deployment second: ")
