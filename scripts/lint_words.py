"""Warns about long files and fails on banned words: words for which the field has better ones (CONTRIBUTING, "Words").

Reads the docstrings, comments and texts of the package, of the page, of the scripts and of the documents.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Pattern and what to write. Each is matched as whole words, whatever the case.
BANNED = {
    r"Law:": "Invariants: (only what code or a test holds)",
    r"anew": "again",
    r"of late": "recently, or the window of time",
    r"heed(s|ed|ing)?": "follow, apply",
    r"vouch(es|ed|ing)?( for)?": "claim, verify",
    r"whoever|whomever|whatsoever": "the subject: the caller, the peer",
    r"nobody|somebody|anybody|everybody": "the subject: no peer, a caller",
    r"lend(s|ing)?|lent|lender": "worker, worker share, lease",
    r"guess(es|ed|ing)? ahead": "speculative decoding",
    r"(is|are) to be": "must be, will be",
    r"mend(s|ed|ing)?": "fix, repair, maintain",
    r"shelf|shelves": "index",
    r"knock(s|ed|ing)?": "connect, pending connection",
    r"hereof|thereof|thereby|therein": "a plain clause",
}
WHERE = ("meshllm", "console/src", "docs", "scripts", "README.md", "CONTRIBUTING.md", "SECURITY.md", "ROADMAP.md")
ENDINGS = {".py", ".ts", ".tsx", ".md", ".sh", ".toml", ".html", ""}
GENERATED = {"docs/map.md"}
LONG_FILE = 600


def files() -> list[Path]:
    """The tracked files that are read."""
    names = subprocess.run(
        ["git", "ls-files", *WHERE], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    skipped = {*GENERATED, str(Path(__file__).resolve().relative_to(ROOT))}
    return [ROOT / n for n in names if n not in skipped and Path(n).suffix in ENDINGS and (ROOT / n).is_file()]


def main() -> int:
    found = 0
    for path in files():
        where = path.relative_to(ROOT)
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".py" and (lines := text.count("\n")) > LONG_FILE:
            print(f"{where}: {lines} lines: does it hold more than one thing?", file=sys.stderr)
        for number, line in enumerate(text.splitlines(), 1):
            for pattern, better in BANNED.items():
                for match in re.finditer(rf"(?<![\w-])(?:{pattern})(?![\w-])", line, re.IGNORECASE):
                    found += 1
                    print(f"{where}:{number}: {match.group()!r}: write {better}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
