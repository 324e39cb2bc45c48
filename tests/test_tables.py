"""Tables of several runs: references of differences, ranks and costs."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_run import INDEPENDENT, METRICS, make_run, make_runs, make_table, read_table
from scipy import stats as scipy_stats

from lorabench.base import UserError
from lorabench.config.checks import check_reference
from lorabench.report import comparing, layout, planned, write_joint_report
from lorabench.report.__main__ import main
from lorabench.report.folder import RunFolder, run_folders
from lorabench.report.formats import format_cost
from lorabench.report.notes import cost_note, equal_notes
from lorabench.report.table import Table, costs
from lorabench.report.tex import write_latex
from lorabench.report.text import write_csv, write_markdown

# --- differences


def test_differences_are_paired_and_corrected(tmp_path: Path) -> None:
    """Against plain pandas, scipy and Holm's formula."""
    of = make_table(tmp_path, "direct", "ziplora", "duolora", "duolora no_cycle")
    scores = pd.concat([pd.read_parquet(run / "scores.parquet") for run in sorted(tmp_path.iterdir())])
    label = scores["method"].where(scores["ablation"] == "none", scores["method"] + " " + scores["ablation"])
    frames = of.lines.set_index(["metric", "label"])
    compared = ["ziplora", "duolora"]  # an ablation is tested against its method
    tested = of.planned.set_index(["metric", "label", "against"])
    for metric in METRICS:
        own = scores.assign(label=label)[scores["metric"] == metric]
        images = own.pivot_table("value", ["content", "style", "image"], "label")
        deltas = pd.DataFrame(images[compared].sub(images["direct"], axis=0).groupby(level=["content", "style"]).mean())
        ablated = (images["duolora no_cycle"] - images["duolora"]).groupby(level=["content", "style"]).mean()
        of_ablation = tested.loc[(metric, "duolora no_cycle", "duolora")]
        assert of_ablation["difference"] == pytest.approx(ablated.mean())
        assert of_ablation["p_holm"] == of_ablation["p"] == pytest.approx(scipy_stats.ttest_1samp(ablated, 0.0).pvalue)
        tests: list[Any] = [scipy_stats.ttest_1samp(deltas[name], 0.0) for name in compared]
        p = [test.pvalue for test in tests]
        lines = frames.loc[[(metric, name) for name in compared]]
        assert lines["difference"].tolist() == pytest.approx([deltas[name].mean() for name in compared])
        assert lines["p"].tolist() == pytest.approx(p, rel=1e-6)
        assert lines["p_holm"].tolist() == pytest.approx(comparing.holm(p).tolist(), rel=1e-6)
        assert lines["separated"].tolist() == [bool(each <= 0.05) for each in comparing.holm(p)]
        assert min(lines["difference"] - lines["difference_low"]) >= 0
    others = of.lines[~of.lines["label"].isin(compared)]
    assert others[["p_holm", "separated"]].isna().to_numpy().all()
    shown = others.dropna(subset=["difference", "p"])["label"].unique().tolist()
    assert shown == ["duolora no_cycle"]  # the difference to direct is shown and not tested


def test_families_are_corrected_apart_and_shown(tmp_path: Path) -> None:
    rows = ("direct", "ziplora", "ziplora_closed", "ziplora uniform", "ziplora gaussian_init")
    write_joint_report(make_runs(tmp_path, *rows), tmp_path / "joint")
    found = pd.read_csv(tmp_path / "joint" / "comparisons.csv")
    families = found.groupby("family", sort=False)["label"].agg(lambda names: sorted(set(names))).to_dict()
    assert families == {
        "methods": ["ziplora", "ziplora_closed"],
        "ablations": ["ziplora gaussian_init", "ziplora uniform"],
        "closed": ["ziplora"],
        "published by DuoLoRA": ["ziplora"],
        "published by ZipLoRA": ["ziplora"],
    }
    sizes = {"published by DuoLoRA": 8, "published by ZipLoRA": 2}
    for (family, _), own in found.groupby(["family", "metric"]):
        adjusted = comparing.holm(own["p"].to_numpy(), sizes.get(family, 0))
        assert own["p_holm"].tolist() == pytest.approx(adjusted.tolist(), rel=1e-4)
    text = (tmp_path / "joint" / "table.md").read_text()
    page = (tmp_path / "joint" / "report.html").read_text()
    for title in ("Ablations against their method", "Learned methods against their closed form"):
        assert f"**{title}**" in text and f"<h3>{title}</h3>" in page
    assert "| ziplora - ziplora_closed | " in text and '<th scope="row">ziplora uniform - ziplora</th>' in page
    assert "(2 methods, 2 ablations, 1 closed, 8 published by DuoLoRA, 2 published by ZipLoRA)" in text


