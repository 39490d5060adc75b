"""Generate the chart's templates, files, schema and table of values from build/, deploy/ and lifecycle/.

The comments of values.yaml become the table.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from admission import DOMAIN_PATTERN, LOGIN_SERVER_PATTERN, NAMESPACE
from generated_files import ROOT, write_or_check
from manifests import IMAGES, as_text

from lifecycle import __version__
from lifecycle.settings.models import COMMANDS, PruneSettings, command_variables, site_variables

CHART = ROOT / "charts" / "tailscale-lifecycle"

COPIES = {
    "archive.sh": "build/archive.sh",
    "build.sh": "build/build.sh",
    "import.sh": "build/import.sh",
    "storage.conf": "build/storage.conf",
    "dashboard.json": "deploy/monitoring/dashboard.json",
}
"""The files that are copied into the chart's folder `files`, by their name there."""

DAEMON_SET = "build/daemonset.yaml"

RELEASE_NAMESPACE = "{{ $.Release.Namespace | quote }}"
HEADSCALE_NAMESPACE = '{{ include "tailscale-lifecycle.headscaleNamespace" $ | quote }}'


# --- Templates ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Action:
    """A template action, {{ ... }}, that replaces a value of a manifest.

    Attributes:
        expression: what Helm evaluates.
        is_text: True if the result is a string, False if it is a list or map.
        is_optional: True to leave the field out if the result is empty.
    """

    expression: str
    is_text: bool = True
    is_optional: bool = False

    def lines(self, indent: str, name: str) -> str:
        """Return the lines of the template for a field or list item.

        Args:
            indent: the spaces at the beginning of the line.
            name: the text before the value, such as "image:" or "-".
        """
        value = "." if self.is_optional else self.expression
        if self.is_text and self.is_optional:
            # Without quotes, a name such as 123 would be a number.
            value += " | quote"
        if self.is_text:
            lines = f"{indent}{name} {{{{ {value} }}}}"
        else:
            inner = indent if name == "-" else f"{indent}  "
            heading = "" if name == "-" else f"{indent}{name}\n"
            lines = f"{heading}{inner}{{{{- toYaml {value} | nindent {len(inner)} }}}}"
        if self.is_optional:
            return f"{indent}{{{{- with {self.expression} }}}}\n{lines}\n{indent}{{{{- end }}}}"
        return lines


def yaml_action(expression: str) -> Action:
    """Return an action whose result is a list or map."""
    return Action(expression, is_text=False)


def optional_action(expression: str) -> Action:
    """Return an action whose result is a list or map. If it is empty, the field is left out."""
    return Action(expression, is_text=False, is_optional=True)


@dataclass(frozen=True, slots=True)
class Template:
    """How a template is made from a manifest.

    Attributes:
        source: path of the manifest.
        conditions: expressions such as "if ..." and "range ..." that enclose all objects, the outermost first.
        namespace: the namespace of all objects; "" if they have none.
        changes: new values by path, such as "Role/rules/0/resourceNames/0". A path begins with the kind of the object.
            In a path, the name or index of a list item selects the item, and "+" appends a new one.
        replacements: pairs of a string and its replacement, for the whole manifest.
        labels: an expression for a map of additional labels; "" for none.
        purpose: what the objects allow, for the comment at the start of the template; "" for no text.
    """

    source: str
    conditions: tuple[str, ...]
    namespace: str = RELEASE_NAMESPACE
    changes: dict[str, Action] = field(default_factory=dict)
    replacements: tuple[tuple[str, str], ...] = ()
    labels: str = ""
    purpose: str = ""


