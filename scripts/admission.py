"""Make the admission policies of deploy/inject from the containers and rules of lifecycle.inject.

The policies are written in CEL, the expression language of the API server. Most functions here return a CEL expression
as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from lifecycle.inject.rules import (
    ANNOTATIONS,
    FALSE_VALUES,
    HOSTNAME,
    INIT_CONTAINERS,
    LABEL,
    MAX_HOSTNAME_LENGTH,
    REFERENCES,
    REFUSALS,
    RESERVED_ARGS,
    STATE_SECRET,
    TAILSCALE_ARGS,
)
from lifecycle.inject.template import (
    CONTAINERS,
    DEFAULTS,
    KEY_VOLUME,
    PORTS,
    PROJECT,
    VOLUMES,
    added_containers,
    added_volumes,
    placeholder_name,
    template,
)
from lifecycle.settings.models import site_variables

Document = dict[str, Any]

NAMESPACE = f"{PROJECT}-inject"
"""The namespace of the ConfigMap with the settings."""

API = "admissionregistration.k8s.io/v1"

MAX_LINE = 110
"""An expression that is longer is written over several lines."""

# All settings in the ConfigMap except these become variables of cleanup and dns-watch.
INJECTION_SETTINGS = ("LOGIN_SERVER", "LIFECYCLE_IMAGE", "TAILSCALE_IMAGE")

DOMAIN_PATTERN = r"^[a-z0-9-]+(\.[a-z0-9-]+)+$"
LOGIN_SERVER_PATTERN = r"^(https://[^\s@?#]+|http://(localhost|[0-9]+(\.[0-9]+){3}|\[[0-9a-f:]+\])(:[0-9]+)?/?)$"

# Fields of the Kubernetes API whose value is a map with arbitrary keys. In CEL, such a map has no type name.
_MAP_FIELDS = frozenset({"requests", "limits"})

# CEL expressions that replace the placeholders ${name} in containers.yaml: single values, and items of lists.
_PLACEHOLDER_VALUES = {
    "hostname": "variables.hostname",
    "tailscale_args": "variables.tailscaleArgs",
    "state_secret": "variables.stateSecret",
    "lifecycle_image": "variables.lifecycleImage",
    "tailscale_image": "variables.tailscaleImage",
}
_PLACEHOLDER_LISTS = {
    "settings": "variables.settings.map(s, {type}{{name: s[0], value: s[1]}})",
    "node_name": "((variables.hostname + variables.stateSecret).contains('$(NODE_NAME)') ? [{node}] : [])",
    "cleanup_token": "(variables.needsServiceAccountToken || variables.stateSecret != '' ? [{token}] : [])",
    "dns_watch_token": "(variables.needsServiceAccountToken ? [{token}] : [])",
}

# For a Pod, this is the Pod itself. dyn() turns off the type check, because each kind of object has another type.
_POD_TEMPLATE = (
    "object.kind == 'Pod' ? dyn(object) : object.kind == 'CronJob' ? dyn(object.spec.jobTemplate.spec.template) : "
    "dyn(object.spec.template)"
)

# The objects whose labels the pods do not get: the object itself, and in a CronJob also the template of its Jobs.
_OUTER_OBJECTS = "(object.kind == 'CronJob' ? [dyn(object), dyn(object.spec.jobTemplate)] : [dyn(object)])"


def mutating_policy(images: dict[str, str]) -> Iterator[Document]:
    """Yield the policy that adds the containers, and its binding.

    Args:
        images: the default image for each placeholder.
    """
    yield {
        "apiVersion": API,
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": PROJECT},
        "spec": {
            "failurePolicy": "Fail",
            "reinvocationPolicy": "IfNeeded",
            "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
            "matchConstraints": {
                "resourceRules": [_resource_rule("", ["pods"], ["CREATE"])],
                "objectSelector": {"matchLabels": {LABEL: "true"}},
            },
            # A pod that does not meet these conditions is not changed. The validating policy refuses it and says why.
            "matchConditions": [
                {
                    "name": "has-hostname",
                    "expression": f"{_literal(HOSTNAME)} in object.metadata.?annotations.orValue({{}})",
                },
                {
                    "name": "has-no-added-container",
                    "expression": (
                        f"!({_containers('object.spec')}.map(c, c.name).exists(n, n in {_literal(CONTAINERS)}))"
                    ),
                },
                {
                    "name": "has-no-added-volume",
                    "expression": f"!object.spec.?volumes.orValue([]).exists(v, v.name in {_literal(VOLUMES)})",
                },
            ],
            "variables": _as_variables(_mutation_variables(images)),
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": _json_patch()}}],
        },
    }
    yield _binding("MutatingAdmissionPolicyBinding")


def validating_policy() -> Iterator[Document]:
    """Yield the policy that refuses workloads to which the containers cannot be added, and its binding."""
    settings = sorted({*site_variables(), *INJECTION_SETTINGS})
    yield {
        "apiVersion": API,
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": PROJECT},
        "spec": {
            "failurePolicy": "Fail",
            "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
            "matchConstraints": {
                "resourceRules": [
                    _resource_rule("", ["pods"], ["CREATE"]),
                    _resource_rule("apps", ["deployments", "statefulsets", "daemonsets"], ["CREATE", "UPDATE"]),
                    _resource_rule("batch", ["jobs", "cronjobs"], ["CREATE", "UPDATE"]),
                ]
            },
            "matchConditions": [
                {
                    "name": "has-label-or-annotation",
                    "expression": f"([{_POD_TEMPLATE}] + {_OUTER_OBJECTS}).exists(t, "
                    f"t.?metadata.?labels.orValue({{}}).exists(k, k.startsWith('{PROJECT}/')) || "
                    f"t.?metadata.?annotations.orValue({{}}).exists(k, k.startsWith('{PROJECT}/')))",
                },
                # An existing workload that is invalid can still be deleted and annotated. It can also be scaled,
                # because kubectl scale changes a subresource, which no rule above matches.
                {"name": "is-not-deleted", "expression": "!has(object.metadata.deletionTimestamp)"},
                {
                    "name": "is-new-or-changed",
                    "expression": "request.operation == 'CREATE' || object.spec != oldObject.spec",
                },
            ],
            "variables": _as_variables(
                {
                    "podTemplate": _POD_TEMPLATE,
                    "podSpec": "variables.podTemplate.spec",
                    "labels": "variables.podTemplate.?metadata.?labels.orValue({})",
                    "injectionIsRequested": f"variables.labels[?{_literal(LABEL)}].orValue('') == 'true'",
                    **_common_variables("variables.podTemplate"),
                    "containerNames": f"{_containers('variables.podSpec')}.map(c, c.name)",
                    "knownLabelsAndAnnotations": _literal((*ANNOTATIONS, LABEL)),
                    "unknownLabels": _unknown_keys("variables.labels", (LABEL,)),
                    "unknownAnnotations": _unknown_keys("variables.annotations", tuple(ANNOTATIONS)),
                    "unknownSettings": f"variables.siteSettings.map(k, k).filter(k, !(k in {_literal(settings)}))",
                    "volumesWithReservedNames": (
                        f"variables.podSpec.?volumes.orValue([]).map(v, v.name).filter(n, n in {_literal(VOLUMES)})"
                    ),
                    "containersWithReservedNames": f"{_literal(CONTAINERS)}.filter(n, n in variables.containerNames)",
                    "containersWithReservedPort": (
                        f"{_containers('variables.podSpec')}.filter(c, !(c.name in {_literal(CONTAINERS)}) && "
                        f"c.?ports.orValue([]).exists(p, p.containerPort in {list(PORTS)}))"
                    ),
                    "isInjected": (
                        f"{_literal(KEY_VOLUME)} in variables.volumesWithReservedNames && "
                        f"{_literal(CONTAINERS)}.all(n, n in variables.containerNames)"
                    ),
                    "podCount": _POD_COUNT,
                }
            ),
            "validations": list(_validations()),
        },
    }
    yield _binding("ValidatingAdmissionPolicyBinding")


# How many pods of the object run at the same time. For a DaemonSet: on each cluster node.
_POD_COUNT = (
    "object.kind == 'Job' ? dyn(object.spec).?parallelism.orValue(1) : "
    "object.kind == 'CronJob' ? dyn(object.spec.jobTemplate.spec).?parallelism.orValue(1) : "
    "object.kind in ['Deployment', 'StatefulSet'] ? dyn(object.spec).?replicas.orValue(1) : 1"
)


def _common_variables(pod_template: str) -> dict[str, str]:
    """Return the variables that both policies have.

    Args:
        pod_template: an expression for the pod or pod template, which has the annotations.
    """
    annotation = f"variables.annotations[?{_literal(HOSTNAME)}].orValue('')"
    return {
        "annotations": f"{pod_template}.?metadata.?annotations.orValue({{}})",
        # Like the program, remove space around the values.
        "siteSettings": "params.?data.orValue({}).transformMap(name, value, value.trim())",
        "domain": _site_setting("DOMAIN_NAME"),
        "hostname": f"{annotation} + ({annotation}.contains('.') ? '' : '.' + variables.domain)",
        "stateSecret": f"variables.annotations[?{_literal(STATE_SECRET)}].orValue('')",
    }


def _mutation_variables(images: dict[str, str]) -> dict[str, str]:
    """Return the variables of the mutating policy, with the values for the placeholders.

    The expressions contain no optional map entries ({?name: value}), because the API server of Kubernetes 1.36 panics
    when it checks such entries.
    """
    defaults = {name: _literal(value) for name, value in DEFAULTS.items()}
    defaults["HEADSCALE_API_KEY_FILE"] = f"variables.needsKubernetesApi ? '' : {defaults['HEADSCALE_API_KEY_FILE']}"
    from_annotations = {
        annotation.setting: f"variables.annotations[?{_literal(name)}].orValue('')"
        for name, annotation in ANNOTATIONS.items()
        if annotation.setting
    }
    from_annotations |= {"TS_HOSTNAME": "variables.hostname", "TS_KUBE_SECRET": "variables.stateSecret"}
    from_annotations["NODE_POLICY"] = "variables.stateSecret != '' ? 'keep' : ''"
    args = f"variables.annotations[?{_literal(TAILSCALE_ARGS)}].orValue('')"
    server = _site_setting("LOGIN_SERVER")
    return {
        **_common_variables("object"),
        "needsKubernetesApi": (
            f"{_site_setting('HEADSCALE_API_KEY_SECRET')} != '' || {_site_setting('HEADSCALE_ACCESS')} == 'exec'"
        ),
        "needsServiceAccountToken": (
            f"variables.needsKubernetesApi || !({_site_setting('KUBERNETES_EVENTS')}.lowerAscii() in "
            f"{_literal(FALSE_VALUES)})"
        ),
        "loginServer": f"{server}.endsWith('/') ? {server}.substring(0, {server}.size() - 1) : {server}",
        "tailscaleArgs": f"('--login-server=' + variables.loginServer + ' ' + {args}).trim()",
        "lifecycleImage": _site_setting("LIFECYCLE_IMAGE", images["lifecycle_image"]),
        "tailscaleImage": _site_setting("TAILSCALE_IMAGE", images["tailscale_image"]),
        "defaults": _map_literal(defaults),
        "fromAnnotations": _map_literal(from_annotations),
        # An empty value counts as unset.
        "settings": (
            f"[\n{_indented_lines(map(_literal, sorted({*site_variables(), *defaults, *from_annotations})))}\n]\n"
            ".map(n, [n, variables.fromAnnotations[?n].orValue('') != '' ? variables.fromAnnotations[n] : "
            "variables.siteSettings[?n].orValue('') != '' ? variables.siteSettings[?n].orValue('') : "
            "variables.defaults[?n].orValue('')])\n"
            ".filter(s, s[1] != '')"
        ),
        "podInitContainersFirst": f"variables.annotations[?{_literal(INIT_CONTAINERS)}].orValue('') == 'before'",
    }


def _site_setting(name: str, default: str = "") -> str:
    """Return an expression for a setting in the ConfigMap. An empty value counts as unset."""
    value = f"variables.siteSettings[?{_literal(name)}].orValue('')"
    return f"({value} != '' ? {value} : {_literal(default)})" if default else value


def _map_literal(entries: dict[str, str]) -> str:
    """Return a CEL map from names to expressions, with one entry on each line."""
    return f"{{\n{_indented_lines(f'{_literal(name)}: {value}' for name, value in entries.items())}\n}}"


def _indented_lines(items: Iterable[str]) -> str:
    return ",\n".join(f"  {item}" for item in items)


def _json_patch() -> str:
    """Return the JSON patch that adds the containers and volumes.

    The patch inserts the containers before the pod's own init containers, or after them if an annotation requests that.
    """
    # A JSON patch cannot append to a missing list, so the first operations add empty lists.
    lists = [
        f"(has(object.spec.{name}) ? [] : [JSONPatch{{op: 'add', path: '/spec/{name}', value: []}}])"
        for name in ("initContainers", "volumes")
    ]
    values = [
        (
            f"variables.podInitContainersFirst ? '/spec/initContainers/-' : '/spec/initContainers/{index}'",
            _typed_literal(container, "Object.spec.initContainers"),
        )
        for index, container in enumerate(added_containers())
    ]
    values += [("'/spec/volumes/-'", _typed_literal(volume, "Object.spec.volumes")) for volume in added_volumes()]
    operations = [f"JSONPatch{{\n  op: 'add',\n  path: {path},\n  value: {value}\n}}" for path, value in values]
    return " +\n".join([*lists, f"[\n{', '.join(operations)}\n]"])


def _typed_literal(value: Any, type_name: str, indent: str = "  ") -> str:
    """Return a value of containers.yaml as a CEL literal over several lines.

    Args:
        value: an object, or the value of one of its fields.
        type_name: the CEL type of an object, such as "Object.spec.volumes".
        indent: the spaces before the closing brace of an object.
    """
    match value:
        case dict():
            inner = f"{indent}  "
            fields = [
                f"{inner}{name}: {_field_value(name, content, f'{type_name}.{name}', inner)}"
                for name, content in value.items()
            ]
            return f"{type_name}{{\n" + ",\n".join(fields) + f"\n{indent}}}"
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case _:
            return _PLACEHOLDER_VALUES.get(placeholder_name(value) or "", _literal(value))


def _field_value(name: str, value: Any, type_name: str, indent: str) -> str:
    """Return the value of a field: a map with arbitrary keys, a list, or anything that _typed_literal accepts."""
    if name in _MAP_FIELDS:
        return f"{{{', '.join(f'{_literal(key)}: {_literal(quantity)}' for key, quantity in value.items())}}}"
    if not isinstance(value, list):
        return _typed_literal(value, type_name, indent)
    token, node = (_typed_literal(template()[name], type_name, indent) for name in ("token-mount", "node-name"))
    # Keep the order of the list: in Kubernetes, the value of a variable can refer only to variables before it.
    lists = []
    for is_placeholder, items in groupby(value, key=lambda item: placeholder_name(item) in _PLACEHOLDER_LISTS):
        if is_placeholder:
            lists += [
                _PLACEHOLDER_LISTS[placeholder_name(item) or ""].format(token=token, node=node, type=type_name)
                for item in items
            ]
        else:
            lists.append(f"[{', '.join(_typed_literal(item, type_name, indent) for item in items)}]")
    return " + ".join(lists)


def _containers(spec: str) -> str:
    """Return an expression for all containers of a pod."""
    return f"({spec}.?initContainers.orValue([]) + {spec}.?containers.orValue([]))"


def _unknown_keys(map_expression: str, known: tuple[str, ...]) -> str:
    """Return an expression for the unknown keys with the project's prefix in a map of labels or annotations."""
    return f"{map_expression}.map(k, k).filter(k, k.startsWith('{PROJECT}/') && !(k in {_literal(known)}))"


