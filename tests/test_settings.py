"""Every setting: missing, wrong, empty, at its limits; all problems together, and no value ever shown."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lifecycle.domain.errors import EXIT_USAGE, ConfigError
from lifecycle.domain.model import KeySpec
from lifecycle.settings.fields import is_dns_name, parse_duration
from lifecycle.settings.models import (
    SECRETS,
    CleanupSettings,
    DnsWatchSettings,
    DryRunSettings,
    Settings,
    command_variables,
    default_text,
    environment,
    load,
    near_misses,
    shown,
)
from tests.builders import SVC

ZONE_ID = "0123456789abcdef0123456789abcdef"

ENOUGH = {
    "CLOUDFLARE_API_TOKEN": "cf-t0ken",
    "DOMAIN_NAME": "example.com",
    "HEADSCALE_API_KEY": "hs-k3y",
    "POD_NAME": "grafana-0",
}
"""The least that both commands work with over the API."""

NOBODY = 65534

ALL = [CleanupSettings, DnsWatchSettings, DryRunSettings]


class Environment:
    """The environment of one test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def set(self, **variables: str | None) -> None:
        """Set these, unset those that are None."""
        for name, value in variables.items():
            if value is None:
                self._monkeypatch.delenv(name, raising=False)
            else:
                self._monkeypatch.setenv(name, value)

    def load(self, **variables: str | None) -> DryRunSettings:
        """Read all settings, after setting these."""
        self.set(**variables)
        return load(DryRunSettings)

    def problems(self, **variables: str | None) -> dict[str, str]:
        """What is wrong, by variable, after setting these."""
        with pytest.raises(ConfigError) as raised:
            self.load(**variables)
        lines = str(raised.value).split("\n")
        return {name: text for name, _, text in (line.partition(": ") for line in lines)}


def problem_of(command: type[Settings]) -> ConfigError | None:
    """What is wrong with the environment; None when nothing is."""
    try:
        load(command)
    except ConfigError as error:
        return error
    return None


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> Environment:
    """An environment with enough for every command."""
    environment = Environment(monkeypatch)
    environment.set(**ENOUGH)
    return environment


