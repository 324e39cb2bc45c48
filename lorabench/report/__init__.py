"""Stage 5: tables, figures and the HTML page, made from run folders only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

PAGE = "report.html"
FILES = (
    "table.md", "table.csv", "table.tex", "comparisons.csv", "grid.png", PAGE, "cross_influence.md",
    "cross_influence.csv", "semantic_extension.md", "semantic_extension.csv", "routing.md", "routing.csv",
)  # fmt: skip
OTHER_REPORT = "--out <a folder without files of these names>"


def write_report(run_folder: Path | str) -> None:
    """Write table.md, table.csv, table.tex, comparisons.csv, grid.png and report.html into a finished run folder.

    The run's config selects the protocol (the columns) and the reference row (for differences).

    Args:
        run_folder: Folder with the layout described in report/folder.py.
    """
    write_joint_report([run_folder], run_folder)


def write_joint_report(
    run_folders: Sequence[Path | str],
    out: Path | str,
    protocol: str | None = None,
    reference: str | None = None,
    unfinished: Sequence[Path] = (),
) -> None:
    """Write one report on several runs.

    Args:
        run_folders: Finished run folders.
        out: Folder for table.md, table.csv, table.tex, comparisons.csv, grid.png and report.html; created if missing.
            cross_influence.*, semantic_extension.* and routing.* are added if there are images of their uses.
        protocol: Name of a file in conf/protocol. None: the protocol of the runs, or all metrics if they differ.
        reference: Label of the row that differences refer to. None: the row named in the runs' configs, if present.
        unfinished: Runs that belong to the report but are not finished; they are named below the table.
    """
    from lorabench.engine.output_folder import MANIFEST, OutputFolder
    from lorabench.report import figures, page, protocols
    from lorabench.report.by_use import write_by_use
    from lorabench.report.cross_influence import write_cross_influence
    from lorabench.report.folder import common_protocol
    from lorabench.report.planned import contrasts
    from lorabench.report.pooling import load_runs
    from lorabench.report.table import Table
    from lorabench.report.tex import write_latex
    from lorabench.report.text import write_csv, write_markdown

    runs = load_runs(run_folders)
    table = Table.of(runs, protocols.load_protocol(protocol) if protocol else common_protocol(runs), reference)
    if unfinished:
        table.notes.append(f"Runs without results are left out: {', '.join(path.name for path in unfinished)}.")
    folder = OutputFolder(Path(out), OTHER_REPORT)
    folder.check_free(FILES)  # all of them, before the first is written
    with folder.filled(keep=True) as draft:
        for ending, write in (("md", write_markdown), ("csv", write_csv), ("tex", write_latex)):
            (draft / f"table.{ending}").write_text(write(table), encoding="utf-8")
        table.planned.to_csv(draft / "comparisons.csv", index=False, float_format="%.6g")
        paths = list(dict.fromkeys(run.path for run in runs))
        write_cross_influence(paths, draft, contrasts(table.planned))
        write_by_use(paths, draft)
        figures.draw_grid(runs).save(draft / "grid.png")
        if protocol or reference:  # another report than that of the run in whose folder it may be
            (draft / MANIFEST).write_text(json.dumps({"protocol": protocol, "reference": reference}))
    with folder.filled(keep=True) as draft:  # it links to the others, which are there now
        (draft / PAGE).write_text(page.render(runs, table, folder.path), encoding="utf-8")