def _resource_rule(group: str, resources: list[str], operations: list[str]) -> Document:
    return {"apiGroups": [group], "apiVersions": ["v1"], "operations": operations, "resources": resources}


def _binding(kind: str) -> Document:
    """Return the object that applies a policy to the namespaces with the label, with the ConfigMap as its parameter."""
    actions = {"validationActions": ["Deny"]} if kind.startswith("Validating") else {}
    return {
        "apiVersion": API,
        "kind": kind,
        "metadata": {"name": PROJECT},
        "spec": {
            "policyName": PROJECT,
            **actions,
            "matchResources": {"namespaceSelector": {"matchLabels": {LABEL: "enabled"}}},
            # Without the ConfigMap, the mutating policy refuses pods with the label. In the validating policy, "Deny"
            # would refuse every pod of the namespace, because that policy has no object selector.
            "paramRef": {
                "name": PROJECT,
                "namespace": NAMESPACE,
                "parameterNotFoundAction": "Allow" if kind.startswith("Validating") else "Deny",
            },
        },
    }


def _as_variables(expressions: dict[str, str]) -> list[Document]:
    return [{"name": name, "expression": _over_lines(expression)} for name, expression in expressions.items()]


def _over_lines(expression: str) -> str:
    """Return the same expression over several lines if it is long: with one operand or list item on each line."""
    if len(expression) <= MAX_LINE or "\n" in expression:
        return expression
    lines = re.sub(r" (\|\||&&|\?|:) ", r"\n  \1 ", expression).splitlines()
    return "\n".join(line.replace("', '", "',\n    '") if len(line) > MAX_LINE else line for line in lines)