class TestDefaults:
    """What holds when nothing is said."""

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("headscale_namespace", "headscale"),
            ("cloudflare_zone_id", None),
            ("authkey_output_path", Path("/tailscale-auth/authkey")),
            ("max_retries", 30),
            ("retry_interval", timedelta(seconds=10)),
            ("node_hostname", "grafana.example.com"),
            ("record_name", "grafana.example.com"),
            ("namespace", "default"),
            ("headscale_access", "auto"),
            ("headscale_address", "http://headscale.headscale.svc.cluster.local:8080"),
            ("headscale_ca_file", None),
            ("headscale_pod_selector", None),
            ("headscale_container", None),
            ("headscale_user", None),
            ("node_policy", "replace"),
            ("ts_kube_secret", None),
            ("authkey_expiration", timedelta(hours=1)),
            ("authkey_reusable", False),
            ("authkey_ephemeral", False),
            ("authkey_tags", frozenset()),
            ("authkey_file_mode", 0o640),
            ("dns_cleanup", "delete"),
            ("dns_ttl", 60),
            ("dns_ipv6", False),
            ("mark", "tailscale-lifecycle/1 default"),
            ("vpn_prefixes", (ip_network("100.64.0.0/10"), ip_network("fd7a:115c:a1e0::/48"))),
            ("tailscale_interface", "tailscale0"),
            ("poll_interval", timedelta(seconds=30)),
            ("verify_interval", timedelta(minutes=5)),
            ("self_heal", False),
            ("health_port", 9003),
            ("health_address", None),
            ("http_timeout", timedelta(seconds=10)),
            ("cloudflare_api_url", "https://api.cloudflare.com/client/v4"),
            ("log_level", "info"),
            ("log_format", "auto"),
        ],
    )
    def test_default(self, env: Environment, name: str, value: object) -> None:
        assert getattr(env.load(), name) == value

    @pytest.mark.parametrize(
        "name", [name for name, field in command_variables(DryRunSettings).items() if default_text(field)]
    )
    def test_a_default_that_is_written_out_changes_nothing(self, env: Environment, name: str) -> None:
        """An operator may copy the table of settings into a manifest."""
        unset = env.load(**{name: None})
        text = default_text(command_variables(DryRunSettings)[name])

        assert getattr(env.load(**{name: text}), name.lower()) == getattr(unset, name.lower())

    @pytest.mark.parametrize(
        "name", [name for name in command_variables(DryRunSettings) if name != "TAILSCALE_INTERFACE"]
    )
    def test_an_empty_variable_is_an_unset_one(self, env: Environment, name: str) -> None:
        def outcome() -> Any:
            try:
                return load(DryRunSettings)
            except ConfigError as error:
                return str(error)

        env.set(**{name: None})
        unset = outcome()

        env.set(**{name: ""})
        assert outcome() == unset

    def test_an_empty_interface_means_not_to_look(self, env: Environment) -> None:
        assert env.load(TAILSCALE_INTERFACE="").tailscale_interface == ""

    def test_a_manifest_from_before_works(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A StatefulSet that sets these alone, and in a pod whose name is its host's."""
        existing = Environment(monkeypatch)
        existing.set(
            HEADSCALE_NAMESPACE="vpn",
            CLOUDFLARE_API_TOKEN="cf-t0ken",
            CLOUDFLARE_ZONE_ID=ZONE_ID,
            DOMAIN_NAME="example.com",
            AUTHKEY_OUTPUT_PATH="/shared/authkey",
            HOSTNAME="grafana-0",
        )
        cleanup = load(CleanupSettings)

        existing.set(MAX_RETRIES="30", RETRY_INTERVAL="10", AUTHKEY_OUTPUT_PATH=None)
        watch = load(DnsWatchSettings)

        assert (cleanup.access, watch.access) == ("exec", "exec")
        assert cleanup.authkey_output_path == Path("/shared/authkey")
        assert cleanup.node_hostname == watch.record_name == "grafana.example.com"
        assert watch.retry_interval == timedelta(seconds=10)


class TestValues:
    """What each setting takes, and what it refuses."""

    @pytest.mark.parametrize(
        ("name", "text", "value"),
        [
            ("HEADSCALE_NAMESPACE", "vpn-1", "vpn-1"),
            ("CLOUDFLARE_ZONE_ID", ZONE_ID, ZONE_ID),
            ("DOMAIN_NAME", "example.com", "example.com"),
            ("DOMAIN_NAME", " Example.COM.\n", "example.com"),
            ("DOMAIN_NAME", "xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("DOMAIN_NAME", "a.b", "a.b"),
            ("AUTHKEY_OUTPUT_PATH", "/a b/k", Path("/a b/k")),
            ("MAX_RETRIES", "0", 0),
            ("MAX_RETRIES", "1000000", 1_000_000),
            ("RETRY_INTERVAL", "1s", timedelta(seconds=1)),
            ("POD_NAMESPACE", "apps", "apps"),
            ("HEADSCALE_ACCESS", "exec", "exec"),
            ("HEADSCALE_URL", "https://vpn.example.com", "https://vpn.example.com"),
            ("HEADSCALE_URL", "https://vpn.example.com/", "https://vpn.example.com"),
            ("HEADSCALE_URL", "http://10.0.0.1:8080", "http://10.0.0.1:8080"),
            ("HEADSCALE_URL", "http://[fd00::1]:8080", "http://[fd00::1]:8080"),
            ("HEADSCALE_URL", "http://headscale:8080/behind/a/path/", "http://headscale:8080/behind/a/path"),
            ("HEADSCALE_URL", "HTTPS://vpn.example.com", "HTTPS://vpn.example.com"),
            ("HEADSCALE_USER", "svc@example.com", "svc@example.com"),
            ("NODE_POLICY", "replace", "replace"),
            ("TS_KUBE_SECRET", "grafana-tailscale-state", "grafana-tailscale-state"),
            ("AUTHKEY_EXPIRATION", "90d", timedelta(days=90)),
            ("AUTHKEY_REUSABLE", "true", True),
            ("AUTHKEY_REUSABLE", "False", False),
            ("AUTHKEY_EPHEMERAL", "1", True),
            ("AUTHKEY_TAGS", "tag:a", frozenset({"tag:a"})),
            ("AUTHKEY_TAGS", " tag:a-1 ,tag:b_2,, tag:a-1", frozenset({"tag:a-1", "tag:b_2"})),
            ("AUTHKEY_FILE_MODE", "0600", 0o600),
            ("AUTHKEY_FILE_MODE", "640", 0o640),
            ("AUTHKEY_FILE_MODE", "0o644", 0o644),
            ("DNS_CLEANUP", "keep", "keep"),
            ("DNS_TTL", "1", 1),
            ("DNS_TTL", "60", 60),
            ("DNS_TTL", "86400", 86_400),
            ("DNS_IPV6", "yes", True),
            ("DNS_OWNER", "staging/eu-1", "staging/eu-1"),
            ("DNS_OWNER", "x" * 78, "x" * 78),
            ("VPN_PREFIXES", "10.0.0.0/8", (ip_network("10.0.0.0/8"),)),
            ("VPN_PREFIXES", "10.1.2.3", (ip_network("10.1.2.3/32"),)),
            ("VPN_PREFIXES", "fd00::/8, 10.0.0.0/8,", (ip_network("fd00::/8"), ip_network("10.0.0.0/8"))),
            ("TAILSCALE_INTERFACE", "utun3", "utun3"),
            ("POLL_INTERVAL", "1m", timedelta(minutes=1)),
            ("VERIFY_INTERVAL", "1h30m", timedelta(minutes=90)),
            ("SELF_HEAL", "on", True),
            ("HEALTH_PORT", "0", 0),
            ("HEALTH_PORT", "65535", 65_535),
            ("HEALTH_ADDRESS", "127.0.0.1", "127.0.0.1"),
            ("HTTP_TIMEOUT", "500", timedelta(seconds=500)),
            ("HTTP_TIMEOUT", "0.5", timedelta(seconds=0.5)),
            ("CLOUDFLARE_API_URL", "http://127.0.0.1:8787/client/v4/", "http://127.0.0.1:8787/client/v4"),
            ("LOG_LEVEL", "debug", "debug"),
            ("LOG_FORMAT", "console", "console"),
        ],
    )
    def test_taken(self, env: Environment, name: str, text: str, value: object) -> None:
        assert getattr(env.load(**{name: text}), name.lower()) == value

    @pytest.mark.parametrize(
        ("name", "texts", "says"),
        [
            ("HEADSCALE_NAMESPACE", ["Head Scale", "-x", "x-", "a/b", "ä"], "Kubernetes"),
            ("CLOUDFLARE_ZONE_ID", ["example.com", ZONE_ID[1:], ZONE_ID + "0", ZONE_ID.upper(), "g" * 32], "32 hex"),
            (
                "DOMAIN_NAME",
                ["example", "example..com", "-a.com", "a_b.com", "ex ample.com", "*.example.com", ".example.com", "."],
                "domain such as example.com",
            ),
            ("DOMAIN_NAME", ["b\u00fccher.example", "\u017fervice.com", "a.b\u0131"], "xn--"),
            ("DOMAIN_NAME", [f"{'a' * 64}.com", ".".join(["a" * 50] * 6), "https://example.com"], "domain such as"),
            ("MAX_RETRIES", ["-1", "many", "1.5", "1e3"], "integer|equal to 0"),
            ("POD_NAMESPACE", ["Default", "a b", "a.b", "a" * 64], "Kubernetes"),
            ("HEADSCALE_NAMESPACE", ["-a", "a" * 64], "Kubernetes"),
            ("HEADSCALE_ACCESS", ["API", "ssh"], "'api'"),
            (
                "HEADSCALE_URL",
                [
                    "vpn.example.com",
                    "ftp://vpn.example.com",
                    "https://",
                    "https:///path",
                    "https://vpn.example.com:0",
                    "https://vpn.example.com:65536",
                    "https://vpn.example.com:port",
                    "https://vpn example.com",
                    "https://vpn.example.com\n",
                    "https://[1.2.3.4]",
                    "https://[::1",
                    "https://[vpn]",
                    "https://10.0.0.256:8080",
                    "https://10.0.0:8080",
                    "https://ex\u2100mple.com",
                    "https://\u2603..com",
                    "http://headscale..svc:8080",
                    "http://.headscale:8080",
                    f"http://{'a' * 64}.example.com",
                    "http://xn--a",
                    "unix:///var/run/headscale.sock",
                ],
                "must be an address such as",
            ),
            (
                "HEADSCALE_URL",
                [
                    "https://me:s3cr3t@vpn.example.com",
                    "https://me@vpn.example.com",
                    "https://@vpn.example.com",
                    "https://vpn.example.com?key=s3cr3t",
                    "https://vpn.example.com?",
                    "https://vpn.example.com/#x",
                    "https://vpn.example.com/#",
                ],
                "no user, password",
            ),
            ("HEADSCALE_API_KEY_SECRET", ["A", "a/b/c", "a/", "/b", "a b"], "`name` or `name/key`"),
            ("NODE_POLICY", ["Replace", "delete"], "'replace'"),
            ("TS_KUBE_SECRET", ["a/b", "A"], "Kubernetes"),
            ("AUTHKEY_REUSABLE", ["perhaps", "2"], "boolean"),
            ("AUTHKEY_EPHEMERAL", ["perhaps"], "boolean"),
            ("AUTHKEY_TAGS", ["svc", "tag:", "tag:A", "tag:a b", "tag:a;tag:b", "tag:a,svc", '["tag:a"]'], "`tag:`"),
            ("AUTHKEY_FILE_MODE", ["64", "0888", "rw-r-----", "04640", "-640", "0x1a0", "6 0"], "octal"),
            ("DNS_CLEANUP", ["no", "DELETE"], "'delete'"),
            ("DNS_TTL", ["0", "2", "59", "86401", "-1"], "60 to 86400"),
            ("DNS_TTL", ["60s", "auto"], "integer"),
            ("DNS_IPV6", ["6"], "boolean"),
            ("DNS_OWNER", ["x" * 79, "a b", "ä", "a\tb", "\x7f"], "ASCII without blanks, at most 78"),
            ("VPN_PREFIXES", ["100.64.0.1/10", "100.64.0.0/33", "vpn", "5", "10.0.0.0-10.0.0.9"], "network such as"),
            ("VPN_PREFIXES", [",", " , "], "at least one"),
            ("SELF_HEAL", ["maybe"], "boolean"),
            ("HEALTH_PORT", ["-1", "65536", "http"], "equal to|integer"),
            ("CLOUDFLARE_API_URL", ["api.cloudflare.com", "https://u:p@x"], "must be an address"),
            ("LOG_LEVEL", ["INFO", "verbose"], "'info'"),
            ("LOG_FORMAT", ["text"], "'json'"),
        ],
    )
    def test_refused(self, env: Environment, name: str, texts: list[str], says: str) -> None:
        for text in texts:
            problems = env.problems(**{name: text})

            assert list(problems) == [name], text
            assert re.search(says, problems[name]), (text, problems)
            assert len(text) < 9 or text not in problems[name]

    @pytest.mark.parametrize(
        "name", ["RETRY_INTERVAL", "AUTHKEY_EXPIRATION", "POLL_INTERVAL", "VERIFY_INTERVAL", "HTTP_TIMEOUT"]
    )
    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("0", "longer than 0"),
            ("0s", "longer than 0"),
            ("0h0m", "longer than 0"),
            ("-5", "is written 90, 90s"),
            ("soon", "is written 90, 90s"),
            ("1m30", "is written 90, 90s"),
            ("30m1h", "is written 90, 90s"),
            ("1h 30m", "is written 90, 90s"),
            ("1.5h", "is written 90, 90s"),
            ("10ms", "is written 90, 90s"),
            ("5M", "is written 90, 90s"),
            ("1e3", "is written 90, 90s"),
            ("inf", "is written 90, 90s"),
            ("nan", "is written 90, 90s"),
            ("\u0665s", "is written 90, 90s"),
            ("36501d", "100 years"),
            ("99999999999", "100 years"),
            ("9" * 30, "100 years"),
            ("9" * 30 + "d", "100 years"),
            ("9" * 400, "100 years"),
            ("9" * 5000 + "s", "100 years"),
        ],
    )
    def test_no_duration(self, env: Environment, name: str, text: str, says: str) -> None:
        assert says in env.problems(**{name: text})[name]

    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("90", 90),
            ("90s", 90),
            ("15m", 900),
            ("1h30m", 5_400),
            ("1h30m5s", 5_405),
            ("2h5s", 7_205),
            ("7d", 604_800),
            ("1d1s", 86_401),
            (" 5s\n", 5),
            ("007", 7),
            ("1.5", 1.5),
            ("36500d", 36_500 * 86_400),
        ],
    )
    def test_duration(self, text: str, seconds: float) -> None:
        assert parse_duration(text).total_seconds() == seconds

    @given(days=st.integers(0, 99), hours=st.integers(0, 999), minutes=st.integers(0, 999), seconds=st.integers(1, 999))
    def test_a_duration_is_the_sum_of_its_parts(self, days: int, hours: int, minutes: int, seconds: int) -> None:
        text = f"{days}d{hours}h{minutes}m{seconds}s"

        assert parse_duration(text) == timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)

    @given(st.text())
    def test_no_text_is_a_crash_as_a_duration(self, text: str) -> None:
        with suppress(ValueError):
            assert isinstance(parse_duration(text), timedelta)

    def test_a_boundary_within_the_domain_is_the_whole_name(self) -> None:
        assert is_dns_name("a")
        assert is_dns_name("a" * 63)
        assert not is_dns_name("a" * 64)
        assert not is_dns_name("")

    def test_what_a_key_should_be(self, env: Environment) -> None:
        settings = env.load(
            AUTHKEY_EXPIRATION="2h", AUTHKEY_REUSABLE="true", AUTHKEY_EPHEMERAL="true", AUTHKEY_TAGS="tag:a"
        )

        assert settings.key_spec(SVC) == KeySpec(
            SVC, timedelta(hours=2), reusable=True, ephemeral=True, tags=frozenset({"tag:a"})
        )


