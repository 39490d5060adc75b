"""The environment, read once, checked, frozen; one class per command."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal, TypeVar

from dotenv import dotenv_values
from pydantic import (
    Field,
    SecretStr,
    ValidationError,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from lifecycle.domain.errors import ConfigError
from lifecycle.domain.model import KeySpec, User
from lifecycle.domain.ownership import mark_of
from lifecycle.settings.fields import (
    RECORD_NAME_LENGTH,
    Domain,
    Duration,
    FileMode,
    KubernetesName,
    Namespace,
    Owner,
    Prefixes,
    ReadableFile,
    SecretReference,
    Tags,
    Token,
    Url,
    ZoneId,
    is_dns_name,
    is_file_mode,
    parse_token,
    value_text,
)

ENV_FILE = ".env"
SERVICE_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

# Headscale 0.27 and 0.28 store a longer or shorter one as `invalid-<random>`.
_HOSTNAME_LENGTHS = range(2, 64)

_ORDINAL = re.compile(r"(.+)-(\d{1,4})", re.ASCII)

SECRETS = ("CLOUDFLARE_API_TOKEN", "HEADSCALE_API_KEY")

Command = TypeVar("Command", bound="Settings")

_EXEC_POLL_INTERVAL = timedelta(seconds=60)

# Source: Cloudflare API v4, `ttl` of a DNS record; Enterprise zones take shorter ones.
_AUTOMATIC_TTL = 1
_LEAST_TTL_S = 60
_LONGEST_TTL_S = 86_400

# How alike two names are taken for one: a letter or two amiss, of some ten.
_NEARNESS = 0.86

# Stands in for a DOMAIN_NAME that is wrong, so that the rest can be checked all the same.
_SOME_DOMAIN = "domain.invalid"


class Settings(BaseSettings):
    """What every command is told."""

    model_config = SettingsConfigDict(
        alias_generator=str.upper,
        case_sensitive=True,
        # Only the class that is read is made ready to read with: it saves time and memory.
        defer_build=True,
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        # Without it, an error about one value prints the secrets beside it.
        hide_input_in_errors=True,
        validate_default=False,
    )

    headscale_namespace: Namespace = Field("headscale", description="namespace that Headscale runs in")
    cloudflare_api_token: Token | None = Field(
        None, description="required; user- or account-owned API token with Zone / DNS / Edit"
    )
    cloudflare_api_token_file: ReadableFile | None = Field(
        None, description="file to read CLOUDFLARE_API_TOKEN from, again whenever it was refused"
    )
    cloudflare_zone_id: ZoneId | None = Field(None, description="the zone; unset: looked up from DOMAIN_NAME")
    domain_name: Domain = Field(description="required; such as example.com, the zone's apex or a domain below it")
    authkey_output_path: Path = Field(
        Path("/tailscale-auth/authkey"), description="key file, in the volume shared with tailscale"
    )
    ts_hostname: str | None = Field(
        None,
        description="hostname of the node, exactly as the tailscale container has it; "
        "unset: the pod's name without -0, and .DOMAIN_NAME",
    )
    pod_name: str | None = Field(None, description="from the downward API; unset: HOSTNAME")
    pod_namespace: Namespace | None = Field(
        None,
        description="from the downward API; unset: the service account's namespace, else default",
    )
    headscale_access: Literal["auto", "api", "exec"] = Field(
        "auto",
        description="api, exec (the CLI in Headscale's pod) or auto: api when a URL, a key or a Secret is given",
    )
    headscale_url: Url | None = Field(
        None,
        description="for api; unset: http://headscale.HEADSCALE_NAMESPACE.svc.cluster.local:8080",
    )
    headscale_api_key: Token | None = Field(None, description="for api; made by `headscale apikeys create`")
    headscale_api_key_file: ReadableFile | None = Field(
        None, description="file to read HEADSCALE_API_KEY from, again whenever it was refused"
    )
    headscale_api_key_secret: SecretReference | None = Field(
        None, description="name or name/key of a Secret in HEADSCALE_NAMESPACE that holds the API key"
    )
    headscale_ca_file: ReadableFile | None = Field(
        None, description="certificate authority of HEADSCALE_URL, when it is a private one"
    )
    headscale_pod_selector: str | None = Field(
        None,
        description="for exec; unset: app.kubernetes.io/name=headscale, then app=headscale",
    )
    headscale_container: str | None = Field(
        None, description="for exec; unset: the container named headscale, else the only one"
    )
    headscale_user: str | None = Field(
        None,
        description="name, e-mail address or id:N of the Headscale user that owns the key and the node; "
        "unset: the only user",
    )
    authkey_expiration: Duration = Field(
        timedelta(hours=1), description="life of the key; longer than an image pull and some restarts"
    )
    authkey_reusable: bool = Field(default=False, description="whether more than one node may use the key")
    authkey_ephemeral: bool = Field(
        default=False, description="whether Headscale removes the node soon after it went offline"
    )
    authkey_file_mode: FileMode = Field(0o640, description="permission bits of the key file, octal")
    authkey_tags: Tags = Field(frozenset(), description="tags of the key, comma-separated, such as tag:web")
    dns_owner: Owner | None = Field(None, description="instance part of the records' mark; unset: the pod's namespace")
    vpn_prefixes: Prefixes = Field(
        (ip_network("100.64.0.0/10"), ip_network("fd7a:115c:a1e0::/48")),
        description="what counts as a VPN address, comma-separated",
    )
    http_timeout: Duration = Field(timedelta(seconds=10), description="for each request")
    cloudflare_api_url: Url = Field("https://api.cloudflare.com/client/v4", description="for tests and proxies")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level to show")
    log_format: Literal["auto", "console", "json"] = Field("auto", description="auto: console on a terminal, else json")
    # Not a setting: the kubelet sets it to the pod's name, or on the host network to the cluster node's.
    hostname: str | None = Field(None, exclude=True)

    def problems(self) -> Iterable[str]:
        """What is wrong with settings that are right each for itself, as `NAME: what to do`."""
        for name in SECRETS:
            value, file = getattr(self, name.lower()), getattr(self, f"{name.lower()}_file")
            if value and file:
                yield f"{name}: set this or {name}_FILE, not both"
            elif file:
                try:
                    self.secret(name)
                except ConfigError as error:
                    yield str(error)
        if not (self.cloudflare_api_token or self.cloudflare_api_token_file):
            yield "CLOUDFLARE_API_TOKEN: is required; set it, or CLOUDFLARE_API_TOKEN_FILE"
        yield from self._access_problems()
        yield from self._name_problems()

    def secret(self, name: str) -> str:
        """A secret's value as it is now: from the environment, or read from its file.

        Args:
            name: the variable's, such as CLOUDFLARE_API_TOKEN.

        Raises:
            ConfigError: the file cannot be read, or what stands in it is no token.
        """
        value: SecretStr | None = getattr(self, name.lower())
        if value is not None:
            return value.get_secret_value()
        file: Path = getattr(self, f"{name.lower()}_file")
        try:
            return parse_token(SecretStr(file.read_text())).get_secret_value()
        except OSError as error:
            raise ConfigError(f"{name}_FILE: the file cannot be read ({error.strerror})") from error
        except ValueError:
            raise ConfigError(
                f"{name}_FILE: what stands in the file is not a token: it is empty, or has quotes, blanks or "
                "several lines"
            ) from None

    def _access_problems(self) -> Iterable[str]:
        keys = [
            name
            for name in ("HEADSCALE_API_KEY", "HEADSCALE_API_KEY_FILE", "HEADSCALE_API_KEY_SECRET")
            if getattr(self, name.lower())
        ]
        if self.access == "api" and not keys:
            yield (
                "HEADSCALE_API_KEY: is required to reach Headscale at its address; set it, "
                "HEADSCALE_API_KEY_FILE or HEADSCALE_API_KEY_SECRET (`headscale apikeys create` makes one)"
            )
        if "HEADSCALE_API_KEY_SECRET" in keys and len(keys) > 1:
            yield f"HEADSCALE_API_KEY_SECRET: set this or {keys[0]}, not both"

    def _name_problems(self) -> Iterable[str]:
        pod = self.pod_name or self.hostname
        if self.ts_hostname is None:
            if self.pod_name and self.hostname and self.pod_name != self.hostname:
                yield "TS_HOSTNAME: set TS_HOSTNAME: a pod on the host network has no name of its own"
                return
            if pod is None or not pod.endswith("-0") or pod == "-0":
                yield (
                    "TS_HOSTNAME: set TS_HOSTNAME: the service's name can be told only from a StatefulSet's pod "
                    "with ordinal 0"
                )
                return
        name = self.node_hostname.lower()
        if pod is not None and self._is_shared(name, pod=pod):
            yield (
                "TS_HOSTNAME: would be shared by the replicas: it lacks the pod's ordinal; give each its own, such as "
                "$(POD_NAME) and .DOMAIN_NAME"
            )
        if len(name) not in _HOSTNAME_LENGTHS and (self.ts_hostname or self.domain_name != _SOME_DOMAIN):
            yield f"TS_HOSTNAME: the node's hostname has {len(name)} characters; Headscale takes 2 to 63"
        elif not is_dns_name(name):
            yield "TS_HOSTNAME: may have only letters, digits and inner hyphens between its dots"
        elif self.domain_name == _SOME_DOMAIN:
            return
        elif "." in name and name != self.domain_name and not name.endswith(f".{self.domain_name}"):
            yield "TS_HOSTNAME: must be DOMAIN_NAME, end in .DOMAIN_NAME, or have no dot"
        elif len(self.record_name) > RECORD_NAME_LENGTH:
            yield f"TS_HOSTNAME: with DOMAIN_NAME it is longer than {RECORD_NAME_LENGTH} characters"

    def _is_shared(self, name: str, *, pod: str) -> bool:
        """Whether other replicas than this pod, of ordinal 1 or more, would have the same name."""
        ordinal = _ORDINAL.fullmatch(pod)
        if ordinal is None or int(ordinal[2]) == 0:
            return False
        # A number that the domain or the service itself bears tells no replicas apart.
        own = name.removesuffix(self.domain_name).replace(ordinal[1], "", 1)
        return re.search(rf"(?<!\d){ordinal[2]}(?!\d)", own) is None

    @property
    def access(self) -> Literal["api", "exec"]:
        """How Headscale is reached, `auto` decided."""
        if self.headscale_access != "auto":
            return self.headscale_access
        given = (
            self.headscale_url,
            self.headscale_api_key,
            self.headscale_api_key_file,
            self.headscale_api_key_secret,
        )
        return "api" if any(given) else "exec"

    @property
    def uses_kubernetes(self) -> bool:
        """Whether the Kubernetes API is needed at all."""
        return self.access == "exec" or self.headscale_api_key_secret is not None

    @property
    def headscale_address(self) -> str:
        """Where Headscale's API is, the default decided."""
        return self.headscale_url or f"http://headscale.{self.headscale_namespace}.svc.cluster.local:8080"

    @property
    def namespace(self) -> str:
        """The pod's namespace."""
        if self.pod_namespace:
            return self.pod_namespace
        try:
            return SERVICE_ACCOUNT_NAMESPACE.read_text().strip() or "default"
        except OSError:
            return "default"

    @property
    def mark(self) -> str:
        """The comment that makes a record ours."""
        return mark_of(self.dns_owner or self.namespace)

    def key_spec(self, user: User) -> KeySpec:
        """What a pre-auth key of this service should be."""
        return KeySpec(
            user=user,
            life=self.authkey_expiration,
            reusable=self.authkey_reusable,
            ephemeral=self.authkey_ephemeral,
            tags=self.authkey_tags,
        )

    @property
    def node_hostname(self) -> str:
        """What the node calls itself, as the tailscale container has it."""
        if self.ts_hostname is not None:
            return self.ts_hostname
        pod = self.pod_name or self.hostname or ""
        return f"{pod.removesuffix('-0')}.{self.domain_name}"

    @property
    def record_name(self) -> str:
        """The full name of the record, lower case."""
        name = self.node_hostname.lower()
        return name if "." in name else f"{name}.{self.domain_name}"