def _literal(value: Any) -> str:
    """Return a string or list of strings as a CEL literal."""
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return f"[{', '.join(map(_literal, value))}]"


# --- Validation ---------------------------------------------------------------------------------------


def _validations() -> Iterator[Document]:
    """Yield the validations in order. The API server reports the first one that fails."""
    annotations = "variables.annotations"
    label = f"variables.labels[?{_literal(LABEL)}].orValue('false')"
    yield _validation(f"{label} in ['true', 'false']", "label", value=label)
    for kind, unknown in (("label", "variables.unknownLabels"), ("annotation", "variables.unknownAnnotations")):
        is_similar = f"{_normalized('n')} == {_normalized(f'{unknown}[0]')} && n != {unknown}[0]"
        hint = (
            f"variables.knownLabelsAndAnnotations.filter(n, {is_similar}).map(n, ' (did you mean ' + n + '?)').join('')"
        )
        yield _validation(f"{unknown}.size() == 0", "unknown", value=f"'The {kind} ' + {unknown}[0] + {hint}")
    is_outside = f"{_OUTER_OBJECTS}.exists(o, {_literal(LABEL)} in o.?metadata.?labels.orValue({{}}))"
    yield _validation(f"object.kind == 'Pod' || !{is_outside} || {_literal(LABEL)} in variables.labels", "label-place")
    yield from _site_validations()
    yield _require(f"{_literal(HOSTNAME)} in {annotations}", "hostname-missing", domain="variables.domain")
    for name, annotation in ANNOTATIONS.items():
        value = f"{annotations}[{_literal(name)}]"
        yield _require(
            f"!({_literal(name)} in {annotations}) || {value}.matches({_regex(f'^({annotation.pattern})$')})",
            "value",
            name=_literal(name),
            value=value,
            valid=_literal(annotation.valid_values),
        )
    hostname = f"{annotations}[{_literal(HOSTNAME)}]"
    yield _require(
        f"!{hostname}.contains('.') || {hostname} == variables.domain || {hostname}.endsWith('.' + variables.domain)",
        "hostname-domain",
        value=hostname,
        domain="variables.domain",
    )
    removal_of_references = "".join(f".replace({_literal(f'$({name})')}, '')" for name in REFERENCES)
    yield _require(
        f"variables.hostname{removal_of_references}.size() <= {MAX_HOSTNAME_LENGTH}",
        "hostname-length",
        value="variables.hostname",
    )
    args = f"{annotations}[?{_literal(TAILSCALE_ARGS)}].orValue('')"
    yield _require(f"!{args}.matches({_regex(RESERVED_ARGS)})", "args", value=args)
    yield from _pod_validations()