class TestRequired:
    """What nobody can guess."""

    @pytest.mark.parametrize("command", ALL)
    def test_all_that_is_missing_is_told_together(
        self, monkeypatch: pytest.MonkeyPatch, command: type[Settings]
    ) -> None:
        with pytest.raises(ConfigError) as raised:
            load(command)

        lines = str(raised.value).split("\n")
        assert [line.partition(":")[0] for line in lines] == ["DOMAIN_NAME", "CLOUDFLARE_API_TOKEN", "TS_HOSTNAME"]
        assert raised.value.exit_status == EXIT_USAGE

    def test_an_api_needs_a_key(self, env: Environment) -> None:
        problems = env.problems(HEADSCALE_API_KEY=None, HEADSCALE_URL="http://headscale:8080")

        assert list(problems) == ["HEADSCALE_API_KEY"]
        assert "headscale apikeys create" in problems["HEADSCALE_API_KEY"]

    def test_keeping_a_node_needs_its_secret(self, env: Environment) -> None:
        assert list(env.problems(NODE_POLICY="keep")) == ["TS_KUBE_SECRET"]
        assert env.load(NODE_POLICY="keep", TS_KUBE_SECRET="grafana-state").node_policy == "keep"

    def test_each_command_needs_only_its_own(self, env: Environment) -> None:
        """A setting of the other command may be wrong for all it cares."""
        env.set(DNS_TTL="0", MAX_RETRIES="many")
        assert load(CleanupSettings)

        env.set(DNS_TTL=None, MAX_RETRIES=None, NODE_POLICY="keep")
        assert load(DnsWatchSettings)


