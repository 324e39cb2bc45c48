"""Write a report again, join several runs, or compare them with a publication's tables.

    python -m lorabench.report outputs/adhoc/duolora-none-s0                  # write the report again
    python -m lorabench.report outputs/adhoc outputs/duolora_main             # runs, or folders of runs
    python -m lorabench.report outputs/duolora_main --protocol klora          # columns of a publication
    python -m lorabench.report outputs/duolora_ablation --reference "duolora masks_only"
    python -m lorabench.report outputs/duolora_main --paper duolora           # paper | ours | verdict
    python -m lorabench.report outputs/all_methods --stability                # order of methods, sources of variance

A report is table.md, .csv, .tex, grid.png and report.html. Only statistics are recomputed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lorabench.base import UserError
from lorabench.engine.failures import system_fault
from lorabench.report import write_joint_report
from lorabench.report.folder import run_folders, unfinished_runs
from lorabench.report.pooling import load_runs


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lorabench.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="finished run folder, or a folder of them")
    parser.add_argument(
        "--out", type=Path, help="folder of the report; default: the given folder, or `joint` next to several"
    )
    parser.add_argument("--protocol", metavar="NAME", help="protocol of the columns; default: that of the runs")
    parser.add_argument("--reference", metavar="ROW", help="row for differences; default: the runs' `reference`")
    parser.add_argument("--paper", metavar="NAME", help="only print a publication's tables with our numbers")
    parser.add_argument("--stability", action="store_true", help="only print how stable the order of methods is")
    args = parser.parse_args(argv)
    try:
        folders = run_folders(args.runs)
        if args.paper is not None:
            from lorabench.report.paper_tables import paper_tables

            print(paper_tables(args.paper, load_runs(folders)))
            return 0
        if args.stability:
            from lorabench.report.protocols import ALL, load_protocol
            from lorabench.report.stability import stability

            print(stability(load_runs(folders), load_protocol(args.protocol) if args.protocol else ALL))
            return 0
        out = args.out or place(args.runs)
        if out.exists() and not out.is_dir():
            raise UserError(f"{out} is a file; use --out <folder>")
        unfinished = unfinished_runs(args.runs)
        if unfinished:
            names = ", ".join(path.name for path in unfinished)
            print(f"note: {len(unfinished)} runs without results are left out: {names}", file=sys.stderr)
        write_joint_report(folders, out, args.protocol, args.reference, unfinished)
    except (UserError, OSError) as error:
        line = str(error)
        if not isinstance(error, UserError):
            line = system_fault(error, str(args.out or place(args.runs)), instead="--out <writable folder>")
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2
    print((out / "table.md").read_text(encoding="utf-8"))
    print(out / "report.html")
    return 0


def place(given: Sequence[Path]) -> Path:
    """Return the folder of the report: the only given folder, or `joint` next to several."""
    if len(given) == 1:
        return given[0]
    return Path(os.path.commonpath([folder.resolve().parent for folder in given])) / "joint"


if __name__ == "__main__":
    sys.exit(main())