def templates() -> dict[str, Template]:
    """Return the description of each template, by the name of the template."""
    injection = ("if .Values.inject.enabled",)
    namespace = (f"namespace: {NAMESPACE}", f"namespace: {RELEASE_NAMESPACE}")
    namespace_in_messages = (f"namespace {NAMESPACE}", "namespace {{ $.Release.Namespace }}")
    images = (
        (IMAGES["lifecycle_image"], '{{ include "tailscale-lifecycle.image" $ }}'),
        (IMAGES["tailscale_image"], f"{{{{ {_image_reference('$.Values.tailscale.image')} }}}}"),
    )
    return {
        "build-daemonset": Template(DAEMON_SET, ("if .Values.build.enabled",), changes=_build_changes()),
        "inject-mutating": Template(
            "deploy/inject/mutating.yaml",
            injection,
            namespace="",
            changes={
                f"{kind}/apiVersion": Action('include "tailscale-lifecycle.policyVersion" $')
                for kind in ("MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding")
            },
            replacements=(namespace, *images),
        ),
        "inject-validating": Template(
            "deploy/inject/validating.yaml",
            injection,
            namespace="",
            replacements=(namespace, namespace_in_messages),
        ),
        "prune-cronjob": Template(
            "deploy/prune/cronjob.yaml",
            ("if .Values.prune.enabled", "range $namespace := .Values.prune.namespaces"),
            namespace="{{ $namespace | quote }}",
            changes=_prune_changes(),
        ),
        "rbac-api-key-secret": Template(
            "deploy/rbac/api-key-secret/role.yaml",
            ("with .Values.rbac.apiKeySecret", "if .enabled"),
            namespace=HEADSCALE_NAMESPACE,
            changes={
                "Role/rules/0/resourceNames/0": Action(".name | quote"),
                "RoleBinding/subjects": yaml_action(".subjects"),
            },
            purpose="Lets the subjects read the Headscale API key from a Secret in Headscale's namespace.",
        ),
        "rbac-exec": Template(
            "deploy/rbac/exec/role.yaml",
            ("with .Values.rbac.exec", "if .enabled"),
            namespace=HEADSCALE_NAMESPACE,
            changes={
                # Without resourceNames, the rule applies to any pod, as in deploy/rbac/exec-any-pod.
                "Role/rules/1/resourceNames": optional_action("ternary (list) (list .podName) .anyPod"),
                "RoleBinding/subjects": yaml_action(".subjects"),
            },
            purpose="Lets the subjects run `headscale` in Headscale's pod.",
        ),
        "rbac-keep": Template(
            "deploy/rbac/keep/role.yaml",
            ("range .Values.rbac.keep",),
            namespace="{{ .namespace | quote }}",
            changes={
                "Role/metadata/name": Action(".name | quote"),
                "Role/rules/0/resourceNames/0": Action(".secret | quote"),
                "RoleBinding/metadata/name": Action(".name | quote"),
                "RoleBinding/roleRef/name": Action(".name | quote"),
                "RoleBinding/subjects/0/name": Action(".serviceAccountName | quote"),
                "RoleBinding/subjects/0/namespace": Action(".namespace | quote"),
            },
            purpose="With NODE_POLICY=keep, lets cleanup read the node's id from the Secret with tailscale's state.",
        ),
        "rbac-events": Template(
            "deploy/rbac/events/role.yaml",
            ("range .Values.rbac.events",),
            namespace="{{ .namespace | quote }}",
            changes={"RoleBinding/subjects": yaml_action(".subjects")},
            purpose="Lets the subjects write Kubernetes Events about their pods.",
        ),
        "podmonitor": Template(
            "deploy/monitoring/podmonitor.yaml",
            ("if .Values.podMonitor.enabled",),
            namespace="{{ .Values.podMonitor.namespace | default .Release.Namespace | quote }}",
            changes={
                f"PodMonitor/spec/podMetricsEndpoints/0/{name}": Action(f".Values.podMonitor.{name}")
                for name in ("interval", "scrapeTimeout")
            },
            labels=".Values.podMonitor.labels",
        ),
        "prometheusrule": Template(
            "deploy/monitoring/rules.yaml",
            ("if .Values.prometheusRule.enabled",),
            namespace="{{ .Values.prometheusRule.namespace | default .Release.Namespace | quote }}",
            labels=".Values.prometheusRule.labels",
        ),
    }


