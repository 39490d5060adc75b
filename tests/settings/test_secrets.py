"""Tests of settings that are required, exclude each other, or come from files. Messages must not contain values."""

from __future__ import annotations

import os
import re
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lifecycle.domain.errors import EXIT_USAGE, ConfigError
from lifecycle.settings.load import load
from lifecycle.settings.models import (
    SECRETS,
    CleanupSettings,
    DnsWatchSettings,
    DryRunSettings,
    Settings,
    command_variables,
)
from lifecycle.settings.reference import non_default_settings
from tests.settings.environment import MINIMUM, UNPRIVILEGED_USER_ID, Environment, problem_of

CLOUDFLARE_API_TOKEN, HEADSCALE_API_KEY = MINIMUM["CLOUDFLARE_API_TOKEN"], MINIMUM["HEADSCALE_API_KEY"]

# --- Required -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [CleanupSettings, DnsWatchSettings, DryRunSettings])
def test_all_missing_settings_are_reported_together(command: type[Settings]) -> None:
    error = problem_of(command)

    assert error is not None
    names = [line.partition(":")[0] for line in str(error).split("\n")]
    assert names == ["DOMAIN_NAME", "CLOUDFLARE_API_TOKEN", "TS_HOSTNAME"]
    assert error.exit_status == EXIT_USAGE


def test_access_by_the_rest_api_requires_a_key(env: Environment) -> None:
    assert list(env.problems(HEADSCALE_API_KEY=None, HEADSCALE_URL="http://headscale:8080")) == ["HEADSCALE_API_KEY"]
    assert list(env.problems(HEADSCALE_URL=None, HEADSCALE_ACCESS="api")) == ["HEADSCALE_API_KEY"]


def test_node_policy_keep_requires_the_state_secret(env: Environment) -> None:
    assert list(env.problems(NODE_POLICY="keep")) == ["TS_KUBE_SECRET"]
    assert env.load(NODE_POLICY="keep", TS_KUBE_SECRET="grafana-state").node_policy == "keep"


def test_settings_of_another_command_are_not_checked(env: Environment) -> None:
    env.set(DNS_TTL="0", MAX_RETRIES="many")
    assert load(CleanupSettings)

    env.set(DNS_TTL=None, MAX_RETRIES=None, NODE_POLICY="keep")
    assert load(DnsWatchSettings)


# --- HEADSCALE_ACCESS=auto ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "access"),
    [
        pytest.param({}, "exec", id="nothing"),
        pytest.param({"HEADSCALE_NAMESPACE": "vpn"}, "exec", id="namespace"),
        pytest.param({"HEADSCALE_API_KEY": "k"}, "api", id="key"),
        pytest.param({"HEADSCALE_API_KEY_FILE": "<path>"}, "api", id="key file"),
        pytest.param({"HEADSCALE_API_KEY_SECRET": "headscale"}, "api", id="Secret"),
        pytest.param({"HEADSCALE_API_KEY_SECRET": "headscale/API_KEY.1"}, "api", id="Secret and its key"),
        pytest.param({"HEADSCALE_URL": "http://h", "HEADSCALE_API_KEY": "k"}, "api", id="URL and key"),
        pytest.param({"HEADSCALE_ACCESS": "exec", "HEADSCALE_API_KEY": "k"}, "exec", id="explicit exec"),
        pytest.param({"HEADSCALE_ACCESS": "api", "HEADSCALE_API_KEY": "k"}, "api", id="explicit api"),
    ],
)
def test_access_to_headscale_is_selected(
    env: Environment, tmp_path: Path, variables: dict[str, str], access: str
) -> None:
    file = tmp_path / "key"
    file.write_text("k")
    env.set(HEADSCALE_API_KEY=None)

    settings = env.load(**{name: value.replace("<path>", str(file)) for name, value in variables.items()})

    assert settings.access == access


def test_default_url_contains_the_namespace(env: Environment) -> None:
    address = "http://headscale.vpn.svc.cluster.local:8080"

    assert env.load(HEADSCALE_NAMESPACE="vpn").effective_headscale_url == address
    assert env.load(HEADSCALE_URL="http://h:1").effective_headscale_url == "http://h:1"


def test_two_sources_of_the_key_are_refused(env: Environment, tmp_path: Path) -> None:
    assert list(env.problems(HEADSCALE_API_KEY_SECRET="headscale")) == ["HEADSCALE_API_KEY_SECRET"]
    file = tmp_path / "key"
    file.write_text("k")
    env.set(HEADSCALE_API_KEY=None, HEADSCALE_API_KEY_FILE=str(file))
    assert list(env.problems(HEADSCALE_API_KEY_SECRET="headscale")) == ["HEADSCALE_API_KEY_SECRET"]


