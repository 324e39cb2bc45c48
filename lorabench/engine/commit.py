"""The commit of the code that makes a result. Every manifest has it, because versions change more rarely than code."""

from __future__ import annotations

import subprocess
from functools import cache

from lorabench.base import PACKAGE

ROOT = PACKAGE.parent
CODE = ("lorabench", "conf", "experiments", "run.py")  # which results depend on


@cache
def commit() -> str:
    """Return the commit of the checkout that this code is from, with a plus if the code has changes.

    Empty for an installed package and without git. The first call of a process counts: call it before long work,
    during which another commit may be checked out.
    """
    if not (ROOT / ".git").exists():
        return ""
    try:
        changes = git("status", "--porcelain", "--untracked-files=no", "--", *CODE)
        return git("rev-parse", "--short", "HEAD") + ("+" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def git(*words: str) -> str:
    """Return what a git command prints."""
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