def _build_changes() -> dict[str, Action]:
    """Return the changes of the DaemonSet that builds the image."""
    spec, pod, values = "DaemonSet/spec", "DaemonSet/spec/template/spec", ".Values.build"
    build, importer = f"{pod}/initContainers/build", f"{pod}/containers/import"
    return {
        f"{spec}/updateStrategy/rollingUpdate/maxUnavailable": Action(f"{values}.maxUnavailable"),
        f"{build}/image": Action(_image_reference(f"{values}.image")),
        f"{build}/env/BASE_IMAGE/value": Action(f"{values}.baseImage | quote"),
        f"{build}/env/BUILD_FLAGS/value": Action(f"{values}.flags | quote"),
        f"{importer}/image": Action(_image_reference(f"{values}.import.image")),
        f"{importer}/env/CONTAINERD_ADDRESS/value": Action(f"{values}.import.containerdAddress | quote"),
        f"{importer}/env/CHECK_INTERVAL/value": Action(f"{values}.import.checkInterval | quote"),
        f"{pod}/volumes/build/configMap/name": Action('include "tailscale-lifecycle.buildName" .'),
        **_container_changes(build, values),
        **_container_changes(importer, f"{values}.import"),
        f"{pod}/volumes/+": optional_action(f"{values}.extraVolumes"),
        **_pod_changes(pod, values, "nodeSelector", "tolerations", "imagePullSecrets", "priorityClassName"),
    }


def _container_changes(path: str, values: str) -> dict[str, Action]:
    """Return the changes that every container of the DaemonSet gets."""
    return {
        f"{path}/env/+": optional_action(f"{values}.extraEnv"),
        f"{path}/volumeMounts/+": optional_action(f"{values}.extraVolumeMounts"),
        f"{path}/resources": optional_action(f"{values}.resources"),
    }


def _pod_changes(path: str, values: str, *names: str) -> dict[str, Action]:
    """Return the changes that set fields of a pod to the values with the same names."""
    text_fields = ("priorityClassName", "serviceAccountName")
    return {
        f"{path}/{name}": Action(f"{values}.{name}", is_text=name in text_fields, is_optional=True) for name in names
    }


def _prune_changes() -> dict[str, Action]:
    """Return the changes of the CronJob."""
    job, values = "CronJob/spec/jobTemplate/spec/template/spec", "$.Values.prune"
    return {
        "CronJob/spec/schedule": Action(f"{values}.schedule | quote"),
        f"{job}/containers/prune/image": Action('include "tailscale-lifecycle.image" $'),
        f"{job}/containers/prune/resources": optional_action(f"{values}.resources"),
        f"{job}/automountServiceAccountToken": Action(f'ne {values}.serviceAccountName ""'),
        **_pod_changes(job, values, "serviceAccountName", "nodeSelector", "tolerations", "imagePullSecrets"),
    }


def _image_reference(value: str) -> str:
    """Return an expression for an image whose repository, tag and digest are values."""
    return f'include "tailscale-lifecycle.reference" {value}'


def template_text(template: Template) -> str:
    """Return the content of a template."""
    documents = [
        document
        for document in yaml.safe_load_all((ROOT / template.source).read_text())
        # The namespace is left out, because a release does not contain its own namespace.
        if document["kind"] != "Namespace"
    ]
    actions: list[Action] = []
    for document in documents:
        for path, action in template.changes.items():
            kind, _, rest = path.partition("/")
            if kind == document["kind"]:
                # An action is not YAML, so a numbered placeholder takes its place until the document is text.
                _set_value(document, rest.split("/"), f"ACTION{len(actions)}")
                actions.append(action)
    body = "---\n".join(_with_actions(_document_text(document, template), actions) for document in documents)
    for old, new in template.replacements:
        if old not in body:
            raise ValueError(f"{template.source} does not contain {old}")
        body = body.replace(old, new)
    begin = "".join(f"{{{{- {condition} }}}}\n" for condition in template.conditions)
    if "range" in begin:
        # Separate the objects of each iteration from those of the one before.
        begin += "---\n"
    end = "{{- end }}\n" * len(template.conditions)
    purpose = f"\n{template.purpose}" if template.purpose else ""
    comment = f"Generated by scripts/generate from {template.source}. Do not edit.{purpose}"
    return f"{{{{- /* {comment} */}}}}\n{begin}{body}{end}"