# --- Secrets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize(
    "text",
    ["t0ken", "\tt0ken \r\n\n", "abc~def+ghi/jkl==", "hskey-api-abc_DEF-123.x", "A" * 4096],
    ids=lambda text: repr(text[:20]),
)
def test_valid_secret_is_accepted_and_stripped(env: Environment, tmp_path: Path, name: str, text: str) -> None:
    assert env.load(**{name: text}).secret(name) == text.strip()

    file = tmp_path / "secret"
    file.write_text(text)
    assert env.load(**{name: None, f"{name}_FILE": str(file)}).secret(name) == text.strip()


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize(
    "text", ['"t0ken"', "t0 ken", "t0\nken", "<your-token>", "${TOKEN}", "Bearer t0ken", "t=0ken", "t\u00f6k"]
)
def test_invalid_secret_is_refused(env: Environment, name: str, text: str) -> None:
    assert list(env.problems(**{name: text})) == [name]


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe", b"t0ken\nt0ken", b"t0ken\x00", b"t0 ken"], ids=repr)
def test_file_without_a_secret_is_refused(env: Environment, tmp_path: Path, name: str, content: bytes) -> None:
    file = tmp_path / "secret"
    file.write_bytes(content)

    assert list(env.problems(**{name: None, f"{name}_FILE": str(file)})) == [f"{name}_FILE"]


@pytest.mark.parametrize("name", SECRETS)
def test_secret_and_its_file_are_refused_together(env: Environment, tmp_path: Path, name: str) -> None:
    file = tmp_path / "secret"
    file.write_text("t0ken")

    assert list(env.problems(**{name: "other", f"{name}_FILE": str(file)})) == [name]


@pytest.mark.parametrize("name", [*(f"{name}_FILE" for name in SECRETS), "HEADSCALE_CA_FILE", "SSL_CERT_FILE"])
@pytest.mark.parametrize("path", ["no-such-file", ".", "no/such/folder", "x" * 300, "file/below", "loop", "fifo"])
def test_unusable_file_is_reported_once(env: Environment, name: str, path: str) -> None:
    """The setting whose value the file should contain is not also reported as missing."""
    Path("file").touch()
    Path("loop").symlink_to("loop")
    os.mkfifo("fifo")
    env.set(**{name.removesuffix("_FILE"): None})

    assert list(env.problems(**{name: path})) == [name]


@pytest.mark.parametrize("name", ["CLOUDFLARE_API_TOKEN_FILE", "HEADSCALE_CA_FILE", "SSL_CERT_FILE"])
@pytest.mark.parametrize("unreadable", ["file", "folder"])
@pytest.mark.parametrize("is_of_the_secret", [False, True], ids=["another file", "file of the Secret"])
def test_unreadable_file_is_reported_once(
    env: Environment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unreadable: str,
    name: str,
    *,
    is_of_the_secret: bool,
) -> None:
    """Permission bits do not apply to root. If the test runs as root, it changes its effective user."""
    file = tmp_path / "folder" / "file"
    file.parent.mkdir()
    if is_of_the_secret:
        monkeypatch.setattr("lifecycle.settings.load.SECRET_FOLDER", file.parent)
    file.write_text("t0ken")
    env.set(**{name.removesuffix("_FILE"): None, name: str(file)})
    (file if unreadable == "file" else file.parent).chmod(0o000)
    if os.geteuid() == 0:
        os.seteuid(UNPRIVILEGED_USER_ID)
    try:
        problems = env.problems()
    finally:
        os.seteuid(os.getuid())
        file.parent.chmod(0o700)

    assert list(problems) == [name]
    assert "Create the Secret" not in problems[name]


def test_secret_file_is_read_again(env: Environment, tmp_path: Path) -> None:
    """If a token is rotated, the new token is written to the same file."""
    file = tmp_path / "secret"
    file.write_text("first")
    settings = env.load(CLOUDFLARE_API_TOKEN=None, CLOUDFLARE_API_TOKEN_FILE=str(file))
    assert settings.secret("CLOUDFLARE_API_TOKEN") == "first"

    file.write_text("second\n")
    assert settings.secret("CLOUDFLARE_API_TOKEN") == "second"

    file.unlink()
    with pytest.raises(ConfigError, match="CLOUDFLARE_API_TOKEN_FILE"):
        settings.secret("CLOUDFLARE_API_TOKEN")

    file.write_text("not a token")
    with pytest.raises(ConfigError, match="CLOUDFLARE_API_TOKEN_FILE") as raised:
        settings.secret("CLOUDFLARE_API_TOKEN")
    # A traceback shows the cause of an error, which could contain the text of the file.
    assert raised.value.__cause__ is None


