"""Run the benchmark or another task: python run.py method=duolora. See README.md."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))
# So that child processes of launchers import this code, whatever their working folder.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

from lorabench.tasks.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
