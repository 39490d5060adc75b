"""The settings of each command, as immutable values, and the checks of their combinations."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import ClassVar, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from lifecycle.domain.errors import ConfigError
from lifecycle.domain.model import KeySpec, User
from lifecycle.domain.ownership import (
    WILDCARD,
    NameKind,
    RecordOwnership,
    is_in_domain,
    mark_of,
    record_name,
    workload_mark,
)
from lifecycle.domain.proxy import Proxy
from lifecycle.settings.fields import (
    COMMENT_LENGTH,
    RECORD_NAME_LENGTH,
    CertificateFile,
    CertificateFolders,
    Domain,
    Duration,
    ExistingFile,
    FileMode,
    FilePath,
    HostAddress,
    KeyFilePath,
    KubernetesName,
    LoginServer,
    Namespace,
    Owner,
    Prefixes,
    ProxyUrl,
    RecordNames,
    SecretReference,
    Tags,
    Token,
    Ttl,
    Url,
    ZoneId,
    is_dns_name,
    parse_token,
)
from lifecycle.settings.proxies import is_direct

SERVICE_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

# In characters. Headscale 0.27 and 0.28 replace a longer or shorter hostname by `invalid-<random>`.
_HOSTNAME_LENGTHS = range(2, 64)

_POD_WITH_ORDINAL = re.compile(r"(.+)-(\d{1,4})", re.ASCII)

SECRET_FOLDER = Path("/run/secrets/lifecycle")
"""Where the manifests mount the Secret "lifecycle"."""

SECRETS = ("CLOUDFLARE_API_TOKEN", "HEADSCALE_API_KEY")

# These values replace invalid values of required settings, so that the other settings can still be checked.
PLACEHOLDER_DOMAIN = "domain.invalid"
PLACEHOLDERS = {"DOMAIN_NAME": PLACEHOLDER_DOMAIN, "LOGIN_SERVER": f"https://{PLACEHOLDER_DOMAIN}"}

Command = TypeVar("Command", bound="Settings")

# With HEADSCALE_ACCESS=exec, each request starts a process in Headscale's pod, so polls are expensive.
_EXEC_POLL_INTERVAL = timedelta(seconds=60)


class Settings(BaseSettings):
    """Settings of all commands."""

    model_config = SettingsConfigDict(
        alias_generator=str.upper,
        # With this option, Pydantic builds only the class that is used, which saves time and memory.
        defer_build=True,
        extra="ignore",
        frozen=True,
        # Without this option, Pydantic's error about one setting can also print other settings, including secrets.
        hide_input_in_errors=True,
        validate_default=False,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the library's signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Use only the variables that `load` passes, because it strips and checks their values first."""
        return (init_settings,)

    # False for commands that work on all workloads of an owner (DNS_OWNER) and need no hostname of their own.
    is_for_one_workload: ClassVar[bool] = True

    headscale_namespace: Namespace = Field("headscale", description="namespace in which Headscale runs")
    cloudflare_api_token: Token | None = Field(
        None, description="required; API token (user- or account-owned) with the permission Zone / DNS / Edit"
    )
    cloudflare_api_token_file: ExistingFile | None = Field(
        None, description="file with the value of CLOUDFLARE_API_TOKEN; read again if Cloudflare refuses it"
    )
    cloudflare_zone_id: ZoneId | None = Field(None, description="ID of the DNS zone; unset: found by DOMAIN_NAME")
    domain_name: Domain = Field(description="required; the zone's domain or a domain below it, such as example.com")
    authkey_output_path: KeyFilePath = Field(
        Path("/tailscale-auth/authkey"), description="key file, in the volume shared with the tailscale container"
    )
    ts_hostname: str | None = Field(
        None,
        description="hostname of the node, the same as in the tailscale container; "
        "required, except in a StatefulSet's first pod: in grafana-0, the default is grafana.DOMAIN_NAME",
    )
    pod_name: str | None = Field(
        None, description="name of the pod, from the downward API; unset: the variable HOSTNAME"
    )
    pod_namespace: Namespace | None = Field(
        None,
        description="namespace of the pod, from the downward API; unset: the service account's namespace, else default",
    )
    ordinals_start: int = Field(
        0,
        ge=0,
        description="spec.ordinals.start of the StatefulSet; only the pod with this ordinal may have a hostname "
        "without an ordinal",
    )
    headscale_access: Literal["auto", "api", "exec"] = Field(
        "auto",
        description="api (REST), exec (the CLI in Headscale's pod) or auto (api if HEADSCALE_URL or an API key is set, "
        "else exec)",
    )
    headscale_url: Url | None = Field(
        None,
        description="URL of Headscale, for api; unset: http://headscale.HEADSCALE_NAMESPACE.svc.cluster.local:8080",
    )
    headscale_api_key: Token | None = Field(
        None, description="API key, for api; `headscale apikeys create` creates one"
    )
    headscale_api_key_file: ExistingFile | None = Field(
        None, description="file with the value of HEADSCALE_API_KEY; read again if Headscale refuses it"
    )
    headscale_api_key_secret: SecretReference | None = Field(
        None, description="name or name/key of a Secret in HEADSCALE_NAMESPACE that contains the API key"
    )
    headscale_ca_file: CertificateFile | None = Field(
        None, description="PEM file with the private certificate authority of HEADSCALE_URL"
    )
    headscale_proxy: ProxyUrl | None = Field(
        None, description="proxy for HEADSCALE_URL, also inside the cluster; NO_PROXY does not apply"
    )
    headscale_pod_selector: str | None = Field(
        None,
        description="label selector of Headscale's pod, for exec; unset: app.kubernetes.io/name=headscale, then "
        "app=headscale",
    )
    headscale_container: str | None = Field(
        None,
        description="container of Headscale's pod, for exec; unset: the container named headscale, else the "
        "only container",
    )
    headscale_user: str | None = Field(
        None,
        description="user that owns the key and the node: a name, id:N or an e-mail address; unset: the only user",
    )
    authkey_expiration: Duration = Field(
        timedelta(hours=1), description="lifetime of the pre-auth key, long enough for an image pull and some restarts"
    )
    authkey_reusable: bool = Field(default=False, description="allow several nodes to register with the pre-auth key")
    authkey_ephemeral: bool = Field(
        default=False, description="let Headscale delete the node soon after it goes offline"
    )
    authkey_file_mode: FileMode = Field("0640", description="permission bits of the key file, octal")
    authkey_tags: Tags = Field(frozenset(), description="tags of the pre-auth key, comma-separated, such as tag:web")
    dns_owner: Owner | None = Field(
        None, description="owner of the workload's records, which is part of their comment; unset: the pod's namespace"
    )
    dns_aliases: RecordNames = Field(
        (), description="further names of the workload, comma-separated, such as docs,www.example.com,*.wiki"
    )
    dns_shared_names: RecordNames = Field(
        (), description="names under which several pods have a record each, comma-separated, such as *.apps,ingress"
    )
    vpn_prefixes: Prefixes = Field(
        (ip_network("100.64.0.0/10"), ip_network("fd7a:115c:a1e0::/48")),
        description="networks of VPN addresses, comma-separated",
    )
    http_timeout: Duration = Field(
        timedelta(seconds=10),
        description="time limit of connecting, and of one request; a request to Headscale may take four times as long",
    )
    http_proxy: ProxyUrl | None = Field(None, description="proxy for http:// URLs outside the cluster")
    https_proxy: ProxyUrl | None = Field(None, description="proxy for https:// URLs outside the cluster")
    all_proxy: ProxyUrl | None = Field(None, description="proxy for URLs whose scheme has no proxy of its own")
    no_proxy: str = Field(
        "", description="hosts to reach directly: names (with subdomains), addresses, networks or *; comma-separated"
    )
    ssl_cert_file: CertificateFile | None = Field(
        None, description="PEM file of certificate authorities that replaces the built-in ones"
    )
    ssl_cert_dir: CertificateFolders | None = Field(
        None,
        description="folders of hashed certificate authorities (`openssl rehash`), separated by colons, that replace "
        "the built-in ones",
    )
    cloudflare_api_url: Url = Field(
        "https://api.cloudflare.com/client/v4", description="URL of Cloudflare's API, for tests and gateways"
    )
    kubernetes_events: bool = Field(
        default=False, description="cleanup and dns-watch also write Kubernetes Events about the pod"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="lowest level to log: debug, info, warning or error"
    )
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="json, console (text) or auto (console on a terminal, else json)"
    )
    # HOSTNAME is read like a setting, but the kubelet sets it, usually to the pod's name.
    hostname: str | None = Field(None, exclude=True)

    def problems(self) -> Iterable[str]:
        """Yield the problems with combinations of settings. Each problem begins with the name of a variable."""
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
        if self.is_for_one_workload:
            yield from self._name_problems()

    def secret(self, name: str) -> str:
        """Return a secret, such as CLOUDFLARE_API_TOKEN, from the environment or from its file."""
        value: SecretStr | None = getattr(self, name.lower())
        if value is not None:
            return value.get_secret_value()
        file: Path = getattr(self, f"{name.lower()}_file")
        try:
            return parse_token(SecretStr(file.read_text().strip())).get_secret_value()
        except OSError as error:
            raise ConfigError(f"{name}_FILE: the file cannot be read ({error.strerror})") from error
        except ValueError:
            raise ConfigError(
                f"{name}_FILE: the file does not contain a valid token: it is empty, or contains quotes, spaces or "
                "several lines"
            ) from None

    def _access_problems(self) -> Iterable[str]:
        keys = self._api_key_settings
        if self.access == "api" and not keys:
            yield (
                "HEADSCALE_API_KEY: is required for HEADSCALE_ACCESS=api; set it, HEADSCALE_API_KEY_FILE or "
                "HEADSCALE_API_KEY_SECRET (`headscale apikeys create` creates a key)"
            )
        if "HEADSCALE_API_KEY_SECRET" in keys and len(keys) > 1:
            yield f"HEADSCALE_API_KEY_SECRET: set this or {keys[0]}, not both"

    def _name_problems(self) -> Iterable[str]:
        if self.ts_hostname is not None or self._stateful_set:
            yield from self._hostname_problems()
        if self.ts_hostname is not None:
            return
        if self._is_renamed:
            yield "TS_HOSTNAME: is required, since HOSTNAME differs from POD_NAME (host network or spec.hostname)"
        elif not self._stateful_set:
            yield (
                "TS_HOSTNAME: is required, except in the first pod of a StatefulSet, such as grafana-0. If the "
                "StatefulSet has spec.ordinals.start, set ORDINALS_START to it"
            )

    def _hostname_problems(self) -> Iterable[str]:
        name = self.node_hostname.lower()
        pod = _POD_WITH_ORDINAL.fullmatch(self._effective_pod_name or "")
        if pod is not None and int(pod[2]) < self.ordinals_start:
            yield "ORDINALS_START: is higher than this pod's ordinal; set it to spec.ordinals.start of the StatefulSet"
        if pod is not None and self._lacks_ordinal(name, stateful_set=pod[1], ordinal=pod[2]):
            yield (
                "TS_HOSTNAME: lacks the pod's ordinal, so all replicas would share the name. Set it to "
                "$(POD_NAME).DOMAIN_NAME. For one replica with spec.ordinals.start, set ORDINALS_START"
            )
        is_domain_known = self.domain_name != PLACEHOLDER_DOMAIN
        is_length_known = self.ts_hostname or is_domain_known
        if is_length_known and len(name) not in _HOSTNAME_LENGTHS:
            yield f"TS_HOSTNAME: the node's hostname has {len(name)} characters; Headscale accepts 2 to 63"
        elif not is_dns_name(name):
            yield "TS_HOSTNAME: must consist of parts with only letters, digits and inner hyphens, separated by dots"
        elif not is_domain_known:
            return
        elif "." in name and not is_in_domain(name, self.domain_name):
            yield "TS_HOSTNAME: must be DOMAIN_NAME, end in .DOMAIN_NAME, or have no dot"
        elif len(self.record_name) > RECORD_NAME_LENGTH:
            yield f"TS_HOSTNAME: with DOMAIN_NAME it is longer than {RECORD_NAME_LENGTH} characters"
        else:
            yield from self._further_name_problems()

    def _further_name_problems(self) -> Iterable[str]:
        taken = {self.record_name: "is the workload's own name (TS_HOSTNAME); remove it"}
        for setting, names in (("DNS_ALIASES", self.dns_aliases), ("DNS_SHARED_NAMES", self.dns_shared_names)):
            for number, name in enumerate(names, start=1):
                full_name = record_name(name, self.domain_name)
                if not is_in_domain(full_name, self.domain_name):
                    yield (
                        f"{setting}: name {number} must be DOMAIN_NAME, end in .DOMAIN_NAME, or have no dot except in "
                        f'"{WILDCARD}"'
                    )
                elif len(full_name) > RECORD_NAME_LENGTH:
                    yield f"{setting}: name {number} with DOMAIN_NAME is longer than {RECORD_NAME_LENGTH} characters"
                elif full_name in taken:
                    yield f"{setting}: name {number} {taken[full_name]}"
                taken.setdefault(full_name, f"is in {setting} already; list it once")
        if len(taken) > 1 and len(self.workload_mark) > COMMENT_LENGTH:
            yield (
                "DNS_OWNER: is too long for DNS_ALIASES and DNS_SHARED_NAMES: with the workload's name, the comment of "
                f"their records would have {len(self.workload_mark)} characters, and Cloudflare accepts "
                f"{COMMENT_LENGTH}. Set a shorter DNS_OWNER or TS_HOSTNAME"
            )

    @property
    def _effective_pod_name(self) -> str | None:
        return self.pod_name or self.hostname

    @property
    def _is_renamed(self) -> bool:
        """Whether HOSTNAME is not the pod's name. The name may be followed by a domain, as with setHostnameAsFQDN."""
        if not self.pod_name or not self.hostname:
            return False
        return self.hostname != self.pod_name and not self.hostname.startswith(f"{self.pod_name}.")

    @property
    def _stateful_set(self) -> str:
        """The StatefulSet's name, from the name of its first pod; "" for any other pod."""
        ending = f"-{self.ordinals_start}"
        if self._effective_pod_name is None or self._is_renamed or not self._effective_pod_name.endswith(ending):
            return ""
        return self._effective_pod_name.removesuffix(ending)

    def _lacks_ordinal(self, hostname: str, *, stateful_set: str, ordinal: str) -> bool:
        """Return True if the hostname lacks this pod's ordinal. Return False for the first pod, which may omit it."""
        if int(ordinal) <= self.ordinals_start:
            return False
        # A number in the domain or in the StatefulSet's name does not distinguish replicas.
        rest = hostname.removesuffix(self.domain_name).replace(stateful_set, "", 1)
        return re.search(rf"(?<!\d){ordinal}(?!\d)", rest) is None

    @property
    def access(self) -> Literal["api", "exec"]:
        """HEADSCALE_ACCESS, with `auto` resolved."""
        if self.headscale_access != "auto":
            return self.headscale_access
        return "api" if self.headscale_url or self._api_key_settings else "exec"

    @property
    def _api_key_settings(self) -> list[str]:
        """The settings from which the API key of Headscale can be read."""
        names = ("HEADSCALE_API_KEY", "HEADSCALE_API_KEY_FILE", "HEADSCALE_API_KEY_SECRET")
        return [name for name in names if getattr(self, name.lower())]

    @property
    def cluster_needed_for(self) -> str | None:
        """The setting for which the command needs the Kubernetes API; None if it does not need the API."""
        if self.access == "exec":
            return "HEADSCALE_ACCESS"
        return "HEADSCALE_API_KEY_SECRET" if self.headscale_api_key_secret else None

    @property
    def effective_headscale_url(self) -> str:
        """HEADSCALE_URL, or its default."""
        return self.headscale_url or f"http://headscale.{self.headscale_namespace}.svc.cluster.local:8080"

    def proxy_for(self, url: str) -> Proxy | None:
        """Return the proxy for a URL from HTTP_PROXY, HTTPS_PROXY or ALL_PROXY, or None for a direct connection."""
        if is_direct(url, self.no_proxy):
            return None
        setting = {"http": "HTTP_PROXY", "https": "HTTPS_PROXY"}[urlsplit(url).scheme]
        return self._proxy(setting) or self._proxy("ALL_PROXY")

    @property
    def proxy_of_headscale(self) -> Proxy | None:
        """The proxy for HEADSCALE_URL; None = a direct connection."""
        return self._proxy("HEADSCALE_PROXY") or self.proxy_for(self.effective_headscale_url)

    def _proxy(self, name: str) -> Proxy | None:
        url: SecretStr | None = getattr(self, name.lower())
        return Proxy(url.get_secret_value(), name) if url is not None else None

    @property
    def namespace(self) -> str:
        """The pod's namespace."""
        if self.pod_namespace:
            return self.pod_namespace
        try:
            return SERVICE_ACCOUNT_NAMESPACE.read_text().strip() or "default"
        except FileNotFoundError:
            return "default"
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"POD_NAMESPACE: set it, because {SERVICE_ACCOUNT_NAMESPACE} cannot be read") from error

    @property
    def mark(self) -> str:
        """The comment that marks this program's records at the main name."""
        return mark_of(self.dns_owner or self.namespace)

    def key_spec(self, user: User) -> KeySpec:
        """Return the properties of the pre-auth key to create."""
        return KeySpec(
            user=user,
            lifetime=self.authkey_expiration,
            reusable=self.authkey_reusable,
            ephemeral=self.authkey_ephemeral,
            tags=self.authkey_tags,
        )

    @property
    def node_hostname(self) -> str:
        """The hostname of the node: TS_HOSTNAME, or its default in the first pod of a StatefulSet."""
        return self.ts_hostname if self.ts_hostname is not None else f"{self._stateful_set}.{self.domain_name}"

    @property
    def record_name(self) -> str:
        """The main name of the workload in lower case: the hostname, with DOMAIN_NAME if it has no dot."""
        return record_name(self.node_hostname, self.domain_name)

    @property
    def workload_mark(self) -> str:
        """The comment that marks this program's records at further names (DNS_ALIASES and DNS_SHARED_NAMES)."""
        return workload_mark(self.mark, self.record_name)

    @property
    def names(self) -> list[str]:
        """All full names of the workload, the main name first."""
        return [self.record_name, *(record_ownership.name for record_ownership in self.further_name_ownerships)]

    @property
    def main_name_ownership(self) -> RecordOwnership:
        """Criteria for owning a record at the main name."""
        return RecordOwnership(self.record_name, self.mark, self.vpn_prefixes)

    @property
    def further_name_ownerships(self) -> tuple[RecordOwnership, ...]:
        """Criteria for owning a record at each further name."""
        aliases = [record_name(name, self.domain_name) for name in self.dns_aliases]
        kinds = {
            **{name: NameKind.DOMAIN if name == self.domain_name else NameKind.ALIAS for name in aliases},
            **{record_name(name, self.domain_name): NameKind.SHARED for name in self.dns_shared_names},
        }
        return tuple(
            RecordOwnership(name, self.workload_mark, self.vpn_prefixes, kind, self.record_name)
            for name, kind in kinds.items()
        )