def _pod_validations() -> Iterator[Document]:
    """Yield the validations of the pod template and of the number of pods."""
    yield _require("!variables.podSpec.?hostNetwork.orValue(false)", "host-network")
    yield _require(
        "variables.isInjected || variables.volumesWithReservedNames.size() == 0",
        "partial",
        value="(variables.volumesWithReservedNames + variables.containersWithReservedNames).join(', ')",
    )
    yield _require(
        "variables.isInjected || variables.containersWithReservedNames.size() == 0",
        "container",
        value="variables.containersWithReservedNames[0]",
    )
    container = "variables.containersWithReservedPort"
    yield _require(
        f"{container}.size() == 0",
        "port",
        name=f"{container}[0].name",
        value=f"string({container}[0].ports.filter(p, p.containerPort in {list(PORTS)})[0].containerPort)",
    )
    hostname, secret = f"variables.annotations[{_literal(HOSTNAME)}]", "variables.stateSecret"
    per_node, per_pod = ".contains('$(NODE_NAME)')", ".contains('$(POD_NAME)')"
    yield _require(
        f"object.kind != 'DaemonSet' || ({hostname}{per_node} && ({secret} == '' || {secret}{per_node}))", "daemon-set"
    )
    yield _require(f"object.kind in ['Pod', 'StatefulSet', 'DaemonSet'] || !{hostname}{per_pod}", "pod-name")
    count = "string(variables.podCount)"
    yield _require(f"variables.podCount < 2 || {hostname}{per_pod}", "replicas", value=count)
    yield _require(f"variables.podCount < 2 || {secret} == '' || {secret}{per_pod}", "state-shared", value=count)
    yield _with_message(
        _if_requested("object.kind != 'Pod' || variables.isInjected"),
        f"'The containers were not added to this pod. Check that the MutatingAdmissionPolicy {PROJECT} exists, and "
        "that the API server applies such policies. Kubernetes 1.36 and newer do so by default, 1.34 and 1.35 with two "
        "flags of the API server.'",
    )


