"""Numbers of publications: found, compared with the run, marked and escaped."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from made_run import make_run
from omegaconf.errors import OmegaConfBaseException

from lorabench.base import CONF
from lorabench.data.packaged import packaged
from lorabench.merging import method as methods
from lorabench.report import papers, protocols, write_joint_report, write_report
from lorabench.report.__main__ import main
from lorabench.report.folder import RunFolder
from lorabench.report.papers import Paper, PaperRow, PaperTable
from lorabench.report.published import DIFFERS, MARK, SAME, differences, named
from lorabench.report.table import Table

METHODS = [path.stem for path in (CONF / "method").glob("*.yaml")]
# Methods that are not implemented yet. Remove a name when it gets a file in conf/method.
NOT_HERE = {
    "custom_diffusion", "mix_of_show", "styledrop_dreambooth",
}  # fmt: skip


def lines(folder: Path) -> list[str]:
    return (folder / "table.md").read_text().splitlines()


# --- the data


@pytest.mark.parametrize("name", sorted(papers.papers()))
def test_every_number_has_known_metric_and_its_method(name: str) -> None:
    paper = papers.load_paper(name)
    assert re.fullmatch(r"\d{4}\.\d{5}", paper.arxiv) and paper.title and paper.tables
    names = [table.name for table in paper.tables]
    assert len(set(names)) == len(names)
    pairs = packaged("pair_lists")
    for table in paper.tables:
        assert table.about and table.source and table.rows
        if table.protocol is not None:
            assert protocols.load_protocol(table.protocol).arxiv == paper.arxiv
        assert table.pairs is None or table.pairs in pairs
        assert table.dataset is None or (CONF / "dataset" / f"{table.dataset}.yaml").is_file()
        assert not set(table.own) & set(papers.METRICS)
        for row in table.rows:
            assert row.values and set(row.values) <= {*papers.METRICS, *table.own}, f"{table.name}: {row.name}"
            for metric in set(row.values) & set(papers.METRICS):
                assert 0 < row.values[metric] / table.scale < 1
            for label in row.method:
                method, _, ablation = label.partition(" ")
                assert (method in METHODS) != (method in NOT_HERE), f"{method}: of no yaml, or no longer NOT_HERE"
                if method in METHODS:
                    methods.load(method, ablation or "none")
        used = {metric for row in table.rows for metric in row.values}
        assert set(table.own) <= used


def test_methods_that_publication_proposes_exist_and_have_one_publication() -> None:
    proposed = [name for paper in papers.papers().values() for name in paper.methods]
    assert set(proposed) <= {*METHODS, *NOT_HERE}
    assert len(set(proposed)) == len(proposed)


@pytest.mark.parametrize("name", sorted(papers.papers()))
def test_orders_follow_from_printed_numbers(name: str) -> None:
    """The first row is not behind the second over the scores that both have, in a table of both if there is one."""
    paper = papers.load_paper(name)
    rows = [(table, row) for table in paper.tables for row in table.rows]
    unprinted = []
    for ahead, behind in paper.orders:
        for label in (ahead, behind):
            method, _, ablation = label.partition(" ")
            methods.load(method, ablation or "none")
        margins: dict[bool, list[float]] = {True: [], False: []}  # key: whether one table has both rows
        for (table, first), (other, second) in itertools.product(rows, rows):
            if ahead in first.method and behind in second.method and table.model == other.model:
                shared = set(first.values) & set(second.values) & {*papers.METRICS, "quality", "harmonic"}
                if shared:
                    margins[table is other].append(sum(first.values[each] - second.values[each] for each in shared))
        if not (found := margins[True] or margins[False]):
            unprinted.append((ahead, behind))
        assert all(margin > -1e-9 for margin in found), (ahead, behind, found)
    steps = [row for table in paper.tables for row in table.rows if " vs " in row.name]  # shares that prefer the first
    assert len(unprinted) == len(steps)
    assert all(sum(row.values.values()) / len(row.values) > 50 for row in steps)


@pytest.mark.parametrize(
    ("method", "ablation", "expected"),
    [
        ("duolora", "none", {"dino/content": 0.56, "clip_i/style": 0.69, "clip_t": 0.314}),
        ("duolora", "no_cycle", {"dino/content": 0.54, "clip_i/style": 0.67}),
        ("duolora", "masks_only", {"dino/content": 0.53, "clip_i/style": 0.64}),
        ("ziprank", "none", {"dino/content": 0.53, "clip_i/style": 0.64}),
        ("ziplora", "none", {"dino/content": 0.42, "clip_i/style": 0.699, "clip_t": 0.303}),
        ("klora", "none", {"dino/content": 0.469, "clip_i/style": 0.587}),
    ],
)
def test_our_rows_find_what_is_reported_of_them(tmp_path: Path, method: str, ablation: str, expected: dict) -> None:
    run = RunFolder.load(make_run(tmp_path / "run", method, ablation, images=1))
    [own] = Table.of([run]).reported.values()
    assert own[0].values == pytest.approx(expected)


@pytest.mark.parametrize("wrong", [{"tabels": []}, {"tables": [{"rows": [{"values": {"dino/content": "high"}}]}]}])
def test_publication_of_wrong_form_is_refused(wrong: dict) -> None:
    with pytest.raises(OmegaConfBaseException):
        papers.typed({"arxiv": "0", "title": "x"} | wrong)


# --- in a table


def test_reported_rows_stand_under_their_method(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    write_report(folder)
    text = lines(folder)
    own = next(i for i, line in enumerate(text) if line.startswith("| duolora"))
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text[own : own + 4]]
    assert cells[1] == ["↳ reported: arXiv 2504.13206, table main (a)", "*0.56*", "*0.69*", "*0.314*", *[""] * 4]
    assert cells[2][0] == "↳ reported: arXiv 2504.13206, table Paircustomization (b)"
    assert cells[3][0] == "oracle"  # the ablation table repeats numbers of the main table
    assert {len(line) for line in cells} == {len(cells[0])}
    assert text[-1].startswith("(a) protocol differs: micro scorers, other average, other text, other base model, ")
    assert any(line.startswith(f"Rows marked {MARK}") for line in text)

    table = pd.read_csv(folder / "table.csv", index_col="method")
    reported = "↳ duolora reported: arXiv 2504.13206, table main"
    assert list(table.index)[3:5] == ["duolora", reported] and table.index.is_unique
    numbers = table.loc[reported].dropna().to_dict()
    assert numbers.pop("reported").startswith(DIFFERS)
    assert numbers == {"dino/content": 0.56, "clip_i/style": 0.69, "clip_t": 0.314}
    assert table.loc["duolora", "learned_parameters"] == 12288


def test_seeds_show_publication_once_and_ablations_their_own(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a"),
        make_run(tmp_path / "b", seed=1),
        make_run(tmp_path / "c", ablation="no_cycle"),
        make_run(tmp_path / "d", ablation="no_layer_prior"),
    ]
    write_joint_report(runs, tmp_path)
    first = [line.split("|")[1].strip() for line in lines(tmp_path) if line.startswith("|")]
    assert first[5:11] == [
        "duolora", "↳ reported: arXiv 2504.13206, table main (a)",
        "↳ reported: arXiv 2504.13206, table Paircustomization (b)", "duolora no_cycle",
        "↳ reported: arXiv 2504.13206, table ablation (b)", "duolora no_layer_prior",
    ]  # fmt: skip


def test_publications_are_shown_whose_methods_are_there(tmp_path: Path) -> None:
    """All papers report the direct merge, so only those whose methods are in the runs are shown."""
    direct = RunFolder.load(make_run(tmp_path / "direct", "direct"))
    assert not Table.of([direct]).reported
    both = [direct, RunFolder.load(make_run(tmp_path / "klora", "klora"))]
    assert [own.source for own in Table.of(both).reported["direct"]] == ["arXiv 2502.18461, table 1"]
    assert [own.source for own in Table.of([direct], protocols.load_protocol("duolora")).reported["direct"]] == [
        "arXiv 2504.13206, table main"
    ]


# --- compared with the run


def klora_run(folder: Path, model: str = "sdxl", micro: bool = False, images: int = 10, **dataset: str) -> RunFolder:
    """Write a run with K-LoRA's protocol, as far as it is published."""
    make_run(folder, "klora", images=images)
    scores = pd.read_parquet(folder / "scores.parquet")
    real = {} if micro else {"dino@micro": "dino@vits16", "clip@micro": "clip@vitb32"}
    name = dataset.pop("name", "dreambooth_styledrop")
    scores = scores.replace({"backbone": real}).assign(dataset=name, model=model)
    scores.loc[scores["metric"] == "clip_i/style", "value"] += 0.587 - 0.5
    scores.to_parquet(folder / "scores.parquet")
    manifest = (folder / "manifest.json").read_text().replace('"micro"', f'"{model}"')
    (folder / "manifest.json").write_text(manifest.replace("microworld", name))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["dataset"] = {"pairs": "klora", "references": "same"} | dataset
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return RunFolder.load(folder)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, ""),
        ({"micro": True}, "micro scorers"),
        ({"model": "koala_1b"}, "other base model"),
        ({"name": "folder"}, "other dataset"),
        ({"pairs": "random"}, "other pairs"),
        ({"references": "2"}, "references held out"),
        ({"images": 4}, "4 images per pair, not 10"),
        ({"model": "koala_1b", "pairs": "all"}, "other base model, other pairs"),
    ],
)
def test_whether_protocol_matches(tmp_path: Path, changes: dict, why: str) -> None:
    run = klora_run(tmp_path / "run", **changes)
    [own] = Table.of([run], protocols.load_protocol("klora")).reported["klora"]
    assert own.why == why and not own.comparable  # the publication does not name its pairs
    assert own.standing == (f"{DIFFERS}: {why}" if why else f"{SAME}; unreported: which 18 pairs, backbones")