class CleanupSettings(Settings):
    """What `cleanup` is told."""

    node_policy: Literal["replace", "keep"] = Field(
        "replace",
        description="replace: delete every old node of ours; keep: keep the one that TS_KUBE_SECRET names, "
        "and its address",
    )
    ts_kube_secret: KubernetesName | None = Field(
        None,
        description="tailscale's state Secret in the pod's namespace; required for NODE_POLICY=keep",
    )
    dns_cleanup: Literal["delete", "keep"] = Field(
        "delete",
        description="delete: remove our stale records; keep: leave one for dns-watch to repoint, unless "
        "another node has its address by now",
    )

    @property
    def uses_kubernetes(self) -> bool:
        """Whether the Kubernetes API is needed at all."""
        return super().uses_kubernetes or self.node_policy == "keep"

    def problems(self) -> Iterable[str]:
        """What is wrong with settings that are right each for itself, as `NAME: what to do`."""
        yield from super().problems()
        if self.node_policy == "keep" and not self.ts_kube_secret:
            yield "TS_KUBE_SECRET: is required for NODE_POLICY=keep; name tailscale's state Secret"


class DnsWatchSettings(Settings):
    """What `dns-watch` is told."""

    max_retries: int = Field(
        30, ge=0, description="looks for the node that Headscale answered before giving up; 0 = never give up"
    )
    retry_interval: Duration = Field(timedelta(seconds=10), description="at most how far those looks are apart")
    dns_ttl: int = Field(60, description="seconds, 60 to 86400, or 1 = automatic")
    dns_ipv6: bool = Field(default=False, description="also keep an AAAA record")
    tailscale_interface: str | None = Field(
        "tailscale0",
        description="where this pod's VPN address can be seen; empty: don't look (host network)",
    )
    poll_interval: Duration = Field(
        timedelta(seconds=30), description="how often the node is read from Headscale; over exec at least 60s"
    )
    verify_interval: Duration = Field(
        timedelta(minutes=5), description="how often the record is read from Cloudflare when nothing changed"
    )
    self_heal: bool = Field(
        default=False, description="write a fresh key when the node was deleted or the key was used up"
    )
    health_port: int = Field(9003, ge=0, le=65535, description="/livez, /readyz, /nodez and /metrics; 0 = none")
    health_address: str | None = Field(None, description="address to listen at; unset: all")

    @property
    def least_poll_interval(self) -> timedelta:
        """How far looks at a registered node are apart at least: over exec each costs the server a process."""
        return _EXEC_POLL_INTERVAL if self.access == "exec" else timedelta()

    @property
    def node_poll_interval(self) -> timedelta:
        """How far looks at a registered node are apart: POLL_INTERVAL, if that is enough."""
        return max(self.poll_interval, self.least_poll_interval)

    def problems(self) -> Iterable[str]:
        """What is wrong with settings that are right each for itself, as `NAME: what to do`."""
        yield from super().problems()
        if self.dns_ttl != _AUTOMATIC_TTL and not _LEAST_TTL_S <= self.dns_ttl <= _LONGEST_TTL_S:
            yield f"DNS_TTL: must be {_LEAST_TTL_S} to {_LONGEST_TTL_S} seconds, or {_AUTOMATIC_TTL} for automatic"