def _site_validations() -> Iterator[Document]:
    """Yield the validations of the ConfigMap with the settings."""
    config_map = f"ConfigMap {PROJECT} in the namespace {NAMESPACE}"
    unknown = "variables.unknownSettings"
    yield _with_message(
        _if_requested(f"{unknown}.size() == 0"),
        f"'The {config_map} contains ' + {unknown}[0] + ', which is not a setting that applies to all workloads. "
        "Correct or remove it.'",
    )
    yield _with_message(
        _if_requested(f"variables.domain.matches({_regex(DOMAIN_PATTERN)})"),
        f"'DOMAIN_NAME in the {config_map} must be a domain in lower case.'",
    )
    server = _site_setting("LOGIN_SERVER")
    yield _with_message(
        _if_requested(f"{server}.matches({_regex(LOGIN_SERVER_PATTERN)})"),
        f"'LOGIN_SERVER in the {config_map} must be an https URL of Headscale without user, password, ? and #. "
        "With http and a host name, tailscale stays offline after Headscale restarts.'",
    )


def _require(expression: str, refusal: str, **values: str) -> Document:
    """Return a `_validation` that applies only to workloads that request the injection with the label."""
    return _validation(_if_requested(expression), refusal, **values)


def _if_requested(expression: str) -> str:
    return f"!variables.injectionIsRequested || {expression}"


