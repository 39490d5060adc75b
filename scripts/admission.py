"""The admission policies, in the expression language CEL, made from the containers and rules of lifecycle.inject."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from lifecycle.inject.rules import (
    ANNOTATIONS,
    EXAMPLES,
    HOSTNAME,
    HOSTNAME_LENGTH,
    INIT_CONTAINERS,
    LABEL,
    PATTERNS,
    REFERENCES,
    REFUSALS,
    RESERVED_ARGS,
    SETTINGS,
    STATE_SECRET,
    TAILSCALE_ARGS,
)
from lifecycle.inject.template import (
    CONTAINERS,
    DEFAULTS,
    DOMAIN,
    KEY_VOLUME,
    PORTS,
    VOLUMES,
    added_containers,
    added_volumes,
    placeholder,
    template,
)
from lifecycle.settings.models import site_variables

Document = dict[str, Any]

NAMESPACE = f"{DOMAIN}-inject"
"""The namespace of the ConfigMap with the settings."""

API = "admissionregistration.k8s.io/v1"

# Settings of injection itself; all others are variables of cleanup and dns-watch.
OWN_SETTINGS = ("LOGIN_SERVER", "LIFECYCLE_IMAGE", "TAILSCALE_IMAGE")

DOMAIN_PATTERN = r"^[a-z0-9-]+(\.[a-z0-9-]+)+$"
LOGIN_SERVER_PATTERN = r"^(https://\S+|http://(localhost|[0-9]+(\.[0-9]+){3}|\[[0-9a-f:]+\])(:[0-9]+)?/?)$"

# Fields of the Kubernetes API that contain any names, unlike the fields of an object.
_MAPS = frozenset({"requests", "limits"})

# CEL expressions for what containers.yaml calls ${name}.
_VALUES = {
    "hostname": "variables.hostname",
    "tailscale_args": "variables.args",
    "state_secret": "variables.stateSecret",
    "lifecycle_image": "variables.lifecycleImage",
    "tailscale_image": "variables.tailscaleImage",
}
_LISTS = {
    "settings": "variables.settings.map(s, {type}{{name: s[0], value: s[1]}})",
    "node_name": "((variables.hostname + variables.stateSecret).contains('$(NODE_NAME)') ? [{node}] : [])",
    "cleanup_token": "(variables.needsServiceAccountToken || variables.stateSecret != '' ? [{token}] : [])",
    "dns_watch_token": "(variables.needsServiceAccountToken ? [{token}] : [])",
}

_TEMPLATE = (
    "object.kind == 'Pod' ? dyn(object) : object.kind == 'CronJob' ? dyn(object.spec.jobTemplate.spec.template) : "
    "dyn(object.spec.template)"
)


def mutating_policy(images: dict[str, str]) -> Iterator[Document]:
    """Yield the policy that adds the containers, and its binding.

    Args:
        images: the default of each image, by its placeholder.
    """
    yield {
        "apiVersion": API,
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": DOMAIN},
        "spec": {
            "failurePolicy": "Fail",
            "reinvocationPolicy": "IfNeeded",
            "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
            "matchConstraints": {
                "resourceRules": [_rule("", ["pods"], ["CREATE"])],
                "objectSelector": {"matchLabels": {LABEL: "true"}},
            },
            # The validating policy refuses the other pods, with a reason.
            "matchConditions": [
                {"name": "has-hostname", "expression": f"{_q(HOSTNAME)} in object.metadata.?annotations.orValue({{}})"},
                {
                    "name": "has-none-of-our-containers",
                    "expression": f"!({_names('object.spec')}.exists(n, n in {_q(CONTAINERS)}))",
                },
                {
                    "name": "has-none-of-our-volumes",
                    "expression": f"!object.spec.?volumes.orValue([]).exists(v, v.name in {_q(VOLUMES)})",
                },
            ],
            "variables": _list(_variables("object", images)),
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": _patch()}}],
        },
    }
    yield _binding("MutatingAdmissionPolicyBinding")


def validating_policy() -> Iterator[Document]:
    """Yield the policy that refuses what cannot be added, and its binding."""
    known = sorted({*site_variables(), *OWN_SETTINGS})
    yield {
        "apiVersion": API,
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": DOMAIN},
        "spec": {
            "failurePolicy": "Fail",
            "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
            "matchConstraints": {
                "resourceRules": [
                    _rule("", ["pods"], ["CREATE"]),
                    _rule("apps", ["deployments", "statefulsets", "daemonsets"], ["CREATE", "UPDATE"]),
                    _rule("batch", ["jobs", "cronjobs"], ["CREATE", "UPDATE"]),
                ]
            },
            "matchConditions": [
                {
                    "name": "has-our-label-or-annotation",
                    "expression": f"[{_TEMPLATE}, dyn(object)].exists(t, t.?metadata.?labels.orValue({{}}).exists(k, "
                    f"k.startsWith('{DOMAIN}/')) || t.?metadata.?annotations.orValue({{}}).exists(k, "
                    f"k.startsWith('{DOMAIN}/')))",
                },
                # An object that became invalid can still be deleted, annotated and scaled down.
                {"name": "is-not-deleted", "expression": "!has(object.metadata.deletionTimestamp)"},
                {
                    "name": "is-new-or-changed",
                    "expression": "request.operation == 'CREATE' || object.spec != oldObject.spec",
                },
            ],
            "variables": _list(
                {
                    "template": _TEMPLATE,
                    "pod": "variables.template.spec",
                    "labels": "variables.template.?metadata.?labels.orValue({})",
                    "wanted": f"variables.labels[?{_q(LABEL)}].orValue('') == 'true'",
                    **_shared("variables.template"),
                    "names": _names("variables.pod"),
                    "known": _q((*ANNOTATIONS, LABEL)),
                    "unknownLabels": _unknown("variables.labels", (LABEL,)),
                    "unknownAnnotations": _unknown("variables.annotations", ANNOTATIONS),
                    "unknownSettings": f"variables.site.map(k, k).filter(k, !(k in {_q(known)}))",
                    "ourVolumes": f"variables.pod.?volumes.orValue([]).map(v, v.name).filter(n, n in {_q(VOLUMES)})",
                    "taken": f"{_q(CONTAINERS)}.filter(n, n in variables.names)",
                    "withReservedPort": (
                        "(variables.pod.?initContainers.orValue([]) + variables.pod.?containers.orValue([]))"
                        f".filter(c, !(c.name in {_q(CONTAINERS)}) && "
                        f"c.?ports.orValue([]).exists(p, p.containerPort in {list(PORTS)}))"
                    ),
                    "injected": (
                        f"{_q(KEY_VOLUME)} in variables.ourVolumes && {_q(CONTAINERS)}.all(n, n in variables.names)"
                    ),
                    "pods": _COUNT,
                }
            ),
            "validations": list(_validations()),
        },
    }
    yield _binding("ValidatingAdmissionPolicyBinding")


_COUNT = (
    "object.kind == 'Job' ? dyn(object.spec).?parallelism.orValue(1) : "
    "object.kind == 'CronJob' ? dyn(object.spec.jobTemplate.spec).?parallelism.orValue(1) : "
    "object.kind in ['Deployment', 'StatefulSet'] ? dyn(object.spec).?replicas.orValue(1) : 1"
)


def _shared(template_of: str) -> dict[str, str]:
    short = f"variables.annotations[?{_q(HOSTNAME)}].orValue('')"
    return {
        "annotations": f"{template_of}.?metadata.?annotations.orValue({{}})",
        "site": "params.?data.orValue({})",
        "domain": "variables.site[?'DOMAIN_NAME'].orValue('')",
        "hostname": f"{short} + ({short}.contains('.') ? '' : '.' + variables.domain)",
        "stateSecret": f"variables.annotations[?{_q(STATE_SECRET)}].orValue('')",
    }


def _variables(pod: str, images: dict[str, str]) -> dict[str, str]:
    # Without optional entries ({?name: value}): with them, the API server of 1.36 panics when it checks the policy.
    defaults = {name: _q(value) for name, value in DEFAULTS.items()}
    defaults["HEADSCALE_API_KEY_FILE"] = (
        f"variables.headscaleThroughKubernetes ? '' : {defaults['HEADSCALE_API_KEY_FILE']}"
    )
    own = {name: f"variables.annotations[?{_q(annotation)}].orValue('')" for name, annotation in SETTINGS.items()}
    own |= {"TS_HOSTNAME": "variables.hostname", "TS_KUBE_SECRET": "variables.stateSecret"}
    own["NODE_POLICY"] = "variables.stateSecret != '' ? 'keep' : ''"
    args = f"variables.annotations[?{_q(TAILSCALE_ARGS)}].orValue('')"
    server = _setting("LOGIN_SERVER")
    return {
        **_shared(pod),
        "headscaleThroughKubernetes": (
            f"{_setting('HEADSCALE_API_KEY_SECRET')} != '' || {_setting('HEADSCALE_ACCESS')} == 'exec'"
        ),
        "needsServiceAccountToken": (
            f"variables.headscaleThroughKubernetes || !({_setting('KUBERNETES_EVENTS')}.lowerAscii() in ['', 'false'])"
        ),
        "loginServer": f"{server}.endsWith('/') ? {server}.substring(0, {server}.size() - 1) : {server}",
        "args": f"('--login-server=' + variables.loginServer + ' ' + {args}).trim()",
        "lifecycleImage": _setting("LIFECYCLE_IMAGE", images["lifecycle_image"]),
        "tailscaleImage": _setting("TAILSCALE_IMAGE", images["tailscale_image"]),
        "defaults": _map(defaults),
        "fromAnnotations": _map(own),
        # An empty value counts as unset.
        "settings": (
            f"[\n{_lines(map(_q, sorted({*site_variables(), *defaults, *own})))}\n]\n"
            ".map(n, [n, variables.fromAnnotations[?n].orValue('') != '' ? variables.fromAnnotations[n] : "
            "variables.site[?n].orValue('') != '' ? variables.site[?n].orValue('') : "
            "variables.defaults[?n].orValue('')])\n"
            ".filter(s, s[1] != '')"
        ),
        "ownInitContainersFirst": f"variables.annotations[?{_q(INIT_CONTAINERS)}].orValue('') == 'before'",
    }


def _setting(name: str, default: str = "") -> str:
    """Return an expression for a setting of all workloads. An empty value counts as unset."""
    value = f"variables.site[?{_q(name)}].orValue('')"
    return f"({value} != '' ? {value} : {_q(default)})" if default else value


def _map(entries: dict[str, str]) -> str:
    return f"{{\n{_lines(f'{_q(name)}: {value}' for name, value in entries.items())}\n}}"


def _lines(items: Iterable[str]) -> str:
    return ",\n".join(f"  {item}" for item in items)


def _patch() -> str:
    """Return the expression of the JSON patch: the containers first, or behind the pod's own init containers."""
    steps = [
        _add(
            _object(part, "Object.spec.initContainers"),
            f"variables.ownInitContainersFirst ? {_q(_INIT + '-')} : {_q(_INIT + str(place))}",
        )
        for place, part in enumerate(added_containers())
    ]
    steps += [_add(_object(part, "Object.spec.volumes"), "'/spec/volumes/-'") for part in added_volumes()]
    return " +\n".join([_ensure("initContainers"), _ensure("volumes"), f"[\n{', '.join(steps)}\n]"])