class PruneSettings(Settings):
    """What `prune` is told."""

    prune_after: Duration = Field(
        timedelta(days=7), description="a service whose node has been offline for longer than this is gone for good"
    )
    prune_max: int = Field(10, ge=1, description="services that one run may remove; more = nothing is removed")

    def problems(self) -> Iterable[str]:
        """What is wrong with settings that are right each for itself, as `NAME: what to do`."""
        yield from super().problems()
        if self.dns_owner is None:
            yield "DNS_OWNER: is required for prune: a namespace of its own would find other records, or none"

    def _name_problems(self) -> Iterable[str]:
        # It works on every service of an owner, in a pod of any name.
        return ()


class DryRunSettings(CleanupSettings, DnsWatchSettings):
    """What a dry run of both commands is told."""


# Each command as it is typed.
COMMANDS: dict[str, type[Settings]] = {
    "cleanup": CleanupSettings,
    "dns-watch": DnsWatchSettings,
    "prune": PruneSettings,
}

_NOT_A_SETTING = frozenset({"HOSTNAME"})
# The one variable that says something by being empty.
_EMPTY_MEANS_SOMETHING = "TAILSCALE_INTERFACE"


def load(command: type[Command]) -> Command:
    """Read the environment, and `.env` in the working directory, for one command.

    Raises:
        ConfigError: everything that is wrong, each by its variable's name, never by its value.
    """
    given: dict[str, Any] = {"_env_file": _env_file()}
    if environment().get(_EMPTY_MEANS_SOMETHING) == "" and _EMPTY_MEANS_SOMETHING in command_variables(command):
        given[_EMPTY_MEANS_SOMETHING] = ""
    wrong: dict[str, str] = {}
    try:
        settings = command(**given)
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_context=False, include_input=False):
            wrong[str(problem["loc"][0])] = _plain(problem)
        stand_ins = {name: _stand_in(command, name) for name in wrong}
        settings = command(**given, **stand_ins)
    # That a secret is missing follows from its file that is.
    told = {name.removesuffix("_FILE") for name in wrong} | wrong.keys()
    together = [problem for problem in settings.problems() if problem.partition(":")[0] not in told]
    problems = [*(f"{name}: {text}" for name, text in wrong.items()), *together]
    if problems:
        raise ConfigError("\n".join(problems))
    return settings


