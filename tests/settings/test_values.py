"""Test which values each setting accepts and refuses."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.domain.errors import ConfigError
from lifecycle.settings.fields import parse_duration
from lifecycle.settings.load import load
from lifecycle.settings.models import CleanupSettings, DnsWatchSettings, DryRunSettings, command_variables
from lifecycle.settings.reference import default_text
from tests.settings.environment import ZONE_ID, Environment


@pytest.mark.parametrize(
    "name", [name for name, field in command_variables(DryRunSettings).items() if default_text(field)]
)
def test_documented_default_is_accepted_as_a_value(env: Environment, name: str) -> None:
    """Operators copy defaults from the documentation into manifests."""
    unset = env.load(**{name: None})
    text = default_text(command_variables(DryRunSettings)[name])

    assert getattr(env.load(**{name: text}), name.lower()) == getattr(unset, name.lower())


@pytest.mark.parametrize("name", [name for name in command_variables(DryRunSettings) if name != "TAILSCALE_INTERFACE"])
def test_empty_variable_counts_as_unset(env: Environment, name: str) -> None:
    """An empty TAILSCALE_INTERFACE has a meaning of its own: the pod has no VPN interface."""

    def settings_or_problems() -> Any:
        try:
            return load(DryRunSettings)
        except ConfigError as error:
            return str(error)

    env.set(**{name: None})
    unset = settings_or_problems()

    env.set(**{name: ""})
    assert settings_or_problems() == unset


def test_minimal_manifest_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other settings are needed. Kubernetes sets HOSTNAME to the name of the pod."""
    environment = Environment(monkeypatch)
    environment.set(
        HEADSCALE_NAMESPACE="vpn",
        CLOUDFLARE_API_TOKEN="cf-t0ken",
        CLOUDFLARE_ZONE_ID=ZONE_ID,
        DOMAIN_NAME="example.com",
        AUTHKEY_OUTPUT_PATH="/shared/authkey",
        HOSTNAME="grafana-0",
    )
    cleanup = load(CleanupSettings)

    environment.set(AUTHKEY_OUTPUT_PATH=None)
    watch = load(DnsWatchSettings)

    assert (cleanup.access, watch.access) == ("exec", "exec")
    assert cleanup.authkey_output_path == Path("/shared/authkey")
    assert cleanup.node_hostname == watch.record_name == "grafana.example.com"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("CLOUDFLARE_ZONE_ID", ZONE_ID.upper(), ZONE_ID),
        ("DOMAIN_NAME", "Example.COM.", "example.com"),
        ("DOMAIN_NAME", "xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("DOMAIN_NAME", "a.b", "a.b"),
        ("AUTHKEY_OUTPUT_PATH", "/a b/k", Path("/a b/k")),
        ("MAX_RETRIES", "0", 0),
        ("HEADSCALE_URL", "https://vpn.example.com/", "https://vpn.example.com"),
        ("HEADSCALE_URL", "http://10.0.0.1:8080", "http://10.0.0.1:8080"),
        ("HEADSCALE_URL", "http://[fd00::1]:8080", "http://[fd00::1]:8080"),
        ("HEADSCALE_URL", "http://headscale:8080/behind/a/path/", "http://headscale:8080/behind/a/path"),
        ("HEADSCALE_URL", "https://xn--strae-oqa.example", "https://xn--strae-oqa.example"),
        ("HEADSCALE_URL", "HTTPS://vpn.example.com", "HTTPS://vpn.example.com"),
        ("AUTHKEY_EXPIRATION", "90d", timedelta(days=90)),
        ("AUTHKEY_REUSABLE", "true", True),
        ("AUTHKEY_REUSABLE", "False", False),
        ("AUTHKEY_TAGS", " tag:a-1 ,tag:b_2,, tag:a-1", frozenset({"tag:a-1", "tag:b_2"})),
        ("AUTHKEY_FILE_MODE", "640", "640"),
        ("AUTHKEY_FILE_MODE", "0o644", "0o644"),
        ("DNS_TTL", "1", 1),
        ("DNS_TTL", "60", 60),
        ("DNS_TTL", "86400", 86_400),
        ("DNS_OWNER", "staging/eu-1", "staging/eu-1"),
        ("DNS_OWNER", "x" * 78, "x" * 78),
        ("VPN_PREFIXES", "10.1.2.3", (ip_network("10.1.2.3/32"),)),
        ("VPN_PREFIXES", "fd00::/8, 10.0.0.0/8,", (ip_network("fd00::/8"), ip_network("10.0.0.0/8"))),
        ("VERIFY_INTERVAL", "1h30m", timedelta(minutes=90)),
        ("HEALTH_PORT", "0", 0),
        ("HEALTH_PORT", "65535", 65_535),
        ("HTTP_TIMEOUT", "0.5", timedelta(seconds=0.5)),
    ],
)
def test_valid_value_is_accepted(env: Environment, name: str, text: str, value: object) -> None:
    assert getattr(env.load(**{name: text}), name.lower()) == value


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("HEADSCALE_NAMESPACE", ["Head Scale", "-x", "x-", "a/b", "ä", "a" * 64]),
        ("CLOUDFLARE_ZONE_ID", ["example.com", ZONE_ID[1:], ZONE_ID + "0", "g" * 32]),
        (
            "DOMAIN_NAME",
            ["example", "example..com", "-a.com", "a_b.com", "ex ample.com", "*.example.com", ".example.com", "."],
        ),
        ("DOMAIN_NAME", ["b\u00fccher.example", "\u017fervice.com", "a.b\u0131"]),
        ("DOMAIN_NAME", [f"{'a' * 64}.com", ".".join(["a" * 50] * 6), "https://example.com"]),
        ("AUTHKEY_OUTPUT_PATH", ["/volume/auth\nkey", "/volume/\x1b[2J", "/volume/$(POD_NAME)"]),
        ("AUTHKEY_OUTPUT_PATH", [f"/volume/{'é' * 101}"]),
        ("AUTHKEY_OUTPUT_PATH", ["/", ".", "..", "/volume/..", "/volume/auth\u2028key", "/volume/auth\u200bkey"]),
        ("HEADSCALE_USER", ["svc\u200b", "\u202esvc", "sv\xadc", "svc\x01"]),
        ("MAX_RETRIES", ["-1", "many", "1.5", "1e3"]),
        ("HEALTH_ADDRESS", ["127.0.0.1:9003", "[::1]", "a b", "a..b", "\u00e4" * 64]),
        ("POD_NAMESPACE", ["Default", "a b", "a.b", "a" * 64]),
        ("ORDINALS_START", ["-1", "first"]),
        ("HEADSCALE_ACCESS", ["API", "ssh"]),
        (
            "HEADSCALE_URL",
            [
                "vpn.example.com",
                "ftp://vpn.example.com",
                "https://",
                "https://vpn.example.com:0",
                "https://vpn.example.com:65536",
                "https://vpn example.com",
                "https://vpn.example.com\n/x",
                "https://[1.2.3.4]",
                "https://[vpn]",
                "https://[v1.a]",
                "http://[fd00::1]8080",
                "http://vpn[fd00::1]",
                "https://10.0.0.256:8080",
                "https://ex\u2100mple.com",
                "https://\u2603..com",
                "http://headscale..svc:8080",
                f"http://{'a' * 64}.example.com",
                "http://xn--a",
                "https://xn--ls8h.example",  # valid only in IDNA 2003
                "https://me:s3cr3t@vpn.example.com",
                "https://me@vpn.example.com",
                "https://vpn.example.com?key=s3cr3t",
                "https://vpn.example.com/#x",
                "https://@vpn.example.com",
                "https://vpn.example.com?",
                "https://vpn.example.com/#",
            ],
        ),
        ("HEADSCALE_API_KEY_SECRET", ["A", "a/b/c", "a/", "/b", "a b"]),
        ("NODE_POLICY", ["Replace", "delete"]),
        ("TS_KUBE_SECRET", ["a/b", "A"]),
        ("AUTHKEY_REUSABLE", ["perhaps", "2"]),
        ("AUTHKEY_TAGS", ["svc", "tag:", "tag:A", "tag:a b", "tag:a;tag:b", "tag:a,svc", '["tag:a"]']),
        ("AUTHKEY_FILE_MODE", ["64", "0888", "rw-r-----", "04640", "-640", "0x1a0", "6 0"]),
        ("DNS_CLEANUP", ["no", "DELETE"]),
        ("DNS_TTL", ["0", "2", "59", "86401", "-1", "60s", "auto"]),
        ("DNS_OWNER", ["x" * 79, "a b", "ä", "a\tb", "a\x7fb"]),
        ("VPN_PREFIXES", ["100.64.0.1/10", "100.64.0.0/33", "vpn", "5", "10.0.0.0-10.0.0.9", ",", ", ,"]),
        ("HEALTH_PORT", ["-1", "65536", "http", "tcp://10.43.7.7:80"]),
        ("CLOUDFLARE_API_URL", ["api.cloudflare.com", "https://u:p@x"]),
        ("LOG_LEVEL", ["INFO", "verbose"]),
        ("LOG_FORMAT", ["text"]),
    ],
)
def test_invalid_value_is_refused_and_not_shown(env: Environment, name: str, texts: list[str]) -> None:
    for text in texts:
        problems = env.problems(**{name: text})

        assert list(problems) == [name], text
        # A text of fewer than 9 characters can be in the message by coincidence.
        assert len(text) < 9 or text not in problems[name]


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        (
            "RETRY_INTERVAL",
            ["-5", "soon", "1m30", "30m1h", "1h 30m", "1.5h", "10ms", "5M", "1e3", "inf", "nan", "\u0665s"],
        ),
        ("RETRY_INTERVAL", ["0", "0h0m", "36501d", "99999999999", "9" * 30 + "d", "9" * 400, "9" * 5000 + "s"]),
        ("AUTHKEY_EXPIRATION", ["0s", "soon"]),
        ("POLL_INTERVAL", ["0s", "soon"]),
        ("VERIFY_INTERVAL", ["0s", "soon"]),
        ("HTTP_TIMEOUT", ["0s", "soon"]),
    ],
)
def test_invalid_duration_is_refused(env: Environment, name: str, texts: list[str]) -> None:
    assert [text for text in texts if list(env.problems(**{name: text})) != [name]] == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("1h30m5s", 5_405),
        ("7d", 604_800),
        ("007", 7),
        ("1.5", 1.5),
        ("36500d", 36_500 * 86_400),
    ],
)
def test_duration_is_parsed(text: str, seconds: float) -> None:
    assert parse_duration(text).total_seconds() == seconds


@given(days=st.integers(0, 99), hours=st.integers(0, 999), minutes=st.integers(0, 999), seconds=st.integers(1, 999))
def test_duration_is_the_sum_of_its_parts(days: int, hours: int, minutes: int, seconds: int) -> None:
    text = f"{days}d{hours}h{minutes}m{seconds}s"

    assert parse_duration(text) == timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


@given(st.text())
def test_every_text_is_a_duration_or_refused(text: str) -> None:
    with suppress(ValueError):
        assert isinstance(parse_duration(text), timedelta)