class CleanupSettings(Settings):
    """Settings of `cleanup`."""

    node_policy: Literal["replace", "keep"] = Field(
        "replace",
        description="replace: delete every old node of this workload; keep: keep the node whose state is in the Secret "
        "TS_KUBE_SECRET, and its address",
    )
    ts_kube_secret: KubernetesName | None = Field(
        None,
        description="tailscale's state Secret in the pod's namespace; required for NODE_POLICY=keep",
    )
    dns_cleanup: Literal["delete", "keep"] = Field(
        "delete",
        description="delete: delete the workload's stale records; keep: leave one of each type for dns-watch to "
        "update, unless another node has its address",
    )

    @property
    def cluster_needed_for(self) -> str | None:
        """The setting for which the command needs the Kubernetes API; None if it does not need the API."""
        return super().cluster_needed_for or ("NODE_POLICY" if self.node_policy == "keep" else None)

    def problems(self) -> Iterable[str]:
        """Yield the problems with combinations of settings. Each problem begins with the name of a variable."""
        yield from super().problems()
        if self.node_policy == "keep" and not self.ts_kube_secret:
            yield "TS_KUBE_SECRET: is required for NODE_POLICY=keep; set it to the name of tailscale's state Secret"


class DnsWatchSettings(Settings):
    """Settings of `dns-watch`."""

    max_retries: int = Field(
        30,
        ge=0,
        description="dns-watch exits if it never found the node in this many responses of Headscale; 0 = no limit",
    )
    retry_interval: Duration = Field(
        timedelta(seconds=10), description="maximum interval between lookups of a node that is not registered yet"
    )
    dns_ttl: Ttl = Field(60, description="TTL of the records: 60 to 86400 seconds, or 1 = automatic")
    dns_ipv6: bool = Field(default=False, description="also publish an AAAA record")
    tailscale_interface: str = Field(
        "tailscale0",
        description="network interface with the pod's VPN address; empty: use none",
    )
    poll_interval: Duration = Field(
        timedelta(seconds=30),
        description="shortest interval between reads of the node; at least 60s with HEADSCALE_ACCESS=exec. The "
        "interval grows up to 5m if there are many nodes, or if Headscale is slow",
    )
    verify_interval: Duration = Field(
        timedelta(minutes=5), description="interval between reads of the record in Cloudflare while nothing changes"
    )
    self_heal: bool = Field(
        default=False,
        description="write a new key if the pod has no valid node and cannot use its key. If the node was deleted or "
        "has expired, tailscale is restarted when a usable key exists, whatever this setting is",
    )
    health_port: int = Field(9003, ge=0, le=65535, description="port of /livez, /readyz, /nodez, /metrics; 0 = none")
    health_address: HostAddress | None = Field(None, description="address to listen on; unset: all")

    @property
    def min_poll_interval(self) -> timedelta:
        """The lower limit of the poll interval."""
        return _EXEC_POLL_INTERVAL if self.access == "exec" else timedelta()

    @property
    def effective_poll_interval(self) -> timedelta:
        """POLL_INTERVAL, or the lower limit if that is longer."""
        return max(self.poll_interval, self.min_poll_interval)


