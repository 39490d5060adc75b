"""Test how settings are read from the environment and the file `.env`, and which misspelt names are reported."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest

from lifecycle.domain.errors import ConfigError
from lifecycle.settings.load import environment, load, near_misses, service_links
from lifecycle.settings.models import CleanupSettings, DnsWatchSettings, DryRunSettings, command_variables
from lifecycle.settings.reference import non_default_settings
from tests.settings.environment import MINIMUM, UNPRIVILEGED_USER_ID, Environment

# --- White space and control characters ------------------------------------------------------------------------------

# Settings of different types, each with a valid value.
VALID_VALUES = {
    "DOMAIN_NAME": "example.com",
    "AUTHKEY_OUTPUT_PATH": "/shared/authkey",
    "HEADSCALE_URL": "https://hs.example.com",
    "HEADSCALE_USER": "services",
    "HEADSCALE_PROXY": "http://proxy:3128",
    "NODE_POLICY": "keep",
    "AUTHKEY_EXPIRATION": "2h",
    "AUTHKEY_REUSABLE": "true",
    "AUTHKEY_TAGS": "tag:a",
    "DNS_TTL": "120",
    "TAILSCALE_INTERFACE": "utun3",
}


@pytest.mark.parametrize("name", VALID_VALUES)
@pytest.mark.parametrize("padding", ["\n", "\r\n", " ", "\t", "\u00a0"], ids=repr)
def test_surrounding_whitespace_is_stripped(env: Environment, name: str, padding: str) -> None:
    """Values from files of a Secret or ConfigMap often end with a line break."""
    env.set(TS_KUBE_SECRET="state")  # NODE_POLICY=keep requires this setting
    expected = getattr(env.load(**{name: VALID_VALUES[name]}), name.lower())

    assert getattr(env.load(**{name: f"{padding}{VALID_VALUES[name]}{padding}"}), name.lower()) == expected


@pytest.mark.parametrize("name", VALID_VALUES)
@pytest.mark.parametrize("character", ["\n", "\x1b", "\x7f", "\x85", "\t"], ids=repr)
def test_control_character_is_refused(env: Environment, name: str, character: str) -> None:
    value = VALID_VALUES[name]

    assert list(env.problems(**{name: value[:1] + character + value[1:]})) == [name]


# --- Service links ------------------------------------------------------------------------------------

# Variables that Kubernetes sets in the pods of a namespace with a Service named `health`.
SERVICE_VARIABLES = {
    "HEALTH_PORT": "tcp://10.43.7.7:80",
    "HEALTH_SERVICE_HOST": "10.43.7.7",
    "HEALTH_SERVICE_PORT": "80",
}


def test_variable_of_a_service_is_not_a_setting(env: Environment) -> None:
    """HEALTH_PORT is also a setting. If it is a number, the other variables of the Service do not matter."""
    assert env.load(**SERVICE_VARIABLES).health_port == 9003
    assert service_links(environment()) == ["HEALTH_PORT"]
    assert env.load(HEALTH_PORT="8080").health_port == 8080
    assert service_links(environment()) == []


@pytest.mark.parametrize("missing", ["HEALTH_SERVICE_HOST", "HEALTH_SERVICE_PORT"])
def test_url_is_an_invalid_port_if_a_variable_of_the_service_is_missing(env: Environment, missing: str) -> None:
    assert list(env.problems(**SERVICE_VARIABLES | {missing: None})) == ["HEALTH_PORT"]


# --- .env ---------------------------------------------------------------------------------------------


def test_env_file_is_read(env: Environment) -> None:
    Path(".env").write_text(
        "# a comment\nexport DNS_TTL=120\nTS_HOSTNAME='web'\nAUTHKEY_TAGS=tag:a,tag:b\nPOLL_INTERVAL=\n"
    )
    settings = env.load()

    assert settings.dns_ttl == 120
    assert settings.record_name == "web.example.com"
    assert settings.authkey_tags == {"tag:a", "tag:b"}
    assert settings.poll_interval == timedelta(seconds=30)


def test_environment_takes_precedence_over_the_file(env: Environment) -> None:
    """An empty variable does not override the file."""
    Path(".env").write_text("DNS_TTL=120\nHEADSCALE_USER=ann\nCLOUDFARE_ZONE_ID=x\nCLOUDFLARE_API_TOKEN=other\n")
    settings = env.load(DNS_TTL="300", HEADSCALE_USER="")

    assert settings.dns_ttl == 300
    assert settings.headscale_user == "ann"
    assert settings.secret("CLOUDFLARE_API_TOKEN") == MINIMUM["CLOUDFLARE_API_TOKEN"]
    # A misspelt variable of the file is returned too, so that it can be reported.
    assert environment()["CLOUDFARE_ZONE_ID"] == "x"
    assert environment()["DNS_TTL"] == "300"


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
def test_interface_can_be_empty(env: Environment, in_file: str, in_environment: str | None, interface: str) -> None:
    """For this setting only, an empty variable overrides the file and the default."""
    Path(".env").write_text(in_file)

    assert env.load(TAILSCALE_INTERFACE=in_environment).tailscale_interface == interface


def test_folder_named_env_is_ignored(env: Environment) -> None:
    """The folder of a Python virtual environment may be named `.env`."""
    Path(".env").mkdir()

    assert env.load()


def test_undecodable_file_is_refused(env: Environment) -> None:
    Path(".env").write_bytes(b"DOMAIN_NAME=caf\xe9.example\n")

    with pytest.raises(ConfigError, match="UTF-8"):
        env.load()


def test_unreachable_working_directory_is_ignored(env: Environment) -> None:
    """A container may run as a user without access to the image's working directory."""
    Path().absolute().chmod(0o000)
    if os.geteuid() == 0:
        os.seteuid(UNPRIVILEGED_USER_ID)
    try:
        assert env.load()
    finally:
        os.seteuid(os.getuid())
        Path().absolute().chmod(0o700)