def test_published_orders_are_tested_within_their_publication(tmp_path: Path) -> None:
    """Against pairs by hand, scipy and Holm's formula; also an order against the reference is shown.

    The publication has four orders more, of rows that the table lacks.
    """
    orders = [("duolora", "ziplora"), ("duolora", "direct"), ("ziplora", "direct"), ("duolora", "duolora no_cycle")]
    write_joint_report(
        make_runs(tmp_path / "runs", "direct", "klora", "ziplora", "duolora", "duolora no_cycle"), tmp_path / "joint"
    )
    scores = pd.concat([pd.read_parquet(run / "scores.parquet") for run in sorted((tmp_path / "runs").iterdir())])
    label = scores["method"].where(scores["ablation"] == "none", scores["method"] + " " + scores["ablation"])
    found = pd.read_csv(tmp_path / "joint" / "comparisons.csv")
    for metric in METRICS:
        own = scores.assign(label=label)[scores["metric"] == metric]
        pairs = own.pivot_table("value", ["content", "style"], "label")
        tests = {of: scipy_stats.ttest_rel(pairs[of[0]], pairs[of[1]]) for of in orders}
        ascending = sorted(orders, key=lambda of: tests[of].pvalue)
        lines = found[(found["family"] == "published by DuoLoRA") & (found["metric"] == metric)]
        lines = lines.set_index(["label", "against"])
        assert sorted(lines.index) == sorted(orders)
        corrected = 0.0
        for place, of in enumerate(ascending):
            corrected = min(1.0, max(corrected, (len(orders) + 4 - place) * tests[of].pvalue))
            assert lines.at[of, "p_holm"] == pytest.approx(corrected, rel=1e-3), (metric, of)
            assert lines.at[of, "difference"] == pytest.approx((pairs[of[0]] - pairs[of[1]]).mean(), rel=1e-3)
    published = {f"published by {name}" for name in ("DuoLoRA", "K-LoRA", "ZipLoRA")}
    assert set(found["family"]) == {"methods", "ablations", *published}
    text = (tmp_path / "joint" / "table.md").read_text()
    page = (tmp_path / "joint" / "report.html").read_text()
    title = "Orders published by K-LoRA (first row ahead)"
    assert f"**{title}**" in text and f"<h3>{title}</h3>" in page
    assert "| klora - direct | " in text and "| klora - ziplora | " in text


def test_one_pair_has_no_table_of_orders(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, name, pairs=INDEPENDENT[:1], images=1) for name in ("direct", "duolora")]
    titles = [block.title for block in layout.blocks(Table.of([RunFolder.load(run) for run in runs]))]
    assert not [title for title in titles if "published" in title]


def test_ablation_without_its_method_is_compared_as_method() -> None:
    found = planned.comparisons(["base", "direct", "duolora no_cycle", "oracle"], "direct")
    assert [(each.family, each.label, each.against) for each in found] == [("methods", "duolora no_cycle", "direct")]
    own = planned.comparisons(["duolora", "duolora no_cycle"], "duolora")
    assert [each.family for each in own] == ["ablations", "published by DuoLoRA"]
    assert planned.comparisons(["ties", "klora"], None) == []


def test_what_is_separated_alone_need_not_be_among_many(tmp_path: Path) -> None:
    """Seven methods as good as direct, one with p of about 0.02 in one column."""
    runs = make_runs(tmp_path, "direct", "ziplora", *[f"duolora {name}" for name in ("a", "b", "c", "d", "e", "f")])
    at = [RunFolder.load(run) for run in runs]
    offsets = np.array([0.006, 0.001, 0.007, 0.002]) + 0.001  # offsets of the four pairs
    for run in at[1:]:
        base = at[0].scores[at[0].scores["method"] == "direct"]
        names = list(zip(base["content"], base["style"], strict=True))
        pair = pd.Series([list(dict.fromkeys(names)).index(name) for name in names], base.index)
        noise = np.random.default_rng(len(run.label)).permutation([0.001, -0.001, 0.002, -0.002])
        values = base["value"] + (offsets if run.label == "ziplora" else noise)[pair]
        own = base.assign(value=values, method=run.manifest["method"], ablation=run.manifest["ablation"])
        frames = run.scores[run.scores["method"] != run.manifest["method"]]
        pd.concat([frames, own]).drop(columns="label").to_parquet(run.path / "scores.parquet")
    few = Table.of([RunFolder.load(run) for run in runs[:2]]).lines.set_index(["label", "metric"])
    many = Table.of([RunFolder.load(run) for run in runs]).lines.set_index(["label", "metric"])
    one = ("ziplora", "dino/content")
    assert few.loc[one, "p"] == many.loc[one, "p"] == few.loc[one, "p_holm"] < 0.05 < many.loc[one, "p_holm"]
    assert few.loc[one, "separated"] is True and many.loc[one, "separated"] is False


