"""Test that `lifecycle inject` refuses what the admission policy refuses. tests/cluster runs the same cases there."""

from __future__ import annotations

import json

import pytest

from lifecycle.domain.errors import ManifestError
from lifecycle.inject.manifests import inject
from lifecycle.inject.rules import REFUSALS
from lifecycle.inject.template import CONTAINERS
from tests.inject.refused import ACCEPTED, KINDS, REFUSED, annotated, deployment, labelled
from tests.inject.samples import SITE


def text_of(*documents: object) -> str:
    return "---\n".join(f"{json.dumps(document)}\n" for document in documents)


@pytest.mark.parametrize("name", REFUSED)
def test_workload_is_refused_with_its_name_and_the_remedy(name: str) -> None:
    document, texts = REFUSED[name]
    with pytest.raises(ManifestError) as refused:
        inject(text_of(document), SITE)
    message = str(refused.value)
    assert f"{document['kind']} {document['metadata']['name']}" in message
    assert [text for text in texts if text not in message] == []


@pytest.mark.parametrize("name", ACCEPTED)
def test_workload_is_accepted(name: str) -> None:
    changed = inject(text_of(ACCEPTED[name]), SITE)
    assert all(f'"name": "{container}"' in changed for container in CONTAINERS) is (name != "label-false")


@pytest.mark.parametrize("kind", KINDS)
def test_kind_gets_the_containers(kind: str) -> None:
    changed = json.loads(inject(text_of(KINDS[kind]()), SITE))
    template = changed if kind == "pod" else changed["spec"].get("jobTemplate", changed)["spec"]["template"]
    assert [container["name"] for container in template["spec"]["initContainers"]] == list(CONTAINERS)
    assert all(container["image"] for container in template["spec"]["initContainers"])


def test_every_refusal_has_a_case() -> None:
    # "missing" is that of a pod which a policy alone can see.
    provoked = set()
    for document, _ in REFUSED.values():
        with pytest.raises(ManifestError) as refused:
            inject(text_of(document), SITE)
        lines = str(refused.value).splitlines()
        for refusal, text in REFUSALS.items():
            parts = [part.partition("}")[2] or part for part in text.split("{")]
            if any(all(part in line for part in parts) for line in lines):
                provoked.add(refusal)
    assert provoked == set(REFUSALS) - {"missing"}


def test_all_refusals_are_reported_and_nothing_is_written() -> None:
    first = annotated(deployment(), hostname="Web")
    second = labelled(deployment(replicas=2), inject="true")
    second["metadata"]["name"] = "second"
    with pytest.raises(ManifestError) as refused:
        inject(text_of(first, deployment(), second), SITE)
    lines = str(refused.value).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("Deployment web: ")
    assert lines[1].startswith("Deployment second: ")
