"""Stage 5: from a run folder to what people look at; all of it can be redrawn from the folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write_report(run_folder: Path | str) -> None:
    """Write table.md, table.csv, grid.png and report.html into a finished run folder (report/folder.py).

    The table's columns are those of the protocol in the run's config.
    """
    write_joint_report([run_folder], run_folder)


def write_joint_report(run_folders: Sequence[Path | str], out: Path | str, protocol: str | None = None) -> None:
    """The same four files for several runs together, into the folder `out`.

    protocol: by its name in conf/protocol; None is what the runs were made with, or all metrics where they differ.
    """
    from lorabench import protocols
    from lorabench.report import figures, page
    from lorabench.report.folder import RunFolder, common_protocol
    from lorabench.report.table import Table, write_csv, write_markdown

    runs = [RunFolder.load(folder) for folder in run_folders]
    table = Table.of(runs, protocols.load(protocol) if protocol else common_protocol(runs))
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(write_markdown(table), encoding="utf-8")
    (out / "table.csv").write_text(write_csv(table), encoding="utf-8")
    figures.draw_grid(runs).save(out / "grid.png", optimize=True)
    (out / "report.html").write_text(page.render(runs, table), encoding="utf-8")