def test_secrets_are_never_shown(env: Environment) -> None:
    settings = env.load(HEADSCALE_USER="svc", HTTPS_PROXY="http://me:pr0xy-pass@proxy:3128")

    for text in (repr(settings), str(settings), str(non_default_settings(settings)), settings.model_dump_json()):
        assert not re.search(f"{CLOUDFLARE_API_TOKEN}|{HEADSCALE_API_KEY}|pr0xy-pass", text)
    assert not {name.lower() for name in SECRETS} & non_default_settings(settings).keys()


def test_validation_error_of_pydantic_shows_no_value(env: Environment) -> None:
    with pytest.raises(ValidationError) as raised:
        DryRunSettings.model_validate(MINIMUM | {"DOMAIN_NAME": "s3cr3t", "HEADSCALE_URL": "s3cr3t"})

    assert not re.search(f"{CLOUDFLARE_API_TOKEN}|{HEADSCALE_API_KEY}|s3cr3t", f"{raised.value}{raised.value!r}")


# --- Problems -----------------------------------------------------------------------------------------


def test_all_problems_are_reported_together(env: Environment) -> None:
    problems = env.problems(
        DOMAIN_NAME="nonsense",
        CLOUDFLARE_API_TOKEN=None,
        CLOUDFLARE_ZONE_ID="nonsense",
        HEADSCALE_URL="nonsense",
        HTTPS_PROXY="socks5://nonsense",
        AUTHKEY_OUTPUT_PATH="/a\nb",
        AUTHKEY_FILE_MODE="nonsense",
        DNS_TTL="30",
        VPN_PREFIXES="nonsense,10.0.0.0/8,nonsense",
        NODE_POLICY="keep",
        # TS_HOSTNAME is required in the pod of a Deployment.
        POD_NAME="grafana-7d9c5b-xk2vp",
    )

    assert problems.keys() == {
        "DOMAIN_NAME",
        "CLOUDFLARE_API_TOKEN",
        "CLOUDFLARE_ZONE_ID",
        "HEADSCALE_URL",
        "HTTPS_PROXY",
        "AUTHKEY_OUTPUT_PATH",
        "AUTHKEY_FILE_MODE",
        "DNS_TTL",
        "VPN_PREFIXES",
        "TS_KUBE_SECRET",
        "TS_HOSTNAME",
    }


@given(data=st.data())
def test_no_problem_shows_a_value(data: st.DataObject) -> None:
    # urlsplit() refuses \u2100 and \u2048, which NFKC normalizes to "a/c" and "?!". Its message contains the host.
    characters = st.characters(codec="utf-8", exclude_characters="\x00")
    texts = st.text(st.one_of(characters, st.sampled_from("\u2100\u2048[]:@/#?%., ")), min_size=4, max_size=30)
    formats = st.sampled_from(["{}", "https://{}", "https://u:{}@h", "tag:{}", "{}/8", "/{}", "1{}", "[{}]"])
    names = data.draw(st.lists(st.sampled_from([*command_variables(DryRunSettings), "HOSTNAME"]), unique=True))
    value = "Zq" + data.draw(texts)
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, required in MINIMUM.items():
            monkeypatch.setenv(name, required)
        for name in names:
            monkeypatch.setenv(name, data.draw(formats).format(value))

        error: BaseException | None = problem_of(DryRunSettings)

    settings = {*command_variables(DryRunSettings)}
    assert {line.partition(":")[0] for line in str(error or "").split("\n")} <= settings | {""}
    # A traceback also shows the causes of an error.
    while error is not None:
        assert "Zq" not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


@given(
    st.text("aZ019.-_~:/[]%@?#&=+,;!$'()*^|`<>{}\\ \"\x1b\x7f\u00e9\u2100\u2603", max_size=12).map("http://{}".format)
)
def test_http_client_accepts_every_valid_url(url: str) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in MINIMUM.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HEADSCALE_URL", url)
        monkeypatch.setenv("HTTPS_PROXY", url)
        try:
            address = load(DnsWatchSettings).effective_headscale_url
        except ConfigError:
            return

    with httpx.Client(base_url=address, trust_env=False) as client:
        assert client.base_url.host


@pytest.mark.parametrize("name", ["HEADSCALE_USER", "TS_HOSTNAME", "HEADSCALE_CONTAINER", "HEALTH_ADDRESS"])
def test_undecodable_bytes_cause_no_crash(env: Environment, name: str) -> None:
    env.set(**{name: os.fsdecode(b"caf\xe9")})

    assert str(problem_of(DryRunSettings) or name).startswith(name)