def test_other_columns_do_not_match(tmp_path: Path) -> None:
    run = klora_run(tmp_path / "run")
    of_all = {own.source: own for own in Table.of([run]).reported["klora"]}
    assert not of_all["arXiv 2502.18461, table 1"].why  # same backbones and averages, in another scale
    other = run.scores.replace({"backbone": {"clip@vitb32": "clip@vitl14"}})
    other.drop(columns="label").to_parquet(run.path / "scores.parquet")
    [own] = Table.of([RunFolder.load(run.path)]).reported["klora"]
    assert own.why == "clip@vitl14, not clip@vitb32"


def test_pairs_that_we_draw_have_no_verdict(tmp_path: Path) -> None:
    run = klora_run(tmp_path / "run")
    table = Table.of([run], protocols.load_protocol("klora"))
    [own] = table.reported["klora"]
    [line] = [
        each for each in table.lines.to_dict("records") if (each["label"], each["metric"]) == ("klora", "Style Sim")
    ]
    assert own.verdict(line) == SAME and replace(own, open="", named=True).verdict(line) == "inside"
    assert {name for name in packaged("pair_lists") if named(name)} == {"lorarar"} and not named(None)
    write_joint_report([run.path], tmp_path / "out", "klora")
    [row] = [text for text in lines(tmp_path / "out") if "reported" in text and text.startswith("|")]
    assert "*58.7*" in row and "inside" not in row