def environment() -> Mapping[str, str]:
    """The variables that settings are read from: `.env`, and the environment over it.

    Raises:
        ConfigError: `.env` is there and cannot be read.
    """
    path = _env_file()
    try:
        from_file = dotenv_values(path) if path else {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{ENV_FILE}: cannot be read as UTF-8 text ({type(error).__name__})") from None
    return {name: value or "" for name, value in from_file.items()} | os.environ


def _env_file() -> Path | None:
    """`.env`; None when there is none, or only a folder, or the working directory cannot be looked into."""
    path = Path(ENV_FILE)
    with suppress(OSError):
        return path if path.exists() and not path.is_dir() else None
    return None


def command_variables(command: type[Settings]) -> dict[str, FieldInfo]:
    """A command's settings: each variable's name and its field, in the order to show them in."""
    return {name.upper(): field for name, field in command.model_fields.items() if name.upper() not in _NOT_A_SETTING}


def default_text(field: FieldInfo) -> str:
    """A setting's default as it would be written into a manifest; "" when there is none."""
    return "" if field.is_required() else value_text(field, field.get_default())


def every_variable() -> set[str]:
    """The names of all settings of all commands."""
    return {name for command in COMMANDS.values() for name in command_variables(command)}


def near_misses(variables: Iterable[str]) -> list[tuple[str, str]]:
    """Variables that look like a setting, misspelt: each with the name that may have been meant."""
    known = every_variable() | _NOT_A_SETTING
    return [
        (variable, meant)
        for variable in sorted(set(variables) - known)
        for meant in difflib.get_close_matches(variable.upper(), known, n=1, cutoff=_NEARNESS)
    ]


def shown(settings: Settings) -> dict[str, Any]:
    """Every setting but the secrets, for the log; durations in seconds, a file's mode in octal."""
    values: dict[str, Any] = {}
    for name, field in command_variables(type(settings)).items():
        value = getattr(settings, name.lower())
        if name in SECRETS:
            continue
        match value:
            case timedelta():
                values[f"{name.lower()}_s"] = value.total_seconds()
            case None | bool() | int() if not is_file_mode(field):
                values[name.lower()] = value
            case _:
                values[name.lower()] = value_text(field, value)
    return values


def _plain(problem: Any) -> str:
    if problem["type"] == "missing":
        return "is required"
    return str(problem["msg"]).removeprefix("Value error, ")


def _stand_in(command: type[Settings], name: str) -> Any:
    field = command.model_fields[name.lower()]
    return _SOME_DOMAIN if field.is_required() else field.get_default()
