"""Every normative sentence of the specifications of /uploads/ is quoted in the docstring of the test that tests it."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

SENTENCES = Path(__file__).parents[1] / "sentences"
WORDS = re.compile(r"\b(MUST|SHOULD|SHALL|REQUIRED|RECOMMENDED)\b")
SPECIFICATIONS = [("tus-1.0.0.txt", "test_tus", 105), ("resumable-upload-12.txt", "test_resumable", 98)]


def sentences(name: str) -> dict[str, list[str]]:
    """Reason, or where they are tested → sentences."""
    groups: dict[str, list[str]] = {}
    reason = ""
    for line in (SENTENCES / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("== "):
            reason = line[3:]
            groups[reason] = []
        elif line and not line.startswith("# "):
            groups[reason].append(line)
    return groups


def quoted(module: str) -> dict[str, str]:
    """Test → its docstring in one line, without marks of formatting."""
    tests = vars(importlib.import_module(module))
    return {name: " ".join((test.__doc__ or "").replace("`", "").split())
            for name, test in tests.items() if name.startswith("test_")}


@pytest.mark.parametrize(("name", "module", "count"), SPECIFICATIONS)
def test_every_sentence_has_a_test_or_a_reason(name: str, module: str, count: int) -> None:
    groups = sentences(name)
    every = [sentence for group in groups.values() for sentence in group]
    assert len(every) == count
    assert all(WORDS.search(sentence) for sentence in every)
    tested = groups[f"tested in {module}.py"]
    docstrings = quoted(module).values()
    assert [sentence for sentence in tested if not any(sentence in text for text in docstrings)] == []


@pytest.mark.parametrize(("name", "module", "count"), SPECIFICATIONS)
def test_no_test_quotes_what_is_not_in_the_specification(name: str, module: str, count: int) -> None:
    every = [sentence for group in sentences(name).values() for sentence in group]
    for test, text in quoted(module).items():
        if text.startswith("["):
            assert any(sentence in text for sentence in every), test
