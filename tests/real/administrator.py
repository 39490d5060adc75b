"""Change a running Headscale as an administrator does: API keys, users, nodes, the database and the policy."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.real.server import HeadscaleServer


class Administrator:
    """An administrator, who uses the API key and the command line of the server."""

    def __init__(self, server: HeadscaleServer) -> None:
        self._server = server

    # --- API keys -----------------------------------------------------------------------------------

    def create_api_key(self, lifetime: timedelta = timedelta(days=90)) -> str:
        """Create an API key."""
        expires_at = (datetime.now(UTC) + lifetime).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        key: str = self._post("/apikey", {"expiration": expires_at})["apiKey"]
        return key

    def expire_api_key(self, key: str) -> None:
        """Expire an API key now."""
        self._post("/apikey/expire", {"prefix": self._prefix(key)})

    def delete_api_key(self, key: str) -> None:
        """Delete an API key."""
        self._server.request("DELETE", f"/api/v1/apikey/{self._prefix(key)}").raise_for_status()

    @staticmethod
    def _prefix(key: str) -> str:
        # A key is `hskey-api-<prefix>-<secret>`, or `<prefix>.<secret>` in older releases. The prefix is cut by its
        # length, because the prefix and the secret may contain hyphens.
        return key.removeprefix("hskey-api-")[:12] if key.startswith("hskey-api-") else key.partition(".")[0]

    # --- Users --------------------------------------------------------------------------------------

    def rename_user(self, name: str, new_name: str) -> None:
        """Rename a user."""
        # The path has the name of the user in Headscale 0.23, and the id in newer releases.
        user = self._server.user_id(name) if self._server.release.minor >= 24 else name
        self._post(f"/user/{user}/rename/{new_name}")

    # --- Nodes --------------------------------------------------------------------------------------

    def rename_node(self, node_id: str, name: str) -> None:
        """Change a node's name in Headscale. The hostname of the node stays the same."""
        self._post(f"/node/{node_id}/rename/{name}")

    def tag_node(self, node_id: str, *tags: str) -> None:
        """Replace the tags of a node."""
        self._post(f"/node/{node_id}/tags", {"tags": list(tags)})

    def move_node(self, node_id: str, user: str) -> None:
        """Move a node to another user. Headscale 0.28 and newer cannot do this."""
        self._server.cli("nodes", "move", "--identifier", node_id, "--user", self._server.cli_user(user))

    # --- The database -------------------------------------------------------------------------------

    def copy_database(self, folder: Path) -> None:
        """Copy the SQLite database while the server is stopped, as a backup does."""
        self._server.stop()
        folder.mkdir()
        for file in self._database_files():
            shutil.copy2(file, folder)
        self._server.start()

    def restore_database(self, folder: Path) -> None:
        """Replace the SQLite database with a copy."""
        self._server.stop()
        for file in self._database_files():
            file.unlink()
        for file in folder.iterdir():
            shutil.copy2(file, self._server.folder)
        self._server.start()

    def _database_files(self) -> list[Path]:
        # SQLite keeps a write-ahead log in files beside the database.
        return list(self._server.folder.glob("db.sqlite*"))

    # --- The policy ---------------------------------------------------------------------------------

    def set_policy(self, policy: str) -> None:
        """Replace the access policy, which Headscale stores in its database."""
        self._server.request("PUT", "/api/v1/policy", body={"policy": policy}).raise_for_status()

    def _post(self, path: str, body: Any = None) -> Any:
        response = self._server.request("POST", f"/api/v1{path}", body=body)
        assert response.is_success, f"{path} {response.status_code} {response.text}"
        return response.json()