_INIT = "/spec/initContainers/"


def _add(value: str, path: str) -> str:
    return f"JSONPatch{{\n  op: 'add',\n  path: {path},\n  value: {value}\n}}"


def _ensure(name: str) -> str:
    return f"(has(object.spec.{name}) ? [] : [JSONPatch{{op: 'add', path: '/spec/{name}', value: []}}])"


def _object(part: Any, path: str, indent: str = "  ") -> str:
    """Return a value as an expression with the types of the API, over several lines."""
    match part:
        case dict():
            inner = f"{indent}  "
            fields = [f"{inner}{name}: {_field(name, value, f'{path}.{name}', inner)}" for name, value in part.items()]
            return f"{path}{{\n" + ",\n".join(fields) + f"\n{indent}}}"
        case bool():
            return str(part).lower()
        case int():
            return str(part)
        case _:
            return _VALUES.get(placeholder(part) or "", _q(part))


def _field(name: str, value: Any, path: str, indent: str) -> str:
    if name in _MAPS:
        return f"{{{', '.join(f'{_q(key)}: {_q(quantity)}' for key, quantity in value.items())}}}"
    if not isinstance(value, list):
        return _object(value, path, indent)
    token, node = (_object(template()[part], path, indent) for part in ("token-mount", "node-name"))
    # The order matters: a variable can refer only to those before it.
    lists = []
    for is_list, items in groupby(value, key=lambda item: placeholder(item) in _LISTS):
        if is_list:
            lists += [_LISTS[placeholder(item) or ""].format(token=token, node=node, type=path) for item in items]
        else:
            lists.append(f"[{', '.join(_object(item, path, indent) for item in items)}]")
    return " + ".join(lists)