def test_rows_with_same_images_are_named() -> None:
    score = {"dataset": "d", "content": "mug_1", "style": "ink_1", "prompt": "p", "metric": "m", "backbone": "b"}
    values = {"craft": [0.25, 0.5], "direct": [0.5, 0.25], "craft+sampling.acfg": [0.25, 0.5]}
    rows = [
        {**score, "label": label, "seed": seed, "reference": "r", "value": value}
        for label, several in values.items()
        for seed, value in enumerate(several)
    ]
    assert equal_notes(pd.DataFrame(rows[::-1])) == ["craft+sampling.acfg, craft: these rows have the same images."]
    assert equal_notes(pd.DataFrame(rows[:4])) == []


def test_reference_is_typed_or_configured_or_absent(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, "direct", "duolora", "duolora no_cycle")
    loaded = [RunFolder.load(run) for run in runs]
    assert Table.of(loaded).reference == "direct"
    ablated = Table.of(loaded, reference="duolora no_cycle")
    assert ablated.reference == "duolora no_cycle"
    known = ablated.lines.dropna(subset="difference")["label"].unique().tolist()
    assert known == ["direct", "duolora"]
    assert "not separated from duolora no_cycle" in " ".join(ablated.notes)
    configured = [RunFolder.load(run) for run in make_runs(tmp_path / "own", "direct", "ziplora", reference="ziplora")]
    assert Table.of(configured).reference == "ziplora"
    assert Table.of(loaded[1:]).reference is None and Table.of(loaded[1:]).lines["difference"].isna().to_numpy().all()
    assert Table.of([*loaded, *configured]).reference == "direct"  # they differ
    with pytest.raises(UserError, match="--reference=duolra is unknown, did you mean duolora"):
        Table.of(loaded, reference="duolra")


def test_reference_that_cannot_be_row_is_refused_before_run() -> None:
    for label in ("direct", "content_only", "duolora no_cycle"):
        check_reference(label)
    for label, near in (("dirct", "direct"), ("duolora no_cycl", "no_cycle")):
        with pytest.raises(UserError, match=f"did you mean {near}"):
            check_reference(label)


def test_command_takes_folders_of_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [*make_runs(tmp_path / "a", "direct", "ziplora"), *make_runs(tmp_path / "b", "duolora")]
    assert run_folders([tmp_path / "a", runs[2], runs[0]]) == [*sorted(runs[:2]), runs[2]]  # each once
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--reference", "ziplora"]) == 0
    joint = read_table(tmp_path / "joint")
    assert set(joint.index) >= {"direct", "ziplora", "duolora"}
    assert joint["dino/content_difference"].dropna().index.tolist() == ["direct", "duolora"]
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "joint" / "report.html")
    assert main([str(tmp_path / "a")]) == 0 and (tmp_path / "a" / "table.tex").is_file()  # into the sweep's own folder
    assert main([str(runs[0]), "--reference", "nothing"]) == 2
    assert "use --reference=<base|" in capsys.readouterr().err.replace("Use", "use")
    assert main([str(tmp_path)]) == 2  # a folder of folders of runs
    assert "is not a finished run" in capsys.readouterr().err


# --- pairs that share subjects or styles


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([("a", "x"), ("b", "y"), ("c", "z")], "3 pairs of 3 subjects and 3 styles (1 images per row"),
        ([("a", "x"), ("a", "x2")], "interval over pairs"),  # results hold for this subject
        ([("a", "x"), ("a", "y"), ("b", "z")], "3 pairs of 2 subjects and 3 styles"),
        ([("a", "x"), ("a", "y"), ("b", "z")], "interval over subjects."),
        ([("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")], "over subjects and styles resampled together"),
        ([("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")], "With 2 independent units"),
    ],
)
def test_note_has_numbers_of_subjects_and_styles(tmp_path: Path, pairs: list[tuple[str, str]], words: str) -> None:
    of = Table.of([RunFolder.load(make_run(tmp_path / "run", pairs=pairs, images=1))])
    words = words.replace("(1 images", f"({len(pairs)} images")
    for text in (write_markdown(of), write_latex(of), " ".join(layout.notes(of))):  # the page shows these
        assert words in text
    line = of.lines.iloc[0]
    assert (line["contents"], line["styles"]) == tuple(len(set(names)) for names in zip(*pairs, strict=True))
    (tmp_path / "table.csv").write_text(write_csv(of))
    assert read_table(tmp_path).iloc[0]["dino/content_contents"] == line["contents"]


