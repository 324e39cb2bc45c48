"""python run.py method=duolora: personalise, merge, generate, score and report; see README.md."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))
# So that processes of launchers, wherever they start, import this very code.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

from lorabench.tasks.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
