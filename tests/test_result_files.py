"""docs/results: copies of results, the page made from them, and figures in prose."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra import compose
from made_run import PAIRS, make_run
from omegaconf import OmegaConf
from PIL import Image

from lorabench.base import EXPERIMENTS
from lorabench.data.matching import select_world
from lorabench.engine.commit import commit, git
from lorabench.engine.output_folder import INCOMPLETE, UNFINISHED, OutputFolder
from lorabench.report import write_joint_report
from lorabench.report.clusters import Design
from lorabench.tasks.benchmark import plan_of
from lorabench.tasks.rows import Row

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import figures  # noqa: E402
import generate  # noqa: E402
import grid  # noqa: E402
import result_files  # noqa: E402

MEASURED = (  # every experiment whose tables the documentation shows
    "all_methods", "tuning", "recipe", "single_loras", "samplers", "duolora_main", "duolora_ablation",
    "unziplora_alignment", "unziplora_ablation", "single_image", "craft_main", "craft_components", "craft_guidance",
    "klora_ablation", "nplora_ablation", "closed_form", "tradeoff", "duolora_multi_concept", "calibration",
    "sensitivity", "stability", "duolora_time", "cost", "sdxl_against_dit", "duolora_released_traps",
    "constyle_readings", "layer_priors", "ziplora_similarity", "duolora_vs_pair", "layer_probe", "craft_routing",
    "craft_layer_sets", "craft_semantic_extension",
)  # fmt: skip


FEW = {  # examples, costs, no pairs
    "duolora_multi_concept", "duolora_time", "cost", "calibration", "single_loras", "recipe",
}  # fmt: skip
REUSED = {
    "duolora_main": "duolora", "duolora_ablation": "ziprank", "klora_ablation": "klora", "nplora_ablation": "np_lora",
    "closed_form": "ziprank", "craft_main": "ziplora", "tradeoff": "ziplora", "duolora_released_traps": "duolora",
    "constyle_readings": "duolora", "layer_priors": "duolora", "ziplora_similarity": "ziplora",
    "duolora_vs_pair": "pair_customization", "sensitivity": "duolora",
}  # fmt: skip


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder in place of docs/results."""
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(result_files, "FOLDER", tmp_path / "results")
    figures.value.cache_clear()
    return tmp_path / "results"


def finished_run(folder: Path, *args: Any, **settings: Any) -> Path:
    """Return a run of invented scores whose manifest has a key and a commit, as that of a run without failures."""
    run = make_run(folder, *args, **settings)
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"key": "of the run", "commit": commit()}))
    return run


def test_page_has_place_of_every_experiment() -> None:
    places = generate.PLACE.findall((ROOT / "docs" / "results" / "page.md").read_text())
    assert sorted(places) == sorted(MEASURED)
    assert all((EXPERIMENTS / f"{name}.yaml").is_file() for name in places)
    text = (ROOT / "docs" / "results.md").read_text()
    assert all(f"### `{name}`" in text for name in MEASURED)
    states = generate.STATE.findall((EXPERIMENTS / "README.md").read_text())
    assert sorted(states) == sorted(MEASURED)


@pytest.mark.usefixtures("hydra")
@pytest.mark.parametrize("name", sorted({*MEASURED} - FEW))
def test_tables_have_independent_pairs(name: str) -> None:
    cfg = compose("config", [f"experiments={name}"])
    dataset: Any = OmegaConf.to_object(cfg.dataset)
    pairs = [("+".join(contents), "+".join(styles)) for contents, styles in select_world(dataset)]
    design = Design.of(pd.MultiIndex.from_tuples(pairs, names=["content", "style"]))
    assert design.is_independent and design.units >= 8