def test_crossed_pairs_are_as_sure_as_their_fewest_names(tmp_path: Path) -> None:
    """Four pairs that are 0.1 better, with noise of 0.01: sure for four subjects, not for two."""
    found = []
    for place, pairs in (("one", INDEPENDENT), ("two", list(itertools.product(("a", "b"), ("x", "y"))))):
        runs = [make_run(tmp_path / place / name, name, pairs=pairs, images=1) for name in ("direct", "duolora")]
        lines = Table.of([RunFolder.load(run) for run in runs]).lines.set_index(["label", "metric"])
        found.append(lines.loc[("duolora", "dino/content")])
    assert found[0]["p"] < 0.01 < found[1]["p"]


# --- several seeds


def test_seeds_of_method_are_images_of_same_pairs(tmp_path: Path) -> None:
    runs = [RunFolder.load(make_run(tmp_path / str(seed), seed=seed)) for seed in (0, 1)]
    one, both = (Table.of(some).lines.set_index(["label", "metric"]) for some in (runs[:1], runs))
    at = ("duolora", "clip_t")
    assert both.loc[at, "images"] == 2 * one.loc[at, "images"] and both.loc[at, "pairs"] == one.loc[at, "pairs"] == 4


# --- costs


def with_costs(folder: Path, method: str, **spent: float) -> RunFolder:
    run = make_run(folder, method, images=1)
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"costs": spent}))
    return RunFolder.load(run)


GPU, PROCESS = "merge_peak_gpu_bytes", "merge_peak_bytes"


def test_costs_are_means_over_seeds_and_blank_where_unknown(tmp_path: Path) -> None:
    runs = [
        with_costs(tmp_path / "a", "ziplora", merge_seconds=10.0, merge_denoiser_passes=400, lora_seconds=60.0),
        with_costs(tmp_path / "b", "ziplora", merge_seconds=20.0, merge_denoiser_passes=400, lora_seconds=61.0),
        with_costs(tmp_path / "c", "direct", merge_seconds=0.1),
        with_costs(tmp_path / "d", "klora"),
    ]
    spent = costs(runs)
    assert list(spent) == ["lora_seconds", "merge_seconds", "merge_denoiser_passes"]
    assert spent.loc["ziplora", "merge_seconds"] == 15.0
    assert [format_cost(spent, name, "merge_denoiser_passes") for name in ("ziplora", "direct", "klora", "base")] == [
        "400", "", "", ""
    ]  # fmt: skip
    head, *_ = write_markdown(Table.of(runs)).splitlines()
    assert head.endswith("| s per LoRA (shared) | s to merge | denoiser passes to merge |")
    [note] = [note for note in Table.of(runs).notes if "LoRAs that methods share" in note]
    assert note.endswith("memory is the maximum over the pairs.")
    with (runs[0].path / "config.yaml").open("a") as config:
        config.write("merge: {pairs_per_batch: 8}\n")
    assert cost_note([RunFolder.load(runs[0].path), runs[2]]).endswith(
        "learned for up to 8 pairs at a time, and their memory is that of these pairs."
    )
    assert list(costs(runs[3:])) == []


@pytest.mark.parametrize(
    ("first", "second", "shown"),
    [
        ({PROCESS: 3 * 2**30, GPU: 2**30}, {PROCESS: 2**30, GPU: 2**31}, GPU),
        ({PROCESS: 3 * 2**30, GPU: 2**30}, {PROCESS: 2**31}, PROCESS),
        ({PROCESS: 3 * 2**30}, {PROCESS: 2**31}, PROCESS),
        ({PROCESS: 3 * 2**30, GPU: 2**30}, {}, GPU),
    ],
)
def test_one_peak_of_memory_is_shown_greatest(tmp_path: Path, first: dict, second: dict, shown: str) -> None:
    spent = costs([with_costs(tmp_path / "a", "ziplora", **first), with_costs(tmp_path / "b", "ziplora", **second)])
    assert list(spent) == [shown]
    greatest = max(first.get(shown, 0), second.get(shown, 0))
    assert float(format_cost(spent, "ziplora", shown)) == greatest / 2**30