def test_no_publication_has_our_world(tmp_path: Path) -> None:
    """Test a table that does not name its dataset."""
    run = RunFolder.load(make_run(tmp_path / "run", "pair_customization"))
    [table] = [table for table in papers.load_paper("duolora").tables if table.name == "Paircustomization"]
    assert table.dataset is None and "other dataset" in list(differences(table, run, []))


def test_number_is_inside_or_outside_of_our_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [first, *_] = papers.load_paper("klora").tables
    paper = replace(papers.load_paper("klora"), tables=[replace(first, pairs="lorarar", open=[])])
    monkeypatch.setattr(papers, "papers", lambda: {"klora": paper})  # a publication that reports all settings
    run = klora_run(tmp_path / "run", pairs="lorarar")
    table = Table.of([run], protocols.load_protocol("klora"))
    line = {each["metric"]: each for each in table.lines.to_dict("records") if each["label"] == "klora"}
    [own] = table.reported["klora"]
    assert own.verdict(line["Style Sim"]) == "inside" and own.verdict(line["DINO Score"]) == "outside"
    assert own.verdict({"metric": "nothing"}) == "" and own.verdict(line["Style Sim"] | {"low": float("nan")}) == ""
    write_joint_report([run.path], tmp_path / "out", "klora")
    [row] = [text for text in lines(tmp_path / "out") if "reported" in text and text.startswith("|")]
    assert "*58.7 inside*" in row and "outside*" in row
    micro = klora_run(tmp_path / "micro", micro=True, pairs="lorarar")
    [differs] = Table.of([micro], protocols.load_protocol("klora")).reported["klora"]
    assert differs.verdict(line["Style Sim"]) == DIFFERS


