"""What publications report, beside what was measured: found, shown once, marked, escaped."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import yaml
from made_run import make_run

from lorabench import protocols
from lorabench.report import write_joint_report, write_report
from lorabench.report.folder import RunFolder
from lorabench.report.published import published

MAIN = {"arxiv": "2504.13206", "table": "main", "dino/content": 0.56, "clip_t": 0.314, "csd/style": 0.48}
OTHER = {"arxiv": "2311.13600", "table": "2", "clip_i/style": 0.42}
UNMATCH = "they do not match this protocol"


def lines(folder: Path) -> list[str]:
    return (folder / "table.md").read_text().splitlines()


def test_reported_rows_stand_under_their_method(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", paper=[MAIN, OTHER])
    write_report(folder)
    text = lines(folder)
    own = next(i for i, line in enumerate(text) if line.startswith("| duolora"))
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text[own : own + 4]]
    assert cells[1] == ["↳ reported: arXiv 2504.13206, table main", "*0.56*", "", "*0.314*", *[""] * 4]
    assert cells[2] == ["↳ reported: arXiv 2311.13600, table 2", "", "*0.42*", *[""] * 5]
    assert cells[3][0] == "oracle"
    assert {len(line) for line in cells} == {len(cells[0])}
    assert UNMATCH in text[-1]

    table = pd.read_csv(folder / "table.csv", index_col="method")
    reported = "↳ duolora reported: arXiv 2504.13206, table main"
    assert list(table.index)[3:5] == ["duolora", reported] and table.index.is_unique
    assert table.loc[reported].dropna().to_dict() == {"dino/content": 0.56, "clip_t": 0.314}
    assert table.loc["duolora", "learned_parameters"] == 12288

    page = (folder / "report.html").read_text()
    assert page.count('class="reported"') == 2 and UNMATCH in page
    row = page[page.index('class="reported"') :].partition("</tr>")[0]
    assert "arXiv 2504.13206, table main" in row and row.count("<td>0.") == 2


def test_seeds_show_a_publication_once_and_ablations_their_own(tmp_path: Path) -> None:
    """An ablation whose yaml says nothing inherits the method's rows, which are not of it."""
    ablated = {**MAIN, "table": "ablation", "ablation": "no_cycle", "clip_t": 0.3}
    runs = [
        make_run(tmp_path / "a", paper=[MAIN, ablated]),
        make_run(tmp_path / "b", paper=[MAIN, ablated], seed=1),
        make_run(tmp_path / "c", ablation="no_cycle", paper=[MAIN, ablated]),
        make_run(tmp_path / "d", ablation="no_layer_prior", paper=[MAIN, ablated]),
    ]
    write_joint_report(runs, tmp_path)
    first = [line.split("|")[1].strip() for line in lines(tmp_path) if line.startswith("|")]
    assert first[5:10] == [
        "duolora", "↳ reported: arXiv 2504.13206, table main",
        "duolora no_cycle", "↳ reported: arXiv 2504.13206, table ablation", "duolora no_layer_prior",
    ]  # fmt: skip


def test_what_an_ablation_reports_names_it() -> None:
    """Otherwise it would not be shown."""
    for file in sorted((Path(__file__).parents[1] / "conf" / "ablation").glob("*.yaml")):
        for entry in (yaml.safe_load(file.read_text()) or {}).get("paper", []):
            assert entry.get("ablation") == file.stem, f"{file.name}: write ablation: {file.stem} into its paper rows"


@pytest.mark.parametrize(
    "config",
    [
        "", "just text", "method: duolora", "method: {paper: null}", "method: {paper: [text, 3]}", "method: [1", "- 1",
        "method: {paper: [{arxiv: 1, dino/content: high, clip_t: true, csd/style: 0.4}]}",
    ],
)  # fmt: skip
def test_configs_that_report_nothing(tmp_path: Path, config: str) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "config.yaml").write_text(config)
    run = RunFolder.load(folder)
    assert published([run], protocols.columns(protocols.ALL, run.scores)[0]) == {}
    write_report(folder)
    assert "↳" not in (folder / "table.md").read_text() + (folder / "table.csv").read_text()


def test_hostile_sources_are_escaped(tmp_path: Path) -> None:
    nasty = {"arxiv": "</th><script>|", "table": "<b>\n| x", "dino/content": 0.5}
    folder = make_run(tmp_path / "run", paper=[nasty])
    write_report(folder)
    row = next(line for line in lines(folder) if "reported" in line)
    assert r"\</th>\<script>\|, table \<b> \| x" in row
    page = (folder / "report.html").read_text()
    assert "<script>|" not in page and "&lt;/th&gt;&lt;script&gt;|" in page


@pytest.mark.parametrize("dataset, backbone, unmatched", [
    ("microworld", "@micro", True), ("dreambooth_styledrop", "@micro", True), ("microworld", "@vits16", True),
    ("dreambooth_styledrop", "@vits16", False),
])  # fmt: skip
def test_the_footnote_says_how_far_the_rows_match(tmp_path: Path, dataset: str, backbone: str, unmatched: bool) -> None:
    folder = make_run(tmp_path / "run", paper=[MAIN], images=1)
    scores = pd.read_parquet(folder / "scores.parquet")
    scores["backbone"] = scores["backbone"].str.replace("@micro", backbone)
    scores.assign(dataset=dataset).to_parquet(folder / "scores.parquet")
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace("microworld", dataset))
    write_report(folder)
    note = lines(folder)[-1]
    assert note.startswith("Rows marked ↳") and (UNMATCH in note) == unmatched
