"""Common definitions: the error that users see, seeds derived from names, and paths of shipped files."""

import hashlib
import os
from pathlib import Path

PACKAGE = Path(__file__).parent
__version__ = "0.1.0"

ASSETS = PACKAGE / "assets"
# conf/ and experiments/ are inside the package in a wheel, next to it in a checkout.
CONF_ROOT = PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parent
CONF = CONF_ROOT / "conf"
EXPERIMENTS = CONF_ROOT / "experiments"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorabench"


class UserError(Exception):
    """A mistake of the user. Its message is one line with the mistake and a valid setting.

    The command line prints the message without a traceback and exits with code 2.
    """


def seed_of(*names: object) -> int:
    """Return a 63-bit seed that depends on the names only, and not on the order of work, batch size or processes.

    >>> seed_of("mug_1", "halftone_1", 0) == seed_of("mug_1", "halftone_1", 0)
    True
    >>> seed_of("a", "bc") == seed_of("ab", "c")
    False
    """
    text = "\x1f".join(str(name) for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