@pytest.mark.usefixtures("hydra")
@pytest.mark.parametrize("name", REUSED)
def test_experiments_on_pairs_of_all_methods_reuse_their_results(name: str) -> None:
    rows = [Row.of(REUSED[name])]
    own, every = (plan_of(compose("config", [f"experiments={each}"]), rows) for each in (name, "all_methods"))
    stages = ["personalize", "merge", *(["score"] if own.generation.images == every.generation.images else [])]
    for stage in stages:
        keys = [{each.key for each in plan.artifacts(stage)} for plan in (own, every)]
        assert keys[0] and keys[0] <= keys[1], stage


def test_every_result_names_its_command_base_and_commit() -> None:
    for folder in (path for path in result_files.FOLDER.iterdir() if path.is_dir()):
        made = json.loads((folder / result_files.MADE).read_text())
        assert all(made[key] for key in ("command", "commit", "base", "date")), folder
        assert folder.name in MEASURED and sum(file.stat().st_size for file in folder.iterdir()) < 2e6


def test_report_is_copied_with_one_line_per_row_and_metric(docs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "closed_form"
    write_joint_report(
        [finished_run(folder / name, name, pairs=PAIRS, images=2) for name in ("direct", "duolora")], folder
    )
    title = "### `closed_form`\n\n"
    assert generate.result("closed_form") == f"{title}Not measured yet: `python run.py experiments=closed_form`.\n"
    result_files.copy(folder)
    wide = pd.read_csv(folder / "table.csv", index_col="method")
    lines = pd.read_csv(docs / "closed_form" / "scores.csv").set_index(["row", "metric"])
    for row in ("base", "direct", "duolora", "oracle"):
        for metric in ("dino/content", "clip_t", "both_similarity"):
            if metric in wide:
                assert lines.at[(row, metric), "mean"] == pytest.approx(wide.at[row, metric], abs=1e-3)
    own = lines.loc[("duolora", "clip_t")]
    for key in ("difference", "difference_low", "difference_high"):
        assert own[key] == pytest.approx(wide.at["duolora", f"clip_t_{key}"], rel=1e-3), key
    assert own["difference_low"] < own["difference"] < own["difference_high"]
    assert lines.at[("duolora", "clip_t"), "separated"] == "yes" and pd.isna(
        lines.at[("direct", "clip_t"), "separated"]
    )
    costs = pd.read_csv(docs / "closed_form" / "costs.csv", index_col="row")
    assert costs.at["duolora", "merge_seconds"] == pytest.approx(wide.at["duolora", "merge_seconds"], rel=1e-3)
    assert not set(costs) & set(lines.index.get_level_values("metric"))
    text = generate.result("closed_form")
    made = json.loads((docs / "closed_form" / "made.json").read_text())
    assert (
        text.startswith(f"{title}`python run.py experiments=closed_form`; base model: micro, ")
        and made["commit"] in text
    )
    assert "\nMeans over 4 pairs with 95 % intervals. Bold: separated from `direct`," in text
    assert re.search(rf"\| `duolora` \|.*\*\*{lines.at[('duolora', 'clip_t'), 'mean']:.3f}\*\* \(\+0\.\d+\) \|", text)


def test_comparisons_with_other_rows_than_reference_are_copied(docs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "closed_form"
    names = ("ziplora", "ziplora_closed", "direct")
    write_joint_report([finished_run(folder / name, name, pairs=PAIRS, images=2) for name in names], folder)
    result_files.copy(folder)
    found = pd.read_csv(docs / "closed_form" / "comparisons.csv")
    assert set(zip(found["family"], found["label"], found["against"], strict=True)) == {
        ("closed", "ziplora", "ziplora_closed"),
        ("published by DuoLoRA", "ziplora", "direct"),
        ("published by ZipLoRA", "ziplora", "direct"),
    }
    text = generate.result("closed_form")
    assert "\nOrders published by DuoLoRA (first row ahead):\n\n| comparison |" in text
    title = "Learned methods against their closed form:"
    assert re.search(rf"{title}\n\n\| comparison \|.*\n.*\n\| `ziplora` - `ziplora_closed` \| [+-]0\.\d+ \[", text)


def test_run_on_other_weights_is_refused(docs: Path, tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "duolora_main", pairs=PAIRS, images=1)
    write_joint_report([folder], folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for digest in (result_files.packaged_digest(), "of an older model"):
        manifest["inputs"] = {"the weights of the model": digest}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        if digest == "of an older model":
            with pytest.raises(SystemExit, match="was made with other weights of micro than those here"):
                result_files.copy(folder)
        else:
            result_files.copy(folder)
    assert (docs / "duolora_main" / "scores.csv").is_file()  # the refused copy has removed nothing


def test_run_with_failed_rows_is_refused(docs: Path, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "all_methods" / "compare-s0", pairs=PAIRS, images=1)
    write_joint_report([folder], folder)  # its manifest lists files, and has no key as that of a finished run
    manifest = json.loads((folder / "manifest.json").read_text())
    assert "key" not in manifest and manifest["files"]
    with pytest.raises(SystemExit, match="compare-s0 is not finished, or parts of it failed"):
        result_files.copy(folder.parent)
    (folder / "manifest.json").write_text(json.dumps(manifest | {"key": "of the run"}))
    assert result_files.copy(folder.parent) == docs / "all_methods"


def study(folder: Path, **manifest: Any) -> Path:
    """Return the folder of a finished study."""
    folder.mkdir(parents=True)
    pd.DataFrame({"method": ["direct"], "hypervolume": [0.76]}).to_csv(folder / "hypervolume.csv", index=False)
    (folder / "tradeoff.md").write_text("## Curves\n\ntext\n")
    OutputFolder(folder).write_manifest(manifest, {"hypervolume.csv": 0, "tradeoff.md": 0})
    return folder


def test_commit_is_that_of_code_that_made_result(docs: Path, tmp_path: Path) -> None:
    made = {}
    for name, manifest in {"now": {}, "earlier": {"commit": git("rev-parse", "--short", "HEAD")}}.items():
        study(tmp_path / name / "tradeoff-s0", **manifest)
        made[name] = json.loads((result_files.copy(tmp_path / name) / result_files.MADE).read_text())["commit"]
    assert made == {"now": commit(), "earlier": git("rev-parse", "--short", "HEAD")}
    study(tmp_path / "unknown" / "tradeoff-s0", commit="")
    with pytest.raises(SystemExit, match="tradeoff-s0 has no commit"):
        result_files.copy(tmp_path / "unknown")
    study(tmp_path / "foreign" / "tradeoff-s0", commit="0000000")
    with pytest.raises(SystemExit, match="tradeoff-s0 was made with other weights of micro"):
        result_files.copy(tmp_path / "foreign")


@pytest.mark.parametrize("mark", [UNFINISHED, INCOMPLETE])
def test_unfinished_study_is_refused(docs: Path, tmp_path: Path, mark: str) -> None:
    study(tmp_path / "tuning" / "tuning-s0", **{mark: "1 configuration failed"})
    with pytest.raises(SystemExit, match="tuning-s0 is not finished, or parts of it failed"):
        result_files.copy(tmp_path / "tuning")


def test_figure_of_the_readme_has_the_first_pairs(tmp_path: Path, monkeypatch) -> None:
    names = [(f"mug_{k}", f"ink_{k}") for k in range(1, 8)]
    make_run(tmp_path / "run" / "compare-s0", "duolora", pairs=names, images=1)
    monkeypatch.setattr(grid, "FILE", tmp_path / "grid.png")
    heights = []
    for pairs in (2, 3, 9):
        monkeypatch.setattr(grid, "PAIRS", pairs)
        with Image.open(grid.draw(tmp_path / "run")) as drawn:
            heights.append(drawn.height)
    assert heights[2] - heights[0] == 5 * (heights[1] - heights[0]) > 0  # 7 pairs are all there are


def test_text_on_an_earlier_measurement_is_named(docs: Path, tmp_path: Path, monkeypatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- text on cost: unmeasured -->\nNobody knows.\n<!-- text on tuning: abc -->\nAll are equal.\n")
    monkeypatch.setattr(generate, "PAGE", page)
    monkeypatch.setattr(generate, "written", list)
    for name, made in (("cost", "def"), ("tuning", "abc")):
        (docs / name).mkdir()
        (docs / name / result_files.MADE).write_text(json.dumps({"commit": made}))
    assert generate.outdated_texts() == [
        "page.md: the text on cost is of unmeasured; read it again and write def there"
    ]


def test_study_and_several_tables_are_copied(docs: Path, tmp_path: Path) -> None:
    several = tmp_path / "multi"
    study(tmp_path / "tradeoff" / "tradeoff-s0")
    result_files.copy(tmp_path / "tradeoff", "python run.py experiments=tradeoff generate.images=2")
    assert "##### Curves\n\ntext\n" in generate.result("tradeoff")
    for part in ("2_subjects", "3_subjects"):
        write_joint_report(
            [finished_run(several / part / "direct", "direct", pairs=PAIRS[:2], images=1)], several / part
        )
    result_files.copy(several)
    text = generate.result("multi")
    assert text.index("#### 2 subjects\n") < text.index("| `direct` |") < text.index("#### 3 subjects\n")
    with pytest.raises(SystemExit, match="nothing is not a folder; use --from outputs/<name>"):
        result_files.copy(tmp_path / "nothing")
    with pytest.raises(SystemExit, match="and no study"):
        result_files.copy(docs / "tradeoff")


def test_figures_in_prose_are_those_of_files(docs: Path) -> None:
    (docs / "a").mkdir()
    (docs / "a" / "scores.csv").write_text(
        "row,metric,mean,difference\ndirect,both,0.5,\nduolora,both,0.2534,-0.2466\n"
    )
    prose = "from 0.1<!-- a/scores: direct both / mean --> to 9.99<!-- a/scores: duolora both / mean -->, 7 pairs, "
    prose += "+0.00<!-- a/scores: duolora both / difference -->"
    assert figures.with_figures(prose) == (
        "from 0.5<!-- a/scores: direct both / mean --> to 0.25<!-- a/scores: duolora both / mean -->, 7 pairs, "
        "-0.25<!-- a/scores: duolora both / difference -->"
    )
    for wrong in ("a/scores: both / mean", "a/scores: klora both / mean", "b/scores: direct both / mean"):
        with pytest.raises(SystemExit, match="error: the figure"):
            figures.with_figures(f"0.1<!-- {wrong} -->")
    (docs / "a" / "shares.csv").write_text("score,of seeds\nboth,0.31\n")
    assert figures.with_figures("0.50<!-- a/shares: both / of seeds -->").startswith("0.31<")
    (docs / "a" / "scores.csv").write_text("row,metric,mean,difference\nduolora,both,0.7534,0.2534\n")
    figures.value.cache_clear()
    assert figures.with_figures("-0.25<!-- a/scores: duolora both / difference -->").startswith("+0.25<")


def test_verdicts_in_prose_follow_from_differences_and_p_values(docs: Path) -> None:
    (docs / "a").mkdir()
    lines = ["direct,both,,", "ziplora,both,0.2,0.01", "klora,both,-0.2,0.01", "ties,both,0.2,0.06"]
    (docs / "a" / "scores.csv").write_text("\n".join(["row,metric,difference,p_holm", *lines]))
    page = "".join(
        f"{row}: **not known**<!-- a/scores: {row} both / {sign}verdict -->\n"
        for row in ("ziplora", "klora", "ties")
        for sign in ("", "-")
    )
    words = re.findall(r"\*\*(.+?)\*\*<!--", figures.with_figures(page))
    assert words == ["holds", "contradicted", "contradicted", "holds", "not separated", "not separated"]
    assert figures.with_figures(figures.with_figures(page)) == figures.with_figures(page)
    with pytest.raises(SystemExit, match="scores: direct both / difference has no number"):
        figures.with_figures("**holds**<!-- a/scores: direct both / verdict -->")