class TestAccess:
    """HEADSCALE_ACCESS=auto."""

    @pytest.mark.parametrize(
        ("given_settings", "access"),
        [
            pytest.param({}, "exec", id="nothing"),
            pytest.param({"HEADSCALE_NAMESPACE": "vpn"}, "exec", id="the-namespace-alone"),
            pytest.param({"HEADSCALE_API_KEY": "k"}, "api", id="a-key"),
            pytest.param({"HEADSCALE_API_KEY_FILE": "FILE"}, "api", id="a-key-in-a-file"),
            pytest.param({"HEADSCALE_API_KEY_SECRET": "headscale/key"}, "api", id="a-key-in-a-Secret"),
            pytest.param({"HEADSCALE_URL": "http://h", "HEADSCALE_API_KEY": "k"}, "api", id="a-URL-and-a-key"),
            pytest.param({"HEADSCALE_ACCESS": "exec", "HEADSCALE_API_KEY": "k"}, "exec", id="exec-is-said"),
            pytest.param({"HEADSCALE_ACCESS": "api", "HEADSCALE_API_KEY": "k"}, "api", id="api-is-said"),
        ],
    )
    def test_access(self, env: Environment, tmp_path: Path, given_settings: dict[str, str], access: str) -> None:
        file = tmp_path / "key"
        file.write_text("k")
        env.set(HEADSCALE_API_KEY=None)

        settings = env.load(**{name: value.replace("FILE", str(file)) for name, value in given_settings.items()})

        assert settings.access == access

    def test_api_without_a_key(self, env: Environment) -> None:
        assert list(env.problems(HEADSCALE_ACCESS="api", HEADSCALE_API_KEY=None)) == ["HEADSCALE_API_KEY"]

    def test_the_address_follows_the_namespace(self, env: Environment) -> None:
        address = "http://headscale.vpn.svc.cluster.local:8080"

        assert env.load(HEADSCALE_NAMESPACE="vpn").headscale_address == address
        assert env.load(HEADSCALE_URL="http://h:1").headscale_address == "http://h:1"

    @pytest.mark.parametrize("reference", ["headscale", "headscale/API_KEY.1"])
    def test_a_key_in_a_secret(self, env: Environment, reference: str) -> None:
        settings = env.load(HEADSCALE_API_KEY=None, HEADSCALE_API_KEY_SECRET=reference)

        assert settings.headscale_api_key_secret == reference

    def test_two_keys_are_one_too_many(self, env: Environment, tmp_path: Path) -> None:
        assert list(env.problems(HEADSCALE_API_KEY_SECRET="headscale")) == ["HEADSCALE_API_KEY_SECRET"]
        file = tmp_path / "key"
        file.write_text("k")
        env.set(HEADSCALE_API_KEY=None, HEADSCALE_API_KEY_FILE=str(file))
        assert list(env.problems(HEADSCALE_API_KEY_SECRET="headscale")) == ["HEADSCALE_API_KEY_SECRET"]


class TestSecrets:
    """Tokens and keys, from the environment or a file."""

    @pytest.mark.parametrize("name", SECRETS)
    @pytest.mark.parametrize("text", ["t0ken", " t0ken\n", "t0ken\r\n", "\tt0ken", "t0ken ", "t0ken\n\n"], ids=repr)
    def test_blanks_around_a_secret_are_nobodys(self, env: Environment, tmp_path: Path, name: str, text: str) -> None:
        assert env.load(**{name: text}).secret(name) == "t0ken"

        file = tmp_path / "secret"
        file.write_bytes(text.encode())
        assert env.load(**{name: None, f"{name}_FILE": str(file)}).secret(name) == "t0ken"

    @pytest.mark.parametrize("name", SECRETS)
    @pytest.mark.parametrize(
        "text", ["abc.def", "abc~def+ghi/jkl==", "hskey-api-abc_DEF-123", "A" * 4096], ids=lambda text: text[:20]
    )
    def test_every_form_of_a_secret_is_taken(self, env: Environment, name: str, text: str) -> None:
        assert env.load(**{name: text}).secret(name) == text

    @pytest.mark.parametrize("name", SECRETS)
    @pytest.mark.parametrize(
        "text",
        ['"t0ken"', "'t0ken'", "t0 ken", "t0\nken", "<your-token>", "${TOKEN}", "Bearer t0ken", "t=0ken", "tök", " "],
    )
    def test_what_is_no_secret_is_refused(self, env: Environment, tmp_path: Path, name: str, text: str) -> None:
        problems = env.problems(**{name: text})
        assert list(problems) == [name]
        assert "is not a token" in problems[name]

        file = tmp_path / "secret"
        file.write_text(text)
        problems = env.problems(**{name: None, f"{name}_FILE": str(file)})
        assert list(problems) == [f"{name}_FILE"]
        assert "not a token" in problems[f"{name}_FILE"]

    @pytest.mark.parametrize("name", SECRETS)
    @pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe", b"t0ken\nt0ken", b"t0ken\x00", b"{}"], ids=repr)
    def test_a_file_of_something_else_is_refused(
        self, env: Environment, tmp_path: Path, name: str, content: bytes
    ) -> None:
        file = tmp_path / "secret"
        file.write_bytes(content)

        problems = env.problems(**{name: None, f"{name}_FILE": str(file)})

        assert list(problems) == [f"{name}_FILE"]
        assert "not a token" in problems[f"{name}_FILE"]

    @pytest.mark.parametrize("name", SECRETS)
    def test_a_secret_and_its_file_are_one_too_many(self, env: Environment, tmp_path: Path, name: str) -> None:
        file = tmp_path / "secret"
        file.write_text("t0ken")

        problems = env.problems(**{name: "other", f"{name}_FILE": str(file)})

        assert problems == {name: f"set this or {name}_FILE, not both"}

    @pytest.mark.parametrize("name", [*(f"{name}_FILE" for name in SECRETS), "HEADSCALE_CA_FILE"])
    @pytest.mark.parametrize("path", ["no-such-file", ".", "no/such/folder", "x" * 300, "file/below", "loop"])
    def test_a_file_that_is_not_there(self, env: Environment, name: str, path: str) -> None:
        """One problem, not two: that the secret itself is missing follows from it."""
        Path("file").touch()
        Path("loop").symlink_to("loop")
        env.set(**{name.removesuffix("_FILE"): None})

        problems = env.problems(**{name: path})

        assert list(problems) == [name]
        assert problems[name].startswith("names a file that ")

    @pytest.mark.parametrize("closed", ["file", "folder"])
    def test_a_file_that_may_not_be_read(self, env: Environment, tmp_path: Path, closed: str) -> None:
        """Permission bits count for everybody but root, who is somebody else for a moment."""
        file = tmp_path / "folder" / "file"
        file.parent.mkdir()
        file.write_text("t0ken")
        env.set(CLOUDFLARE_API_TOKEN=None, CLOUDFLARE_API_TOKEN_FILE=str(file))
        (file if closed == "file" else file.parent).chmod(0o000)
        if os.geteuid() == 0:
            os.seteuid(NOBODY)
        try:
            problems = env.problems()
        finally:
            os.seteuid(os.getuid())
            file.parent.chmod(0o700)

        assert list(problems) == ["CLOUDFLARE_API_TOKEN_FILE"]
        assert "cannot be re" in problems["CLOUDFLARE_API_TOKEN_FILE"]

    def test_a_file_is_read_anew_each_time(self, env: Environment, tmp_path: Path) -> None:
        """Tokens are rotated in their files."""
        file = tmp_path / "secret"
        file.write_text("first")
        settings = env.load(CLOUDFLARE_API_TOKEN=None, CLOUDFLARE_API_TOKEN_FILE=str(file))
        assert settings.secret("CLOUDFLARE_API_TOKEN") == "first"

        file.write_text("second\n")
        assert settings.secret("CLOUDFLARE_API_TOKEN") == "second"

        file.unlink()
        with pytest.raises(ConfigError, match="CLOUDFLARE_API_TOKEN_FILE: the file cannot be read"):
            settings.secret("CLOUDFLARE_API_TOKEN")

        file.write_text("not a token")
        with pytest.raises(ConfigError) as raised:
            settings.secret("CLOUDFLARE_API_TOKEN")
        assert "not a token" in str(raised.value)
        assert raised.value.__cause__ is None

    def test_no_secret_is_shown(self, env: Environment) -> None:
        settings = env.load(HEADSCALE_USER="svc")

        for text in (repr(settings), str(settings), str(shown(settings)), settings.model_dump_json()):
            assert "cf-t0ken" not in text
            assert "hs-k3y" not in text
        assert not {name.lower() for name in SECRETS} & shown(settings).keys()

    def test_no_secret_is_shown_by_the_error_of_a_setting_beside_it(self, env: Environment) -> None:
        """Nor by an error that nobody caught."""
        env.set(DOMAIN_NAME=None, HEADSCALE_URL="s3cr3t")

        with pytest.raises(ValidationError) as raised:
            DryRunSettings()

        assert not re.search("cf-t0ken|hs-k3y|s3cr3t", f"{raised.value}{raised.value!r}")