def _document_text(document: dict[str, Any], template: Template) -> str:
    """Return a manifest as text with the template's namespace and labels, and with escaped braces."""
    metadata = document.pop("metadata")
    lines = [f"name: {metadata['name']}"]
    if template.namespace:
        lines.append(f"namespace: {template.namespace}")
    labels = metadata.get("labels", {"app.kubernetes.io/name": "tailscale-lifecycle"})
    lines += ["labels:", *(f"  {name}: {value}" for name, value in labels.items())]
    lines.append('  {{- include "tailscale-lifecycle.labels" $ | nindent 4 }}')
    if template.labels:
        lines += [f"  {{{{- with {template.labels} }}}}", "  {{- toYaml . | nindent 4 }}", "  {{- end }}"]
    head, rest = (as_text({name: document.pop(name) for name in ("apiVersion", "kind")}), as_text(document))
    # The alerts contain templates of Prometheus. Their braces are escaped, so that Helm does not evaluate them.
    rest = re.sub(r"\{\{[^}]*\}\}", lambda match: f"{{{{`{match[0]}`}}}}", rest)
    metadata_text = "".join(f"  {line}\n" for line in lines)
    return f"{head}metadata:\n{metadata_text}{rest}"


def _with_actions(text: str, actions: list[Action]) -> str:
    """Replace the numbered placeholders by the actions."""
    return re.sub(
        r"^( *)(\w+:|-) ACTION(\d+)$",
        lambda match: actions[int(match[3])].lines(match[1], match[2]),
        text,
        flags=re.MULTILINE,
    )


def _set_value(document: Any, path: list[str], value: str) -> None:
    """Set the value at a path, or append it to a list if the path ends with "+".

    Raises:
        KeyError: a part of the path does not exist.
    """
    *parents, last = path
    for name in parents:
        document = document[_key(document, name)]
    if last == "+":
        document.append(value)
    else:
        document[_key(document, last)] = value


def _key(parent: Any, name: str) -> Any:
    """Return the key of a map, or the index of a list item with this name or number."""
    if not isinstance(parent, list):
        return name
    if name.isdigit():
        return int(name)
    for index, item in enumerate(parent):
        if item["name"] == name:
            return index
    raise KeyError(name)


CHECKS = f"""\
{{{{- /* Generated by scripts/generate from scripts/admission.py. Do not edit. */}}}}
{{{{- define "tailscale-lifecycle.checkDomain" -}}}}
{{{{- $domain := required "Set settings.DOMAIN_NAME to the domain of the workloads' records, such as \
vpn.your-domain.net." .Values.settings.DOMAIN_NAME -}}}}
{{{{- if not (regexMatch `{DOMAIN_PATTERN}` $domain) -}}}}
{{{{- fail (printf "settings.DOMAIN_NAME is %q. It must be a domain in lower case." $domain) -}}}}
{{{{- end -}}}}
{{{{- end }}}}

{{{{- define "tailscale-lifecycle.checkLoginServer" -}}}}
{{{{- $server := required "Set settings.LOGIN_SERVER to Headscale's https URL, or set inject.enabled=false." \
.Values.settings.LOGIN_SERVER -}}}}
{{{{- if not (regexMatch `{LOGIN_SERVER_PATTERN}` $server) -}}}}
{{{{- fail "settings.LOGIN_SERVER must be an https URL of Headscale without user, password, ? and #. With http and a \
host name, tailscale stays offline after Headscale restarts." -}}}}
{{{{- end -}}}}
{{{{- end }}}}
"""
"""The content of the template _checks.tpl, which validates two of the values."""


# --- Values -------------------------------------------------------------------------------------------


def values_text() -> str:
    """Return values.yaml with the tag and digest of each image in the manifests."""
    (daemon_set,) = [
        document for document in yaml.safe_load_all((ROOT / DAEMON_SET).read_text()) if document["kind"] == "DaemonSet"
    ]
    pod = daemon_set["spec"]["template"]["spec"]
    images = [IMAGES["tailscale_image"], *(item["image"] for item in (*pod["initContainers"], *pod["containers"]))]
    text = (CHART / "values.yaml").read_text()
    for image in images:
        name, _, digest = image.partition("@")
        repository, _, tag = name.rpartition(":")
        pattern = rf"(repository: {re.escape(repository)}\n(?: *#.*\n)* *tag: ).*(\n(?: *#.*\n)* *digest: ).*"
        digest = digest or '""'
        text, count = re.subn(pattern, rf"\g<1>{tag}\g<2>{digest}", text)
        if count != 1:
            raise ValueError(f"values.yaml has no image of {repository}")
    return text


