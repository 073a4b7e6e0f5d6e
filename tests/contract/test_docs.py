"""The texts: links lead somewhere, and the messages that troubleshooting.md explains are messages of the source."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TROUBLE = (ROOT / "docs" / "troubleshooting.md").read_text()
SECTIONS = re.findall(r"^### (`+ ?)(.+?)( ?`+)$", TROUBLE, re.M)


@functools.cache
def source_texts() -> list[str]:
    """Every string of the source, with "…" where a value is put in."""
    found = [(ROOT / "Makefile").read_text()]
    for folder in ("src", "pipeline", "serving", "monitoring"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert "://" not in target, f"{page.name} links to {target}; pages link within the project"
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


@pytest.mark.parametrize("text", [text for _, text, _ in SECTIONS])
def test_an_explained_message_is_one_of_the_source(text: str) -> None:
    if text.startswith("Cancelled: "):
        return  # Prefect's own
    pattern = re.compile(".*".join(re.escape(part) for part in text.split("…")), re.S)
    assert any(pattern.search(found) for found in source_texts()), f"no message of the source has {text!r}"


def test_enough_messages_are_explained() -> None:
    assert len(SECTIONS) >= 15


def test_the_verbs_and_commands_of_the_pages_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    shown = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for page in PAGES:
        text = re.sub(r"(?m)^#.*$", "", page.read_text())  # headings are messages
        code = "\n".join("".join(found) for found in re.findall(r"`([^`\n]+)`|^    (\S.*)$", text, re.M))
        for verb in set(re.findall(r"(?:^| )make ([a-z-]+)", code, re.M)):
            assert re.search(rf"^{verb}:", makefile, re.M), f"{page.name} says `make {verb}`"
        for verb in set(re.findall(r"(?:^| )visionloop ([a-z]+(?:-[a-z]+)*)", code, re.M)):
            assert f" {verb} " in shown, f"{page.name} says `visionloop {verb}`"
