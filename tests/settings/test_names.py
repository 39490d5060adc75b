"""Test the names of the node and its records, and the comment of the records, which depend on the settings."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.domain.errors import ConfigError
from lifecycle.domain.ownership import NameKind
from lifecycle.settings import models
from lifecycle.settings.load import load
from lifecycle.settings.models import CleanupSettings
from tests.settings.environment import MINIMUM, Environment, problem_of


@pytest.mark.parametrize(
    ("content", "namespace"),
    [(None, "default"), (b"", "default"), (b"vpn\n", "vpn"), (b"\xff", None)],
    ids=["no file", "empty", "name", "not text"],
)
def test_namespace_of_the_service_account_is_used(
    env: Environment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, namespace: str | None
) -> None:
    """If the namespace cannot be read, it must not count as `default`, whose records belong to other workloads."""
    file = tmp_path / "namespace"
    monkeypatch.setattr(models, "SERVICE_ACCOUNT_NAMESPACE", file)
    if content is not None:
        file.write_bytes(content)
    if namespace is None:
        with pytest.raises(ConfigError, match="POD_NAMESPACE"):
            _ = env.load().mark
    else:
        assert env.load().mark == f"tailscale-lifecycle/1 {namespace}"


@pytest.mark.parametrize(
    ("variables", "hostname"),
    [
        pytest.param({"POD_NAME": "grafana-0"}, "grafana.example.com", id="StatefulSet"),
        pytest.param({"POD_NAME": None, "HOSTNAME": "grafana-0"}, "grafana.example.com", id="HOSTNAME"),
        pytest.param({"POD_NAME": "app-0-0"}, "app-0.example.com", id="last ordinal only"),
        pytest.param({"TS_HOSTNAME": "web.example.com"}, "web.example.com", id="full name"),
        pytest.param({"TS_HOSTNAME": "Web.Example.com"}, "Web.Example.com", id="upper case"),
        pytest.param({"TS_HOSTNAME": "web"}, "web", id="one label"),
        pytest.param({"TS_HOSTNAME": "a.b.example.com"}, "a.b.example.com", id="two labels"),
        pytest.param({"TS_HOSTNAME": "example.com"}, "example.com", id="domain"),
        pytest.param(
            {"TS_HOSTNAME": "web.eu.example.com", "DOMAIN_NAME": "eu.example.com"},
            "web.eu.example.com",
            id="domain below the apex",
        ),
        pytest.param({"TS_HOSTNAME": "web", "POD_NAME": "web-7d9c5b-xk2vp"}, "web", id="Deployment"),
        pytest.param({"TS_HOSTNAME": "web", "POD_NAME": "web-xk2vp", "HOSTNAME": "worker-1"}, "web", id="host network"),
        pytest.param({"TS_HOSTNAME": "web", "POD_NAME": None}, "web", id="no pod"),
        pytest.param({"TS_HOSTNAME": "web-1.example.com", "POD_NAME": "web-1"}, "web-1.example.com", id="replica"),
        pytest.param({"TS_HOSTNAME": "n12", "POD_NAME": "web-12"}, "n12", id="ordinal in another place"),
        pytest.param(
            {"TS_HOSTNAME": "web2-2.example.com", "POD_NAME": "web2-2"},
            "web2-2.example.com",
            id="replica of a numbered workload",
        ),
        pytest.param({"TS_HOSTNAME": "web.example.com", "POD_NAME": "web-0"}, "web.example.com", id="ordinal 0"),
        pytest.param(
            {"POD_NAME": "grafana-0", "HOSTNAME": "grafana-0.grafana.services.svc.cluster.local"},
            "grafana.example.com",
            id="setHostnameAsFQDN",
        ),
        pytest.param({"POD_NAME": "grafana-1", "ORDINALS_START": "1"}, "grafana.example.com", id="first ordinal is 1"),
        pytest.param(
            {"TS_HOSTNAME": "web.example.com", "POD_NAME": "web-1", "ORDINALS_START": "1"},
            "web.example.com",
            id="first ordinal is 1 with a name",
        ),
        pytest.param(
            {"TS_HOSTNAME": "web-2", "POD_NAME": "web-2", "ORDINALS_START": "1"}, "web-2", id="second ordinal is 2"
        ),
        pytest.param({"TS_HOSTNAME": "ab"}, "ab", id="2 characters"),
        pytest.param({"TS_HOSTNAME": "a" * 63}, "a" * 63, id="63 in one label"),
        pytest.param({"TS_HOSTNAME": f"{'a' * 51}.example.com"}, f"{'a' * 51}.example.com", id="63 with the domain"),
        pytest.param({"POD_NAME": f"{'a' * 51}-0"}, f"{'a' * 51}.example.com", id="63 from the pod name"),
    ],
)
def test_hostname_of_the_node(env: Environment, variables: dict[str, str | None], hostname: str) -> None:
    """The hostname is TS_HOSTNAME. The first pod of a StatefulSet needs no TS_HOSTNAME."""
    settings = env.load(**variables)

    assert settings.node_hostname == hostname
    assert settings.record_name == (hostname.lower() if "." in hostname else f"{hostname}.example.com")


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({"POD_NAME": None}, id="no pod"),
        pytest.param({"POD_NAME": "web-7d9c5b-xk2vp"}, id="Deployment"),
        pytest.param({"POD_NAME": "web-1"}, id="ordinal 1"),
        pytest.param({"POD_NAME": "web-00"}, id="leading zero"),
        pytest.param({"POD_NAME": "web0"}, id="no hyphen"),
        pytest.param({"POD_NAME": "-0"}, id="no workload"),
        pytest.param({"POD_NAME": "web-2", "ORDINALS_START": "1"}, id="second replica without a name"),
        pytest.param({"POD_NAME": "web-0", "HOSTNAME": "worker-0"}, id="host network"),
        pytest.param({"POD_NAME": "web-0", "HOSTNAME": "web-0x.example.com"}, id="hostname with the same beginning"),
        pytest.param({"TS_HOSTNAME": "web.example.com", "POD_NAME": "web-1"}, id="without the ordinal"),
        pytest.param(
            {"TS_HOSTNAME": "web.example.com", "POD_NAME": "web-2", "ORDINALS_START": "1"},
            id="without the ordinal, if the first is 1",
        ),
        pytest.param({"TS_HOSTNAME": "web-1.example.com", "POD_NAME": "web-2"}, id="another ordinal"),
        pytest.param({"TS_HOSTNAME": "web-12.example.com", "POD_NAME": "web-2"}, id="last digit of another number"),
        pytest.param({"TS_HOSTNAME": "web-21.example.com", "POD_NAME": "web-2"}, id="first digit of another number"),
        pytest.param(
            {"TS_HOSTNAME": "web.srv1.net", "POD_NAME": "web-1", "DOMAIN_NAME": "srv1.net"}, id="only in the domain"
        ),
        pytest.param({"TS_HOSTNAME": "srv1.net", "POD_NAME": "web-1", "DOMAIN_NAME": "srv1.net"}, id="the domain"),
        pytest.param({"TS_HOSTNAME": "web2.example.com", "POD_NAME": "web2-2"}, id="only in the workload's name"),
        pytest.param({"TS_HOSTNAME": "web.example.org"}, id="another domain"),
        pytest.param({"TS_HOSTNAME": "webexample.com"}, id="no dot before the domain"),
        pytest.param({"TS_HOSTNAME": "example.com.evil"}, id="longer domain"),
        pytest.param({"TS_HOSTNAME": "web.example.com."}, id="trailing dot"),
        pytest.param({"TS_HOSTNAME": "a..example.com"}, id="two dots"),
        pytest.param({"TS_HOSTNAME": "my_app"}, id="underscore"),
        pytest.param({"TS_HOSTNAME": "-web"}, id="leading hyphen"),
        pytest.param({"TS_HOSTNAME": "\u017ferver"}, id="non ASCII letter"),
        pytest.param({"TS_HOSTNAME": "*.example.com"}, id="wildcard"),
        pytest.param({"TS_HOSTNAME": "a"}, id="1 character"),
        pytest.param({"TS_HOSTNAME": f"{'a' * 52}.example.com"}, id="64 with the domain"),
        pytest.param({"TS_HOSTNAME": "a" * 64}, id="64 in one label"),
        pytest.param({"POD_NAME": f"{'a' * 52}-0"}, id="64 from the pod name"),
        pytest.param({"TS_HOSTNAME": "a" * 63, "DOMAIN_NAME": ".".join(["b" * 60] * 4)[:200]}, id="too long record"),
    ],
)
def test_invalid_name_is_refused(env: Environment, variables: dict[str, str | None]) -> None:
    assert list(env.problems(**variables)) == ["TS_HOSTNAME"]


@pytest.mark.parametrize(
    ("aliases", "shared", "names"),
    [
        pytest.param("docs", None, {"docs.example.com": NameKind.ALIAS}, id="one label"),
        pytest.param("WWW.Example.com.", None, {"www.example.com": NameKind.ALIAS}, id="full name"),
        pytest.param("*.wiki", None, {"*.wiki.example.com": NameKind.ALIAS}, id="wildcard"),
        pytest.param("*", None, {"*.example.com": NameKind.ALIAS}, id="wildcard of the domain"),
        pytest.param("example.com", None, {"example.com": NameKind.DOMAIN}, id="domain"),
        pytest.param("xn--bcher-kva", None, {"xn--bcher-kva.example.com": NameKind.ALIAS}, id="international"),
        pytest.param(None, "*.apps", {"*.apps.example.com": NameKind.SHARED}, id="shared"),
        pytest.param(None, "example.com", {"example.com": NameKind.SHARED}, id="shared domain"),
        pytest.param(
            " docs , www,",
            "in",
            {"docs.example.com": NameKind.ALIAS, "www.example.com": NameKind.ALIAS, "in.example.com": NameKind.SHARED},
            id="several",
        ),
    ],
)
def test_further_names(env: Environment, aliases: str | None, shared: str | None, names: dict[str, NameKind]) -> None:
    """DNS_ALIASES and DNS_SHARED_NAMES add records at further names."""
    settings = env.load(DNS_ALIASES=aliases, DNS_SHARED_NAMES=shared, DNS_OWNER="monitoring")

    assert {
        record_ownership.name: record_ownership.kind for record_ownership in settings.further_name_ownerships
    } == names
    assert settings.names == ["grafana.example.com", *names]
    for record_ownership in settings.further_name_ownerships:
        assert record_ownership.mark == "tailscale-lifecycle/1 monitoring grafana.example.com"
        assert record_ownership.target == "grafana.example.com"


@pytest.mark.parametrize("setting", ["DNS_ALIASES", "DNS_SHARED_NAMES"])
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        pytest.param("docs,Docs.example.com", "name 2 is in ", id="twice in two forms"),
        pytest.param("docs,GRAFANA.example.com", "name 2 is the workload's own", id="own full name"),
        pytest.param("www.example.org", "name 1 must be DOMAIN_NAME", id="another domain"),
        pytest.param("*.docs.wiki", "name 1 must be DOMAIN_NAME", id="wildcard with a dot"),
        pytest.param("wwwexample.com", "name 1 must be DOMAIN_NAME", id="no dot before the domain"),
        pytest.param("my_docs", "letters, digits", id="underscore"),
        pytest.param("b\u00fccher", "xn--", id="international"),
        pytest.param("docs.*", "each must be", id="wildcard at the end"),
        pytest.param("a*", "each must be", id="part of a wildcard"),
        pytest.param("a" * 64, "each must be", id="too long label"),
        pytest.param(".".join(["a" * 63] * 4) + ".example.com", "longer than 253", id="too long"),
    ],
)
def test_invalid_further_name_is_refused(env: Environment, setting: str, value: str, problem: str) -> None:
    problems = env.problems(**{setting: value})

    assert list(problems) == [setting]
    assert problem in problems[setting]


def test_alias_cannot_be_shared(env: Environment) -> None:
    assert "DNS_ALIASES" in env.problems(DNS_ALIASES="docs", DNS_SHARED_NAMES="docs")["DNS_SHARED_NAMES"]


def test_comment_of_further_names_must_fit(env: Environment) -> None:
    """Cloudflare's Free plan limits a comment to 100 characters.

    This comment consists of 22 characters, the owner, a space, and the main name.
    """
    env.load(DNS_OWNER="o" * 58, DNS_ALIASES="docs")
    assert "101 characters" in env.problems(DNS_OWNER="o" * 59, DNS_ALIASES="docs")["DNS_OWNER"]
    # Without further names, no record has this comment.
    env.load(DNS_OWNER="o" * 59, DNS_ALIASES=None)


def test_unexpanded_reference_is_named(env: Environment) -> None:
    """Kubernetes does not expand $(POD_NAME) in values from a ConfigMap."""
    assert "$(POD_NAME)" in env.problems(TS_HOSTNAME="$(POD_NAME).example.com")["TS_HOSTNAME"]


def test_problem_names_each_cause_of_a_hostname_other_than_the_pod_name(env: Environment) -> None:
    problem = env.problems(POD_NAME="web-0", HOSTNAME="wiki")["TS_HOSTNAME"]

    for cause in ("HOSTNAME", "POD_NAME", "host network", "spec.hostname"):
        assert cause in problem


def test_ordinals_start_above_the_ordinal_of_the_pod_is_refused(env: Environment) -> None:
    """With this setting, pods 0 and 1 would both accept the hostname."""
    problems = env.problems(POD_NAME="web-0", TS_HOSTNAME="web.example.com", ORDINALS_START="1")

    assert list(problems) == ["ORDINALS_START"]


@given(
    base=st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True),
    ordinals=st.lists(st.integers(0, 12), min_size=2, max_size=2, unique=True),
    template=st.sampled_from(["{pod}.example.com", "{pod}", "{base}.example.com", "{base}", "x.{pod}.example.com"]),
)
def test_replicas_never_share_a_name(base: str, ordinals: list[int], template: str) -> None:
    """Two pods get TS_HOSTNAME from the same template. If it does not contain the ordinal, at most one pod starts."""
    names = []
    for ordinal in ordinals:
        pod = f"{base}-{ordinal}"
        with pytest.MonkeyPatch.context() as monkeypatch:
            for name, value in MINIMUM.items():
                monkeypatch.setenv(name, value)
            monkeypatch.setenv("POD_NAME", pod)
            monkeypatch.setenv("TS_HOSTNAME", template.format(pod=pod, base=base))
            error = problem_of(CleanupSettings)
            if error is None:
                names.append(load(CleanupSettings).record_name)
            else:
                assert "TS_HOSTNAME" in str(error)

    assert len(set(names)) == len(names)
    assert "{pod}" not in template or len(names) == 2


@pytest.mark.parametrize(
    ("variables", "comment"),
    [
        ({}, "tailscale-lifecycle/1 default"),
        ({"POD_NAMESPACE": "apps"}, "tailscale-lifecycle/1 apps"),
        ({"POD_NAMESPACE": "apps", "DNS_OWNER": "Cluster-2/apps"}, "tailscale-lifecycle/1 Cluster-2/apps"),
    ],
)
def test_comment_of_records_contains_the_owner(env: Environment, variables: dict[str, str], comment: str) -> None:
    assert env.load(**variables).mark == comment