class TestProblems:
    """Everything at once, by name, never by value."""

    def test_every_problem_is_told(self, env: Environment) -> None:
        problems = env.problems(
            DOMAIN_NAME="nonsense",
            CLOUDFLARE_API_TOKEN=None,
            CLOUDFLARE_ZONE_ID="nonsense",
            HEADSCALE_URL="nonsense",
            AUTHKEY_FILE_MODE="nonsense",
            DNS_TTL="30",
            VPN_PREFIXES="nonsense,10.0.0.0/8,nonsense",
            NODE_POLICY="keep",
            POD_NAME="grafana-7d9c5b-xk2vp",
        )

        assert problems.keys() == {
            "DOMAIN_NAME",
            "CLOUDFLARE_API_TOKEN",
            "CLOUDFLARE_ZONE_ID",
            "HEADSCALE_URL",
            "AUTHKEY_FILE_MODE",
            "DNS_TTL",
            "VPN_PREFIXES",
            "TS_KUBE_SECRET",
            "TS_HOSTNAME",
        }

    @given(data=st.data())
    def test_no_problem_shows_a_value(self, data: st.DataObject) -> None:
        """Whatever is given for whichever settings, the error names variables and repeats nothing of it."""
        usual = st.characters(codec="utf-8", exclude_characters="\x00")
        odd = st.text(st.one_of(usual, st.sampled_from("\u2100\u2048[]:@/#?%., ")), min_size=4, max_size=30)
        marked = st.sampled_from(["{}", "https://{}", "https://u:{}@h", "tag:{}", "{}/8", "/{}", "1{}", "[{}]"])
        names = data.draw(st.lists(st.sampled_from([*command_variables(DryRunSettings), "HOSTNAME"]), unique=True))
        canary = "Zq" + data.draw(odd)
        with pytest.MonkeyPatch.context() as monkeypatch:
            for name, value in ENOUGH.items():
                monkeypatch.setenv(name, value)
            for name in names:
                monkeypatch.setenv(name, data.draw(marked).format(canary))

            error: BaseException | None = problem_of(DryRunSettings)

        known = {*command_variables(DryRunSettings)}
        assert {line.partition(":")[0] for line in str(error or "").split("\n")} <= known | {""}
        # What a traceback would show counts too.
        while error is not None:
            assert "Zq" not in str(error)
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)

    @given(
        st.text("aZ019.-_~:/[]%@?#&=+,;!$'()*^|`<>{}\\ \"\x1b\x7f\u00e9\u2100\u2603", max_size=12).map(
            "http://{}".format
        )
    )
    def test_an_address_that_is_taken_is_one_for_the_client(self, url: str) -> None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            for name, value in ENOUGH.items():
                monkeypatch.setenv(name, value)
            monkeypatch.setenv("HEADSCALE_URL", url)
            try:
                address = load(DnsWatchSettings).headscale_address
            except ConfigError:
                return

        with httpx.Client(base_url=address) as client:
            assert client.base_url.host

    @pytest.mark.parametrize("name", ["HEADSCALE_USER", "TS_HOSTNAME", "HEADSCALE_CONTAINER", "HEALTH_ADDRESS"])
    def test_bytes_that_are_no_text_are_a_problem_or_none(self, env: Environment, name: str) -> None:
        """From an environment in another encoding."""
        env.set(**{name: os.fsdecode(b"caf\xe9")})

        assert str(problem_of(DryRunSettings) or name).startswith(name)