@pytest.mark.parametrize(
    "config",
    ["", "just text", "method: {paper: [{arxiv: '1', dino/content: 0.4}]}", "method: [1", "- 1", "generate: 3"],
)
def test_configs_that_say_nothing_match_nothing(tmp_path: Path, config: str) -> None:
    """This includes old run folders, which contain the numbers themselves."""
    folder = make_run(tmp_path / "run", "klora")
    (folder / "config.yaml").write_text(config)
    [own] = Table.of([RunFolder.load(folder)], protocols.load_protocol("klora")).reported["klora"]
    assert own.why.endswith("other dataset, unknown images per pair, not 10")
    write_report(folder)


def test_hostile_names_are_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = PaperRow("</th><script>|", ["duolora"], {"dino/content": 0.5})
    nasty = Paper("</th><script>|", "x", None, ["duolora"], [PaperTable("<b>\n| \\input{x}", "a", "s", rows=[row])])
    monkeypatch.setattr(papers, "papers", lambda: {"nasty": nasty})
    folder = make_run(tmp_path / "run")
    write_report(folder)
    shown = next(line for line in lines(folder) if "reported" in line)
    assert r"\</th>\<script>\|, table \<b> \| " in shown
    assert "<script>|" not in (folder / "report.html").read_text()
    assert r"\input" not in (folder / "table.tex").read_text()


# --- comparison with a publication's tables


def test_paper_s_tables_beside_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    klora_run(tmp_path / "sweep" / "klora")
    assert main([str(tmp_path / "sweep"), "--paper", "klora"]) == 0
    text = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    mine = {row[1]: row[2:] for row in rows if row[0] == "K-LoRA"}
    assert (
        mine["Style Sim"][0] == "58.7" and mine["Style Sim"][1].startswith("klora: 5") and mine["Style Sim"][2] == SAME
    )
    assert mine["users"] == ["52.7", "", "not scored"]
    assert ["B-LoRA", "Style Sim", "58", "", "not run"] in rows
    assert "Unreported: which 18 pairs, backbones." in text
    assert not (tmp_path / "sweep" / "table.md").exists()

    assert main([str(tmp_path / "sweep"), "--paper", "duolora"]) == 0  # none of these runs is in this publication
    assert "not run" in capsys.readouterr().out
    assert main([str(tmp_path / "sweep"), "--paper", "duolra"]) == 2
    assert "did you mean duolora" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(papers.papers()))
def test_every_number_of_publication_is_shown(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "run", images=1)
    assert main([str(tmp_path / "run"), "--paper", name]) == 0
    shown = capsys.readouterr().out.splitlines()
    numbers = [value for table in papers.load_paper(name).tables for row in table.rows for value in row.values.values()]
    assert len([line for line in shown if re.match(r"\| .* \| [\d.]+ \| ", line)]) == len(numbers)
