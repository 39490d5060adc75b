"""Read the project's Markdown pages: sections, tables, code blocks, links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent

PAGES = sorted(
    [*ROOT.glob("*.md"), *(page for folder in ("charts", "deploy", "docs") for page in ROOT.glob(f"{folder}/**/*.md"))]
)

Row = dict[str, str]

_BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    """The page's path inside the repository."""
    return str(page.relative_to(ROOT))


def section(text: str, heading: str) -> str:
    """The text below a heading, up to the next heading of the same or a higher level."""
    level = len(heading.partition(" ")[0])
    found = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{level}}} |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    assert found, f"no section {heading!r}"
    return found[1]


def rows(text: str) -> list[Row]:
    """Every table row in a text, keyed by column name."""
    found: list[Row] = []
    header: list[str] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            header = []
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        if not header:
            header = cells
        elif set(line) - set("|-: "):
            found.append(dict(zip(header, cells, strict=True)))
    return found


def quoted(cell: str) -> list[str]:
    """The code spans in a table cell."""
    return re.findall(r"`([^`]+)`", cell)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced code block."""

    language: str
    text: str


def blocks(text: str, language: str | None = None) -> list[Block]:
    """The fenced code blocks of a text, all or those in one language."""
    found = [Block(match["language"], match["text"]) for match in _BLOCK.finditer(text)]
    return [block for block in found if language is None or block.language == language]


def prose(text: str) -> str:
    """The text without its code blocks."""
    return _BLOCK.sub("", text)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings."""
    headings = re.findall(r"^#+ (.+)$", prose(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def links(text: str) -> Iterator[tuple[str, str]]:
    """Path and anchor of every relative link; either may be empty."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield path, anchor