def _validation(expression: str, refusal: str, **values: str) -> Document:
    """Return a validation with the message of a refusal.

    Args:
        expression: true if the object is valid.
        refusal: key of REFUSALS.
        values: an expression for each name in braces in the message.
    """
    parts = re.split(r"\{(\w+)\}", REFUSALS[refusal])
    # Names and the text between them alternate.
    pieces = [_shortened(values[part]) if index % 2 else _literal(part) for index, part in enumerate(parts) if part]
    # Join adjacent literals.
    return _with_message(expression, " +\n  ".join(pieces).replace("' +\n  '", ""))


def _shortened(text: str) -> str:
    """Return an expression for the first 100 characters of a string, on one line; literals and the domain stay.

    CEL has no local variables, so `map` over a list of one item gives the text the name `t`.
    """
    if text.startswith("'") or text == "variables.domain":
        return text
    line = f"({text}).replace('\\n', ' ').replace('\\r', ' ')"
    return f"[{line}].map(t, t.size() > 100 ? t.substring(0, 100) + '...' : t)[0]"


def _with_message(expression: str, text: str) -> Document:
    return {"expression": _over_lines(expression), "messageExpression": text}


def _normalized(text: str) -> str:
    """Return an expression for a name in lower case without hyphens and underscores, which are often mistyped."""
    return f"{text}.lowerAscii().replace('-', '').replace('_', '')"


def _regex(pattern: str) -> str:
    return f"r'{pattern}'"