def _names(spec: str) -> str:
    return f"({spec}.?initContainers.orValue([]) + {spec}.?containers.orValue([])).map(c, c.name)"


def _unknown(names: str, known: tuple[str, ...]) -> str:
    return f"{names}.map(k, k).filter(k, k.startsWith('{DOMAIN}/') && !(k in {_q(known)}))"


def _rule(group: str, resources: list[str], operations: list[str]) -> Document:
    return {"apiGroups": [group], "apiVersions": ["v1"], "operations": operations, "resources": resources}


def _binding(kind: str) -> Document:
    actions = {"validationActions": ["Deny"]} if kind.startswith("Validating") else {}
    return {
        "apiVersion": API,
        "kind": kind,
        "metadata": {"name": DOMAIN},
        "spec": {
            "policyName": DOMAIN,
            **actions,
            "matchResources": {"namespaceSelector": {"matchLabels": {LABEL: "enabled"}}},
            # Without the ConfigMap, the mutating policy refuses labelled pods. The validating policy has no selector
            # and would refuse every pod of the namespace.
            "paramRef": {
                "name": DOMAIN,
                "namespace": NAMESPACE,
                "parameterNotFoundAction": "Allow" if kind.startswith("Validating") else "Deny",
            },
        },
    }


def _list(expressions: dict[str, str]) -> list[Document]:
    return [{"name": name, "expression": expression} for name, expression in expressions.items()]