class TestName:
    """What the node and the record are called."""

    @pytest.mark.parametrize(
        ("variables", "node", "record"),
        [
            pytest.param({"POD_NAME": "grafana-0"}, "grafana.example.com", "grafana.example.com", id="StatefulSet"),
            pytest.param(
                {"POD_NAME": None, "HOSTNAME": "grafana-0"},
                "grafana.example.com",
                "grafana.example.com",
                id="pod's-name-from-its-host",
            ),
            pytest.param(
                {"POD_NAME": "grafana-0", "HOSTNAME": "grafana-0"},
                "grafana.example.com",
                "grafana.example.com",
                id="both",
            ),
            pytest.param({"POD_NAME": "my-app-0"}, "my-app.example.com", "my-app.example.com", id="with-hyphen"),
            pytest.param({"POD_NAME": "app-0-0"}, "app-0.example.com", "app-0.example.com", id="only-the-last"),
            pytest.param({"TS_HOSTNAME": "web.example.com"}, "web.example.com", "web.example.com", id="full-name"),
            pytest.param({"TS_HOSTNAME": "Web.Example.com"}, "Web.Example.com", "web.example.com", id="case-is-kept"),
            pytest.param({"TS_HOSTNAME": "web"}, "web", "web.example.com", id="one-label"),
            pytest.param({"TS_HOSTNAME": "a.b.example.com"}, "a.b.example.com", "a.b.example.com", id="deeper"),
            pytest.param({"TS_HOSTNAME": "example.com"}, "example.com", "example.com", id="the-domain-itself"),
            pytest.param(
                {"TS_HOSTNAME": "web.eu.example.com", "DOMAIN_NAME": "eu.example.com"},
                "web.eu.example.com",
                "web.eu.example.com",
                id="domain-below-the-apex",
            ),
            pytest.param(
                {"TS_HOSTNAME": "web", "POD_NAME": "web-7d9c5b-xk2vp"}, "web", "web.example.com", id="Deployment"
            ),
            pytest.param(
                {"TS_HOSTNAME": "web", "POD_NAME": "web-xk2vp", "HOSTNAME": "worker-1"},
                "web",
                "web.example.com",
                id="host-network",
            ),
            pytest.param({"TS_HOSTNAME": "web", "POD_NAME": None}, "web", "web.example.com", id="no-pod-at-all"),
            pytest.param(
                {"TS_HOSTNAME": "web-1.example.com", "POD_NAME": "web-1"},
                "web-1.example.com",
                "web-1.example.com",
                id="a-replica's-own-name",
            ),
            pytest.param(
                {"TS_HOSTNAME": "n12", "POD_NAME": "web-12"}, "n12", "n12.example.com", id="its-ordinal-elsewhere"
            ),
            pytest.param(
                {"TS_HOSTNAME": "web2-2.example.com", "POD_NAME": "web2-2"},
                "web2-2.example.com",
                "web2-2.example.com",
                id="a-replica-of-a-service-with-a-number",
            ),
            pytest.param(
                {"TS_HOSTNAME": "web.example.com", "POD_NAME": "web-0"},
                "web.example.com",
                "web.example.com",
                id="ordinal-0-needs-none",
            ),
            pytest.param({"TS_HOSTNAME": "ab"}, "ab", "ab.example.com", id="shortest"),
            pytest.param({"TS_HOSTNAME": "a" * 63}, "a" * 63, f"{'a' * 63}.example.com", id="longest-label"),
            pytest.param(
                {"TS_HOSTNAME": f"{'a' * 51}.example.com"},
                f"{'a' * 51}.example.com",
                f"{'a' * 51}.example.com",
                id="longest-name",
            ),
            pytest.param({"POD_NAME": f"{'a' * 51}-0"}, f"{'a' * 51}.example.com", f"{'a' * 51}.example.com", id="pod"),
        ],
    )
    def test_name(self, env: Environment, variables: dict[str, str | None], node: str, record: str) -> None:
        settings = env.load(**variables)

        assert (settings.node_hostname, settings.record_name) == (node, record)

    @pytest.mark.parametrize(
        ("variables", "says"),
        [
            pytest.param({"POD_NAME": None}, "set TS_HOSTNAME", id="no-pod-at-all"),
            pytest.param({"POD_NAME": None, "HOSTNAME": "laptop"}, "set TS_HOSTNAME", id="a-laptop"),
            pytest.param({"POD_NAME": "web-7d9c5b-xk2vp"}, "set TS_HOSTNAME", id="Deployment"),
            pytest.param({"POD_NAME": "web-1"}, "set TS_HOSTNAME", id="ordinal-1"),
            pytest.param({"POD_NAME": "web-10"}, "set TS_HOSTNAME", id="ordinal-10"),
            pytest.param({"POD_NAME": "web-00"}, "set TS_HOSTNAME", id="no-ordinal"),
            pytest.param({"POD_NAME": "web0"}, "set TS_HOSTNAME", id="no-hyphen"),
            pytest.param({"POD_NAME": "-0"}, "set TS_HOSTNAME", id="no-service"),
            pytest.param({"POD_NAME": "web-0", "HOSTNAME": "worker-0"}, "host network", id="host-network"),
            pytest.param(
                {"TS_HOSTNAME": "web.example.com", "POD_NAME": "web-1"}, "lacks the pod's ordinal", id="shared"
            ),
            pytest.param(
                {"TS_HOSTNAME": "web-1.example.com", "POD_NAME": "web-2"}, "lacks the pod's ordinal", id="another's"
            ),
            pytest.param(
                {"TS_HOSTNAME": "web-12.example.com", "POD_NAME": "web-2"}, "lacks the pod's ordinal", id="part-of-one"
            ),
            pytest.param(
                {"TS_HOSTNAME": "web-21.example.com", "POD_NAME": "web-2"}, "lacks the pod's ordinal", id="start-of-one"
            ),
            pytest.param(
                {"TS_HOSTNAME": "web.srv1.net", "POD_NAME": "web-1", "DOMAIN_NAME": "srv1.net"},
                "lacks the pod's ordinal",
                id="a-number-of-the-domain",
            ),
            pytest.param(
                {"TS_HOSTNAME": "srv1.net", "POD_NAME": "web-1", "DOMAIN_NAME": "srv1.net"},
                "lacks the pod's ordinal",
                id="the-domain-itself",
            ),
            pytest.param(
                {"TS_HOSTNAME": "web2.example.com", "POD_NAME": "web2-2"},
                "lacks the pod's ordinal",
                id="a-number-of-the-service",
            ),
            pytest.param({"TS_HOSTNAME": "web.example.org"}, "must be DOMAIN_NAME, end in", id="another-domain"),
            pytest.param({"TS_HOSTNAME": "webexample.com"}, "must be DOMAIN_NAME, end in", id="not-at-a-dot"),
            pytest.param({"TS_HOSTNAME": "com"}, None, id="a-label-of-the-domain-is-a-label"),
            pytest.param({"TS_HOSTNAME": "example.com.evil"}, "must be DOMAIN_NAME, end in", id="longer-domain"),
            pytest.param({"TS_HOSTNAME": "web.example.com."}, "only letters", id="trailing-dot"),
            pytest.param({"TS_HOSTNAME": ".example.com"}, "only letters", id="leading-dot"),
            pytest.param({"TS_HOSTNAME": "a..example.com"}, "only letters", id="two-dots"),
            pytest.param({"TS_HOSTNAME": "my_app"}, "only letters", id="underscore"),
            pytest.param({"TS_HOSTNAME": "my app"}, "only letters", id="blank"),
            pytest.param({"TS_HOSTNAME": "web\n"}, "only letters", id="line-break"),
            pytest.param({"TS_HOSTNAME": "-web"}, "only letters", id="leading-hyphen"),
            pytest.param({"TS_HOSTNAME": "web-"}, "only letters", id="trailing-hyphen"),
            pytest.param({"TS_HOSTNAME": "\u017ferver"}, "only letters", id="a-letter-like-an-s"),
            pytest.param({"TS_HOSTNAME": "$(POD_NAME).example.com"}, "only letters", id="not-expanded"),
            pytest.param({"TS_HOSTNAME": "*.example.com"}, "only letters", id="wildcard"),
            pytest.param({"TS_HOSTNAME": "a"}, "1 characters", id="too-short"),
            pytest.param({"TS_HOSTNAME": f"{'a' * 52}.example.com"}, "64 characters", id="too-long"),
            pytest.param({"TS_HOSTNAME": "a" * 64}, "64 characters", id="too-long-a-label"),
            pytest.param({"POD_NAME": f"{'a' * 52}-0"}, "64 characters", id="pod-too-long"),
            pytest.param(
                {"TS_HOSTNAME": "a" * 63, "DOMAIN_NAME": ".".join(["b" * 60] * 4)[:200]},
                "longer than 253",
                id="too-long-a-record",
            ),
        ],
    )
    def test_refused(self, env: Environment, variables: dict[str, str | None], says: str | None) -> None:
        if says is None:
            assert env.load(**variables)
            return

        problems = env.problems(**variables)

        assert list(problems) == ["TS_HOSTNAME"]
        assert says in problems["TS_HOSTNAME"]

    @given(
        base=st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True),
        ordinals=st.lists(st.integers(0, 12), min_size=2, max_size=2, unique=True),
        template=st.sampled_from(["{pod}.example.com", "{pod}", "{base}.example.com", "{base}", "x.{pod}.example.com"]),
    )
    def test_no_two_replicas_share_a_name(self, base: str, ordinals: list[int], template: str) -> None:
        """The same template in the manifest: one of the two has to be refused, unless it names each."""
        names = []
        for ordinal in ordinals:
            pod = f"{base}-{ordinal}"
            with pytest.MonkeyPatch.context() as monkeypatch:
                for name, value in ENOUGH.items():
                    monkeypatch.setenv(name, value)
                monkeypatch.setenv("POD_NAME", pod)
                monkeypatch.setenv("TS_HOSTNAME", template.format(pod=pod, base=base))
                error = problem_of(CleanupSettings)
                if error is None:
                    names.append(load(CleanupSettings).record_name)
                else:
                    assert "TS_HOSTNAME" in str(error)

        assert len(set(names)) == len(names)
        assert "{pod}" not in template or len(base) < 2 or len(names) == 2

    @pytest.mark.parametrize(
        ("variables", "mark"),
        [
            ({}, "tailscale-lifecycle/1 default"),
            ({"POD_NAMESPACE": "apps"}, "tailscale-lifecycle/1 apps"),
            ({"POD_NAMESPACE": "apps", "DNS_OWNER": "Cluster-2/apps"}, "tailscale-lifecycle/1 Cluster-2/apps"),
        ],
    )
    def test_the_mark_names_the_owner(self, env: Environment, variables: dict[str, str], mark: str) -> None:
        assert env.load(**variables).mark == mark