class PruneSettings(Settings):
    """Settings of `prune`."""

    is_for_one_workload: ClassVar[bool] = False

    prune_after: Duration = Field(
        timedelta(days=7),
        description="delete the nodes and records of a workload whose node has been offline for longer than this",
    )
    prune_max: int = Field(
        10, ge=1, description="maximum number of workloads in one run; if there are more, nothing is deleted"
    )

    def problems(self) -> Iterable[str]:
        """Yield the problems with combinations of settings. Each problem begins with the name of a variable."""
        yield from super().problems()
        if self.dns_owner is None:
            yield "DNS_OWNER: is required for prune; set it to the workloads' DNS_OWNER or namespace"


class StatusSettings(DnsWatchSettings):
    """Settings of `status`. They include those of dns-watch, because `status` uses DNS_IPV6."""

    is_for_one_workload: ClassVar[bool] = False

    def problems(self) -> Iterable[str]:
        """Yield the problems with combinations of settings. Each problem begins with the name of a variable."""
        yield from super().problems()
        if not (self.dns_owner or self.pod_namespace or SERVICE_ACCOUNT_NAMESPACE.exists()):
            yield (
                "DNS_OWNER: is required for status outside a pod. Set it to the DNS_OWNER of the workloads, or if they "
                "have none, to their namespace"
            )


