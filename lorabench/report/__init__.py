"""Stage 5: from a run folder to what people look at; all of it can be redrawn from the folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write_report(run_folder: Path | str) -> None:
    """Write table.md, .csv, .tex, grid.png and report.html into a finished run folder (report/folder.py).

    The table's columns are those of the protocol in the run's config, its differences those to the config's reference.
    """
    write_joint_report([run_folder], run_folder)


def write_joint_report(
    run_folders: Sequence[Path | str], out: Path | str, protocol: str | None = None, reference: str | None = None
) -> None:
    """The same five files for several runs together, into the folder `out`.

    protocol: by its name in conf/protocol; None is what the runs were made with, or all metrics where they differ.
    reference: the label of the row that differences are to; None is what the runs' configs say, where it is there.
    """
    from lorabench.report import figures, page, protocols
    from lorabench.report.folder import RunFolder, common_protocol
    from lorabench.report.table import Table
    from lorabench.report.tex import write_latex
    from lorabench.report.text import write_csv, write_markdown

    runs = [run for folder in run_folders for run in RunFolder.load_all(folder)]
    table = Table.of(runs, protocols.load(protocol) if protocol else common_protocol(runs), reference)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for ending, write in (("md", write_markdown), ("csv", write_csv), ("tex", write_latex)):
        (out / f"table.{ending}").write_text(write(table), encoding="utf-8")
    figures.draw_grid(runs).save(out / "grid.png", optimize=True)
    (out / "report.html").write_text(page.render(runs, table, out), encoding="utf-8")
