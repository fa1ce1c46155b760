"""SECURITY.md names the tests of attacks: each exists, and each whole-daemon attack is named."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMED = set(re.findall(r"`(tests/[a-z0-9_/]+\.py)`", (ROOT / "SECURITY.md").read_text()))


def test_named_tests_exist() -> None:
    assert NAMED
    assert [name for name in sorted(NAMED) if not (ROOT / name).is_file()] == []


def test_attacks_on_whole_daemons_are_named() -> None:
    attacks = {f"tests/attacks/{path.name}" for path in (ROOT / "tests/attacks").glob("test_*.py")}
    assert sorted(attacks - NAMED) == ["tests/attacks/test_full_disk.py"]