class DryRunSettings(CleanupSettings, DnsWatchSettings):
    """Settings of `--dry-run`, which is a dry run of cleanup and dns-watch."""


class InjectSettings(CleanupSettings, DnsWatchSettings):
    """Settings of `inject`, which include the settings that `inject` passes to cleanup and dns-watch."""

    login_server: LoginServer = Field(description="required; Headscale's https URL for the tailscale containers")
    lifecycle_image: str = Field(
        "localhost/tailscale-lifecycle:latest", min_length=1, description="image of cleanup and dns-watch"
    )
    tailscale_image: str = Field(
        "docker.io/tailscale/tailscale:v1.102.3@sha256:8c42c4574ab066384fcb72f69e086a2ff1dd3652eb6f56856cee34bcf0d2f680",
        min_length=1,
        description="image of the tailscale container",
    )
    # For the other commands, these files have to exist. `inject` does not check that, because the files are in the pod.
    cloudflare_api_token_file: FilePath | None = None
    headscale_api_key_file: FilePath | None = None
    headscale_ca_file: FilePath | None = None
    ssl_cert_file: FilePath | None = None
    ssl_cert_dir: str | None = None

    def problems(self) -> Iterable[str]:
        """Yield the problems with combinations of settings. Each problem begins with the name of a variable."""
        # The checks of the base classes need the secrets and the hostname, which only the pod has.
        return ()