def _q(value: Any) -> str:
    """Return a text or list of texts as a CEL literal."""
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return f"[{', '.join(map(_q, value))}]"


# --- Validation ---------------------------------------------------------------------------------------


def _validations() -> Iterator[Document]:
    wanted = "!variables.wanted || "
    annotations = "variables.annotations"
    label = f"variables.labels[?{_q(LABEL)}].orValue('false')"
    yield _validation(f"{label} in ['true', 'false']", "label", value=label)
    for place, variable in (("label", "variables.unknownLabels"), ("annotation", "variables.unknownAnnotations")):
        near = f"variables.known.filter(n, {_plain('n')} == {_plain(variable + '[0]')} && n != {variable}[0])"
        hint = f"{near}.map(n, ' (near ' + n + ')').join('')"
        yield _validation(f"{variable}.size() == 0", "unknown", value=f"'The {place} ' + {variable}[0] + {hint}")
    at_object = f"{_q(LABEL)} in object.metadata.?labels.orValue({{}})"
    yield _validation(f"object.kind == 'Pod' || !({at_object}) || {_q(LABEL)} in variables.labels", "label-place")
    yield from _site_validations()
    yield _validation(f"{wanted}{_q(HOSTNAME)} in {annotations}", "hostname-missing", domain="variables.domain")
    for name, pattern in PATTERNS.items():
        value = f"{annotations}[{_q(name)}]"
        yield _validation(
            f"{wanted}!({_q(name)} in {annotations}) || {value}.matches({_regex(f'^({pattern})$')})",
            "value",
            name=_q(name),
            value=value,
            example=_q(EXAMPLES[name]),
        )
    short = f"{annotations}[{_q(HOSTNAME)}]"
    yield _validation(
        f"{wanted}!{short}.contains('.') || {short} == variables.domain || {short}.endsWith('.' + variables.domain)",
        "hostname-domain",
        value=short,
        domain="variables.domain",
    )
    references = "".join(f".replace({_q(f'$({name})')}, '')" for name in REFERENCES)
    yield _validation(
        f"{wanted}variables.hostname{references}.size() <= {HOSTNAME_LENGTH}",
        "hostname-length",
        value="variables.hostname",
    )
    args = f"{annotations}[?{_q(TAILSCALE_ARGS)}].orValue('')"
    yield _validation(f"{wanted}!{args}.matches({_regex(RESERVED_ARGS)})", "args", value=args)
    yield from _pod_validations(wanted)