# --- Near misses: variables whose names resemble the name of a setting ---------------------------------


@pytest.mark.parametrize(
    ("variable", "setting"),
    [
        ("CLOUDFARE_ZONE_ID", "CLOUDFLARE_ZONE_ID"),
        ("CLOUDFLARE_API_KEY", "CLOUDFLARE_API_TOKEN"),
        ("CLOUDFLARE_TOKEN", "CLOUDFLARE_API_TOKEN"),
        ("HEADSCALE_ULR", "HEADSCALE_URL"),
        ("DOMAINNAME", "DOMAIN_NAME"),
        ("domain_name", "DOMAIN_NAME"),
        ("MAX_RETRIE", "MAX_RETRIES"),
        ("SELFHEAL", "SELF_HEAL"),
    ],
)
def test_misspelt_variable_is_a_near_miss(variable: str, setting: str) -> None:
    assert near_misses([variable]) == [(variable, setting)]


@pytest.mark.parametrize(
    "variable",
    [
        *command_variables(DryRunSettings),
        # Too different from AUTHKEY_OUTPUT_PATH and MAX_RETRIES.
        "AUTHKEY_OUTPUT_FILE",
        "MAX_RETRY",
        "HOSTNAME",
        "LOGNAME",
        # Kubernetes sets these for Services.
        "KUBERNETES_SERVICE_HOST",
        "KUBERNETES_PORT_443_TCP_ADDR",
        "HEADSCALE_SERVICE_HOST",
        "HEADSCALE_SERVICE_PORT",
        "GRAFANA_SERVICE_HOST",
        "TAILSCALE_SERVICE_HOST",
        "HEADSCALE_PORT",
        # Settings of the tailscale container and of Headscale, and usual variables of pods.
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
        "HEADSCALE_LISTEN_ADDR",
        "HEADSCALE_LOG_LEVEL",
        "HEADSCALE_PORT_8080_TCP",
        "NODE_IP",
        "POD_IP",
        "HOST_IP",
        "HTTP_PROXY",
        "SSL_CERT_FILE",
        "HEADSCALE_SERVER_URL",
        "HEADSCALE_CLI_ADDRESS",
        "HEADSCALE_CONFIG",
        "NODE_NAME",
        "NAMESPACE",
        "SERVICE_ACCOUNT",
        "HTTPS_PROXY",
        "no_proxy",
        "http_proxy",
        "FTP_PROXY",
        "NIX_SSL_CERT_FILE",
    ],
)
def test_unrelated_variable_is_not_a_near_miss(variable: str) -> None:
    assert near_misses([variable]) == []


def test_near_misses_are_sorted_and_unique() -> None:
    misses = near_misses(["MAX_RETRIE", "DNS_OWNERS", "PATH", "DNS_OWNERS"])

    assert misses == [("DNS_OWNERS", "DNS_OWNER"), ("MAX_RETRIE", "MAX_RETRIES")]


def test_near_miss_has_no_effect(env: Environment) -> None:
    assert env.load(dns_ttl="300", log_level="debug", DNS_TTl="400").dns_ttl == 60
    assert list(env.problems(DOMAIN_NAME=None, domain_name="example.com")) == ["DOMAIN_NAME"]


# --- The log --------------------------------------------------------------------------------------------


def test_log_shows_non_default_settings(env: Environment) -> None:
    """The log contains neither secrets nor DNS_TTL, which has its default value."""
    env.set(**MINIMUM | {"AUTHKEY_TAGS": "tag:b,tag:a", "AUTHKEY_FILE_MODE": "0600", "HTTP_TIMEOUT": "500s"})
    env.set(DNS_TTL="60", SELF_HEAL="true", VPN_PREFIXES="10.0.0.0/8,fd00::/8", TAILSCALE_INTERFACE="")

    assert non_default_settings(load(DryRunSettings)) == {
        "domain_name": "example.com",
        "pod_name": "grafana-0",
        "authkey_tags": "tag:a,tag:b",
        "authkey_file_mode": "0600",
        "http_timeout_s": 500.0,
        "self_heal": True,
        "vpn_prefixes": "10.0.0.0/8,fd00::/8",
        "tailscale_interface": "",
    }


def test_log_shows_only_settings_of_the_command(env: Environment) -> None:
    env.set(DNS_TTL="300", DNS_CLEANUP="keep")

    watch, cleanup = non_default_settings(load(DnsWatchSettings)), non_default_settings(load(CleanupSettings))
    assert watch.keys() - cleanup.keys() == {"dns_ttl"}
    assert cleanup.keys() - watch.keys() == {"dns_cleanup"}