# The settings of each command, by its name on the command line.
COMMANDS: dict[str, type[Settings]] = {
    "cleanup": CleanupSettings,
    "dns-watch": DnsWatchSettings,
    "prune": PruneSettings,
    "status": StatusSettings,
    "inject": InjectSettings,
}

# Settings that are not the same for all workloads of a cluster, or that `inject` sets itself.
_PER_POD = frozenset(
    {"AUTHKEY_FILE_MODE", "AUTHKEY_OUTPUT_PATH", "HEALTH_ADDRESS", "HEALTH_PORT", "NODE_POLICY", "ORDINALS_START"}
    | {"POD_NAME", "POD_NAMESPACE", "TAILSCALE_INTERFACE", "TS_HOSTNAME", "TS_KUBE_SECRET"}
    | {"DNS_ALIASES", "DNS_SHARED_NAMES"}
)

KUBELET_VARIABLES = frozenset({"HOSTNAME"})


def command_variables(command: type[Settings]) -> dict[str, FieldInfo]:
    """Return a command's settings by the names of their variables, in the order of definition."""
    return {
        name.upper(): field for name, field in command.model_fields.items() if name.upper() not in KUBELET_VARIABLES
    }


def site_variables() -> list[str]:
    """Return the settings of cleanup and dns-watch that all workloads of a cluster can share."""
    return [name for name in command_variables(DryRunSettings) if name not in {*_PER_POD, *SECRETS}]


def every_variable() -> set[str]:
    """Return the names of all settings of all commands."""
    return {name for command in COMMANDS.values() for name in command_variables(command)}