def _pod_validations(wanted: str) -> Iterator[Document]:
    yield _validation(f"{wanted}!variables.pod.?hostNetwork.orValue(false)", "host-network")
    yield _validation(
        f"{wanted}variables.injected || variables.ourVolumes.size() == 0",
        "partial",
        value="(variables.ourVolumes + variables.taken).join(', ')",
    )
    yield _validation(
        f"{wanted}variables.injected || variables.taken.size() == 0", "container", value="variables.taken[0]"
    )
    port = "variables.withReservedPort"
    yield _validation(
        f"{wanted}{port}.size() == 0",
        "port",
        name=f"{port}[0].name",
        value=f"string({port}[0].ports.filter(p, p.containerPort in {list(PORTS)})[0].containerPort)",
    )
    short, secret = f"variables.annotations[{_q(HOSTNAME)}]", "variables.stateSecret"
    by_node = [f"{text}.contains('$(NODE_NAME)')" for text in (short, secret)]
    by_pod = [f"{text}.contains('$(POD_NAME)')" for text in (short, secret)]
    yield _validation(
        f"{wanted}object.kind != 'DaemonSet' || ({by_node[0]} && ({secret} == '' || {by_node[1]}))", "daemon-set"
    )
    yield _validation(f"{wanted}object.kind in ['Pod', 'StatefulSet', 'DaemonSet'] || !{by_pod[0]}", "pod-name")
    count = "string(variables.pods)"
    yield _validation(f"{wanted}variables.pods < 2 || {by_pod[0]}", "replicas", value=count)
    yield _validation(f"{wanted}variables.pods < 2 || {secret} == '' || {by_pod[1]}", "state-shared", value=count)
    yield _validation(f"{wanted}object.kind != 'Pod' || variables.injected", "missing")


def _site_validations() -> Iterator[Document]:
    place = f"the ConfigMap {DOMAIN} in the namespace {NAMESPACE}"
    wanted = "!variables.wanted || "
    unknown = "variables.unknownSettings"
    yield _message(
        f"{wanted}{unknown}.size() == 0",
        f"'In {place}, ' + {unknown}[0] + ' is not a setting for all workloads. Correct or remove it.'",
    )
    yield _message(
        f"{wanted}variables.domain.matches({_regex(DOMAIN_PATTERN)})",
        f"'DOMAIN_NAME in {place} must be the domain of the workloads. Set it.'",
    )
    server = "variables.site[?'LOGIN_SERVER'].orValue('')"
    yield _message(
        f"{wanted}{server}.matches({_regex(LOGIN_SERVER_PATTERN)})",
        f"'LOGIN_SERVER in {place} must be an https URL of Headscale. With http and a host name, tailscale stays "
        "offline after Headscale restarts.'",
    )


def _validation(expression: str, refusal: str, **values: str) -> Document:
    """Return a validation with the message of a refusal.

    Args:
        expression: true if the object is valid.
        refusal: key of REFUSALS.
        values: an expression for each name in the message.
    """
    parts = re.split(r"\{(\w+)\}", REFUSALS[refusal])
    pieces = [_shown(values[part]) if index % 2 else _q(part) for index, part in enumerate(parts) if part]
    # Adjacent literals are one.
    return _message(expression, " + ".join(pieces).replace("' + '", ""))


def _shown(text: str) -> str:
    """Return an expression for a text in a message, which must be one line and not too long."""
    if text.startswith("'") or text == "variables.domain":
        return text
    line = f"({text}).replace('\\n', ' ').replace('\\r', ' ')"
    return f"[{line}].map(t, t.size() > 100 ? t.substring(0, 100) + '...' : t)[0]"


def _message(expression: str, text: str) -> Document:
    return {"expression": expression, "messageExpression": text}


def _plain(text: str) -> str:
    """Return an expression for a name without what is often mistyped."""
    return f"{text}.lowerAscii().replace('-', '').replace('_', '')"


def _regex(pattern: str) -> str:
    return f"r'{pattern}'"
