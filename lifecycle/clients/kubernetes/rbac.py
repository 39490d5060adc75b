"""What RBAC has to allow, and the advice for what it does not."""

from __future__ import annotations

import re
from dataclasses import dataclass

# In Kubernetes' message about a missing permission.
_USER = re.compile(r'User "([^"]+)"')


@dataclass(frozen=True, slots=True)
class RbacRule:
    """The rule that one request needs.

    Attributes:
        names: the objects that it is limited to; empty = all.
    """

    namespace: str
    resource: str
    verbs: tuple[str, ...]
    names: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The rule of a Role, as one line of YAML."""
        names = f" resourceNames: [{', '.join(self.names)}]," if self.names else ""
        return f'- {{apiGroups: [""], resources: [{self.resource}],{names} verbs: [{", ".join(self.verbs)}]}}'

    def advice(self, refusal: str) -> str:
        """Return the sentence that asks for the rule.

        Args:
            refusal: Kubernetes' message, which names the account.
        """
        user = _USER.search(refusal)
        account = user[1] if user else "this account"
        return f"Give {account} a Role in namespace {self.namespace} with this rule: {self.text}"


def read_secret(namespace: str, name: str) -> RbacRule:
    """Return the rule for reading one Secret."""
    return RbacRule(namespace, "secrets", ("get",), (name,))


def list_pods(namespace: str) -> RbacRule:
    """Return the rule for listing pods, which cannot be limited to some."""
    return RbacRule(namespace, "pods", ("list",))


def exec_in_pod(namespace: str, pod: str | None) -> RbacRule:
    """Return the rule for running a command in a pod; None = in every pod."""
    # Up to Kubernetes 1.34 a websocket needs only `get`, from 1.35 on `create` too.
    return RbacRule(namespace, "pods/exec", ("create", "get"), (pod,) if pod else ())
