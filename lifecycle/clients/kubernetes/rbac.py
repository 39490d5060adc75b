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

    def advice(self, refusal: str) -> str:
        """Return the sentence that asks for the rule, as one line of a Role's YAML.

        Args:
            refusal: Kubernetes' message, which names the account.
        """
        names = f" resourceNames: [{', '.join(self.names)}]," if self.names else ""
        rule = f'- {{apiGroups: [""], resources: [{self.resource}],{names} verbs: [{", ".join(self.verbs)}]}}'
        user = _USER.search(refusal)
        account = user[1] if user else "this account"
        return f"Give {account} a Role in namespace {self.namespace} with this rule: {rule}"