# Settings of the site that prune accepts, but that do not change what prune does.
_WITHOUT_EFFECT_ON_PRUNE = frozenset(
    {"AUTHKEY_EPHEMERAL", "AUTHKEY_EXPIRATION", "AUTHKEY_REUSABLE", "KUBERNETES_EVENTS", "VPN_PREFIXES"}
)


def schema_text() -> str:
    """Return values.schema.json with the names and descriptions of the settings of the site and of prune."""
    descriptions = {
        name: field.description
        for command in COMMANDS.values()
        for name, field in command_variables(command).items()
        if field.description
    }
    schema = json.loads((CHART / "values.schema.json").read_text())
    of_site = site_variables()
    of_prune = [name for name in command_variables(PruneSettings) if name in of_site or name.startswith("PRUNE_")]
    names_of_prune = {*of_prune} - _WITHOUT_EFFECT_ON_PRUNE
    for part, names in ((schema, [*of_site, "LOGIN_SERVER"]), (schema["properties"]["prune"], names_of_prune)):
        part["properties"]["settings"]["properties"] = {
            name: {"$ref": "#/definitions/setting", "description": descriptions[name]} for name in sorted(names)
        }
    return json.dumps(schema, indent=2) + "\n"


def table() -> Iterator[str]:
    """Yield the lines of the table of values. The meaning of a value is its comment in values.yaml."""
    yield "| value | meaning | default |"
    yield "|---|---|---|"
    text = values_text()
    lines = text.splitlines()

    def rows(node: yaml.MappingNode, defaults: dict[str, Any], path: str) -> Iterator[str]:
        # A map has a row of its own only if none of its fields has a comment.
        for key, value in node.value:
            name, default = f"{path}{key.value}", defaults[key.value]
            comment = _comment(lines, key.start_mark.line)
            if isinstance(value, yaml.MappingNode) and any(
                _comment(lines, inner.start_mark.line) for inner, _ in value.value
            ):
                yield from rows(value, default, f"{name}.")
            elif not comment:
                raise ValueError(f"values.yaml: {name} has no comment")
            else:
                default_text = default if isinstance(default, str) else json.dumps(default)
                cell = "" if default in ("", [], {}) else f"`{default_text}`"
                yield f"| `{name}` | {comment} | {cell} |"

    root = yaml.compose(text)
    if isinstance(root, yaml.MappingNode):
        yield from rows(root, yaml.safe_load(text), "")


def _comment(lines: list[str], line: int) -> str:
    """Return the comment directly above a line, as one line."""
    comment: list[str] = []
    while line > 0 and lines[line - 1].lstrip().startswith("#"):
        line -= 1
        comment.insert(0, lines[line].strip().removeprefix("#").strip())
    return " ".join(comment)


def readme_text() -> str:
    """Return the chart's README with the table of values."""
    text = (CHART / "README.md").read_text()
    head, begin, _ = text.partition("<!-- values: generated by scripts/generate -->\n")
    if not begin:
        raise ValueError("the README of the chart has no place for the table of values")
    return head + begin + "\n" + "\n".join(table()) + "\n"


def chart_text() -> str:
    """Return Chart.yaml with the version of the program."""
    text = (CHART / "Chart.yaml").read_text()
    text = re.sub(r"^version: .*$", f"version: {__version__}", text, flags=re.MULTILINE)
    return re.sub(r"^appVersion: .*$", f'appVersion: "{__version__}"', text, flags=re.MULTILINE)


def generated() -> dict[Path, str]:
    """Return the content of every generated file."""
    return {
        **{CHART / "templates" / f"{name}.yaml": template_text(template) for name, template in templates().items()},
        **{CHART / "files" / name: (ROOT / source).read_text() for name, source in COPIES.items()},
        CHART / "templates" / "_checks.tpl": CHECKS,
        CHART / "values.yaml": values_text(),
        CHART / "values.schema.json": schema_text(),
        CHART / "Chart.yaml": chart_text(),
        CHART / "README.md": readme_text(),
    }


if __name__ == "__main__":
    sys.exit(write_or_check(generated()))