class TestEnvFile:
    """`.env` in the working directory, for local runs."""

    def test_it_is_read(self, env: Environment) -> None:
        Path(".env").write_text(
            "# a comment\nexport DNS_TTL=120\nTS_HOSTNAME='web'\nAUTHKEY_TAGS=tag:a,tag:b\nPOLL_INTERVAL=\n"
        )
        settings = env.load()

        assert settings.dns_ttl == 120
        assert settings.record_name == "web.example.com"
        assert settings.authkey_tags == {"tag:a", "tag:b"}
        assert settings.poll_interval == timedelta(seconds=30)

    def test_the_environment_wins(self, env: Environment) -> None:
        Path(".env").write_text("DNS_TTL=120\nHEADSCALE_USER=ann\nCLOUDFLARE_API_TOKEN=other\n")
        settings = env.load(DNS_TTL="300")

        assert settings.dns_ttl == 300
        assert settings.headscale_user == "ann"
        assert settings.secret("CLOUDFLARE_API_TOKEN") == "cf-t0ken"

    def test_an_empty_variable_does_not_hide_the_file(self, env: Environment) -> None:
        """It is an unset one."""
        Path(".env").write_text("DNS_TTL=120\n")

        assert env.load(DNS_TTL="").dns_ttl == 120

    @pytest.mark.parametrize(
        ("in_file", "in_environment", "interface"),
        [
            ("TAILSCALE_INTERFACE=", None, ""),
            ("TAILSCALE_INTERFACE=utun3", None, "utun3"),
            ("TAILSCALE_INTERFACE=utun3", "", ""),
            ("TAILSCALE_INTERFACE=", "utun4", "utun4"),
            ("", "", ""),
            ("", None, "tailscale0"),
        ],
    )
    def test_the_interface_may_be_empty_in_either(
        self, env: Environment, in_file: str, in_environment: str | None, interface: str
    ) -> None:
        Path(".env").write_text(in_file)

        assert env.load(TAILSCALE_INTERFACE=in_environment).tailscale_interface == interface

    def test_its_problems_are_problems(self, env: Environment) -> None:
        Path(".env").write_text("DNS_TTL=s3cr3t\n")

        assert "s3cr3t" not in str(env.problems())
        assert list(env.problems()) == ["DNS_TTL"]

    def test_other_variables_in_it_are_nobodys_business(self, env: Environment) -> None:
        Path(".env").write_text("POSTGRES_PASSWORD=x\n")

        assert env.load()

    def test_a_folder_of_that_name_is_no_file(self, env: Environment) -> None:
        """Some keep a virtual environment there."""
        Path(".env").mkdir()

        assert env.load()

    def test_a_file_that_is_no_text_is_a_problem(self, env: Environment) -> None:
        Path(".env").write_bytes(b"DOMAIN_NAME=caf\xe9.example\n")

        with pytest.raises(ConfigError, match="UTF-8"):
            env.load()
        with pytest.raises(ConfigError, match="UTF-8"):
            environment()

    def test_a_working_directory_that_cannot_be_entered_has_no_such_file(self, env: Environment) -> None:
        """A container may run as a user for whom the image's was not made."""
        Path().absolute().chmod(0o000)
        if os.geteuid() == 0:
            os.seteuid(NOBODY)
        try:
            assert env.load()
        finally:
            os.seteuid(os.getuid())
            Path().absolute().chmod(0o700)

    def test_what_can_be_near_missed_is_in_it_too(self, env: Environment) -> None:
        Path(".env").write_text("CLOUDFARE_ZONE_ID=x\nDNS_TTL=120\n")
        env.set(DNS_TTL="300")

        assert environment()["CLOUDFARE_ZONE_ID"] == "x"
        assert environment()["DNS_TTL"] == "300"


