"""python -m lorabench.report RUN [RUN ...] [--out DIR] [--protocol NAME]: redraw a run's report, or join a few.

A protocol is a view of the stored scores: other columns cost nothing anew.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lorabench.errors import UserError
from lorabench.report import write_joint_report


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lorabench.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="finished run folder")
    parser.add_argument("--out", type=Path, help="where to write; needed for several runs, default: the run folder")
    parser.add_argument("--protocol", metavar="NAME", help="columns of a publication; default: those of the runs")
    args = parser.parse_args(argv)
    try:
        if len(args.runs) > 1 and args.out is None:
            raise UserError("several run folders need a place for the joint report; add --out DIR")
        out = args.out or args.runs[0]
        if out.exists() and not out.is_dir():
            raise UserError(f"{out} is a file; type --out <a folder>")
        write_joint_report(args.runs, out, args.protocol)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print((out / "table.md").read_text(encoding="utf-8"))
    print(out / "report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
