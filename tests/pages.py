"""Read the project's Markdown pages: sections, tables, code blocks and links."""

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


def relative_path(page: Path) -> str:
    """Return a page's path inside the repository."""
    return str(page.relative_to(ROOT))


def section(text: str, heading: str) -> str:
    """Return the text below a heading such as "## Install", up to the next heading of the same or a higher level."""
    level = len(heading.partition(" ")[0])
    match = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{level}}} |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    assert match, f"no section {heading!r}"
    return match[1]


def rows(text: str) -> list[Row]:
    """Return the rows of all tables in a text: each row's cells by column name."""
    table_rows: list[Row] = []
    header: list[str] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            header = []
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        if not header:
            header = cells
        elif set(line) - set("|-: "):
            table_rows.append(dict(zip(header, cells, strict=True)))
    return table_rows


def quoted(cell: str) -> list[str]:
    """Return the texts in backquotes in a table cell."""
    return re.findall(r"`([^`]+)`", cell)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced code block."""

    language: str
    text: str


def blocks(text: str, language: str | None = None) -> list[Block]:
    """Return the fenced code blocks of a text, or only those in one language."""
    all_blocks = [Block(match["language"], match["text"]) for match in _BLOCK.finditer(text)]
    return [block for block in all_blocks if language is None or block.language == language]


def prose(text: str) -> str:
    """Return a text without its code blocks."""
    return _BLOCK.sub("", text)


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub generates for the headings."""
    headings = re.findall(r"^#+ (.+)$", prose(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def links(text: str) -> Iterator[tuple[str, str]]:
    """Yield the path and the anchor of every relative link. One of the two may be empty."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield path, anchor
