"""Test how the dialect of a server is detected: which requests the Headscale release understands."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.clients.headscale.dialect import (
    OLDEST_MINOR,
    Dialect,
    dialect_of_description,
    dialect_of_help,
    dialect_of_version,
)
from lifecycle.domain.errors import ResponseError
from tests.clients.json_values import JSON


class TestVersion:
    """A version as the API or the `headscale` command reports it."""

    @pytest.mark.parametrize(
        ("text", "minor"),
        [
            ("v0.23.0", 23),
            ("0.23.0", 23),
            ("v0.25.1", 25),
            ("v0.26.1", 26),
            ("v0.27.1", 27),
            ("v0.28.0", 28),
            ("v0.29.2", 29),
            ("v0.30.0", 30),
            ("v0.30.0-beta.2", 30),
            ("0.28.0+dirty", 28),
            ("v0.26.0-alpha.1-3-gabcdef", 26),
            ("v0.100.12", 100),
        ],
    )
    def test_dialect_of_a_supported_version(self, text: str, minor: int) -> None:
        dialect = dialect_of_version(text)

        assert dialect == Dialect.of_minor(minor, text.removeprefix("v"))
        assert dialect is not None
        assert dialect.uses_user_ids is (minor >= 26)
        assert dialect.uses_key_ids is (minor >= 28)

    @pytest.mark.parametrize(
        "text",
        [
            "dev",
            "",
            "v0.0.0-20260701120000-abcdef123456",
            "v1.0.0",
            "0.28",
            "v0.28.0.1",
            "vv0.28.0",
            "v0.28.x",
            " v0.28.0",
            "v0.28.0\n",
            "v0.28.0 (abc)",
            "v0.\N{ARABIC-INDIC DIGIT TWO}\N{ARABIC-INDIC DIGIT EIGHT}.0",
            "v0." + "9" * 5000 + ".0",
            None,
            28,
            0.28,
            True,
            ["v0.28.0"],
            {"version": "v0.28.0"},
        ],
    )
    def test_unknown_version_has_no_dialect(self, text: object) -> None:
        """The program then detects the dialect from the description of the API."""
        assert dialect_of_version(text) is None

    @pytest.mark.parametrize("text", ["v0.22.3", "0.22.0-alpha", "v0.1.0"])
    def test_old_version_is_refused(self, text: str) -> None:
        with pytest.raises(ResponseError, match=f"0.{OLDEST_MINOR}"):
            dialect_of_version(text)

    @given(st.one_of(JSON, st.text()))
    def test_arbitrary_value_has_no_dialect(self, value: Any) -> None:
        assert dialect_of_version(value) is None


class TestDescription:
    """Detection for a server that does not report its version.

    It uses the OpenAPI description of the API, or the help text of the `headscale` command.
    """

    def test_old_api_is_refused(self) -> None:
        document: dict[str, Any] = {"paths": {"/api/v1/machine": {}, "/api/v1/node": {}}, "definitions": {}}

        with pytest.raises(ResponseError, match=r"0\.22"):
            dialect_of_description(document)

    @pytest.mark.parametrize(
        "document",
        [
            {},
            {"paths": {}},
            {"paths": {}, "definitions": {}},
            {"paths": {"/pets": {}}, "definitions": {"Pet": {}}},
            {"paths": [], "definitions": {"a": 1}},
            {"paths": {"/api/v1/preauthkey": None}, "definitions": {}},
            {"paths": {"/api/v1/preauthkey": "deleted"}, "definitions": {}},
            {"paths": {"/api/v1/preauthkey": {"delete": None}}, "definitions": {}},
            {"paths": {}, "definitions": {"v1CreatePreAuthKeyRequest": {"properties": {"user": "uint64"}}}},
            {"openapi": "3.1.0", "paths": {"/pets": {}}},
            {"openapi": 3, "paths": {"/api/v1/node": {}}},
            {"paths": {"/api/v1/node": {}}},
            None,
            "swagger",
            [],
        ],
    )
    def test_document_of_another_form_has_no_dialect(self, document: object) -> None:
        assert dialect_of_description(document) is None

    @given(JSON)
    def test_arbitrary_document_has_no_dialect(self, value: Any) -> None:
        assert dialect_of_description(value) is None
        assert dialect_of_description({"paths": value, "definitions": value}) is None
        paths = {"/api/v1/preauthkey": value}
        detected = dialect_of_description({"paths": paths, "definitions": {"v1CreatePreAuthKeyRequest": value}})
        assert detected is None or isinstance(value, dict)

    @pytest.mark.parametrize(
        ("text", "version"),
        [
            ("Usage:\n  headscale preauthkeys list [flags]\n  -u, --user string   User", "0.23 to 0.25"),
            ("Usage:\n  headscale preauthkeys list [flags]\n  -u, --user uint   User id", "0.26 or 0.27"),
            ("Usage:\n  headscale preauthkeys list [flags]\n  -h, --help", "0.28 or newer"),
            ("Usage:\n  headscale nodes list [flags]\n  -u, --user string", None),
            ("", None),
        ],
    )
    def test_release_of_the_command_line_is_detected_by_its_help(self, text: str, version: str | None) -> None:
        detected = dialect_of_help(text)

        assert (detected.version if detected else None) == version