class TestNearMisses:
    """Variables that look like ours, misspelt."""

    @pytest.mark.parametrize(
        ("variable", "meant"),
        [
            ("CLOUDFARE_ZONE_ID", "CLOUDFLARE_ZONE_ID"),
            ("CLOUDFLARE_API_KEY", "CLOUDFLARE_API_TOKEN"),
            ("CLOUDFLARE_TOKEN", "CLOUDFLARE_API_TOKEN"),
            ("CLOUDFLARE_APITOKEN", "CLOUDFLARE_API_TOKEN"),
            ("HEADSCALE_APIKEY", "HEADSCALE_API_KEY"),
            ("HEADSCALE_ULR", "HEADSCALE_URL"),
            ("HEADSCALE_NAMESPCE", "HEADSCALE_NAMESPACE"),
            ("DOMAINNAME", "DOMAIN_NAME"),
            ("DOMAIN_NAMES", "DOMAIN_NAME"),
            ("domain_name", "DOMAIN_NAME"),
            ("AUTH_KEY_OUTPUT_PATH", "AUTHKEY_OUTPUT_PATH"),
            ("AUTHKEY_OUTPUT_FILE", None),
            ("MAX_RETRY", None),
            ("MAX_RETRIE", "MAX_RETRIES"),
            ("RETRY_INTERVALL", "RETRY_INTERVAL"),
            ("TS_HOST_NAME", "TS_HOSTNAME"),
            ("DNS_OWNERS", "DNS_OWNER"),
            ("SELFHEAL", "SELF_HEAL"),
            ("LOGLEVEL", "LOG_LEVEL"),
        ],
    )
    def test_near_miss(self, variable: str, meant: str | None) -> None:
        assert near_misses([variable]) == ([(variable, meant)] if meant else [])

    @pytest.mark.parametrize(
        "variable",
        [
            *command_variables(DryRunSettings),
            "HOSTNAME",
            "PATH",
            "HOME",
            "LOGNAME",
            "USER",
            "PWD",
            "TZ",
            # What Kubernetes sets for services called headscale, or like ours.
            "KUBERNETES_SERVICE_HOST",
            "KUBERNETES_PORT_443_TCP_ADDR",
            "HEADSCALE_SERVICE_HOST",
            "HEADSCALE_SERVICE_PORT",
            "HEADSCALE_PORT",
            "HEADSCALE_PORT_8080_TCP",
            "GRAFANA_SERVICE_HOST",
            "TAILSCALE_SERVICE_HOST",
            # What the tailscale container next to us takes.
            "TS_AUTHKEY",
            "TS_AUTH_KEY",
            "TS_AUTH_ONCE",
            "TS_ACCEPT_DNS",
            "TS_EXTRA_ARGS",
            "TS_STATE_DIR",
            "TS_USERSPACE",
            "TS_SOCKET",
            "TS_ROUTES",
            "TS_DEST_IP",
            "TS_ENABLE_HEALTH_CHECK",
            "TS_LOCAL_ADDR_PORT",
            # What Headscale itself takes, and what pods often have.
            "HEADSCALE_SERVER_URL",
            "HEADSCALE_LISTEN_ADDR",
            "HEADSCALE_CLI_ADDRESS",
            "HEADSCALE_LOG_LEVEL",
            "HEADSCALE_CONFIG",
            "NODE_NAME",
            "NODE_IP",
            "POD_IP",
            "HOST_IP",
            "NAMESPACE",
            "SERVICE_ACCOUNT",
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "SSL_CERT_FILE",
            "PYTHONUNBUFFERED",
        ],
    )
    def test_no_near_miss(self, variable: str) -> None:
        """A warning that cries wolf is read by nobody."""
        assert near_misses([variable]) == []

    def test_each_is_told_once_and_in_order(self) -> None:
        misses = near_misses(["MAX_RETRIE", "DNS_OWNERS", "PATH", "DNS_OWNERS"])

        assert misses == [("DNS_OWNERS", "DNS_OWNER"), ("MAX_RETRIE", "MAX_RETRIES")]

    def test_a_near_miss_has_no_effect(self, env: Environment) -> None:
        """What is warned about as misspelt is not taken all the same."""
        assert env.load(dns_ttl="300", log_level="debug", DNS_TTl="400").dns_ttl == 60
        assert list(env.problems(DOMAIN_NAME=None, domain_name="example.com")) == ["DOMAIN_NAME"]


class TestShown:
    """The settings in the log."""

    def test_every_setting_but_the_secrets(self, env: Environment) -> None:
        values = shown(env.load(AUTHKEY_TAGS="tag:b,tag:a", AUTHKEY_FILE_MODE="0600", HTTP_TIMEOUT="500s"))

        assert {name.removesuffix("_s") for name in values} == {
            name.lower() for name in command_variables(DryRunSettings) if name not in SECRETS
        }
        assert values["authkey_tags"] == "tag:a,tag:b"
        assert values["authkey_file_mode"] == "0600"
        assert values["authkey_output_path"] == "/tailscale-auth/authkey"
        assert values["authkey_expiration_s"] == 3600.0
        assert values["http_timeout_s"] == 500.0
        assert values["vpn_prefixes"] == "100.64.0.0/10,fd7a:115c:a1e0::/48"
        assert values["self_heal"] is False
        assert values["dns_ttl"] == 60
        assert values["headscale_url"] is None
        assert values["domain_name"] == "example.com"

    def test_only_what_the_command_reads(self, env: Environment) -> None:
        env.set()

        assert "dns_ttl" not in shown(load(CleanupSettings))
        assert "dns_cleanup" not in shown(load(DnsWatchSettings))
