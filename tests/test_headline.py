"""The headline scores against plain loops over images."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_run import make_run, read_table

from lorabench.data import microworld as mw
from lorabench.merging.method import load
from lorabench.report import headline, write_report
from lorabench.report.folder import RunFolder
from lorabench.report.pooling import join_scores
from lorabench.report.table import Table

PAIRS = [("mug_1", "neon_1"), ("cat_1", "ink_1"), ("lamp_4", "gold_1")]
SIMILARITY = {  # content, style
    "base": (0.2, 0.1), "content_only": (0.8, 0.15), "style_only": (0.25, 0.9), "direct": (0.6, 0.5),
    "oracle": (0.9, 0.95),
}  # fmt: skip
BACKBONES = {
    "subject_r1": "dino@micro",
    "style_r1": "csd@micro",
    "dino/content": "dino@micro",
    "csd/style": "csd@micro",
}


def make_scores(images: int = 4) -> pd.DataFrame:
    """Return scores of all metrics that the headline needs, two references per similarity."""
    rng, rows = np.random.default_rng(3), []
    for label, (content, style), image in product(SIMILARITY, PAIRS, range(images)):
        keys = {
            "dataset": "microworld", "world": "1", "content": content, "style": style, "prompt": "p", "seed": image,
            "image": image, "method": label, "ablation": "none", "model": "micro", "label": label, "version": "1",
        }  # fmt: skip
        for metric, backbone in BACKBONES.items():
            if metric.endswith("_r1"):
                values = [float(rng.random() < 0.6 or label == "oracle")]
            else:
                values = SIMILARITY[label][metric == "csd/style"] + 0.1 * rng.normal(size=2)
            rows += [
                {**keys, "metric": metric, "backbone": backbone, "role": "x", "reference": str(i), "value": value}
                for i, value in enumerate(values)
            ]
    return pd.DataFrame(rows)


def by_image(scores: pd.DataFrame, metric: str, label: str) -> dict[tuple, float]:
    rows = scores[(scores["metric"] == metric) & (scores["label"] == label)]
    found: dict[tuple, list[float]] = {}
    for row in rows.to_dict("records"):
        found.setdefault((row["content"], row["style"], row["image"]), []).append(row["value"])
    return {key: float(np.mean(values)) for key, values in found.items()}


def test_both_is_product_of_recognitions() -> None:
    scores = make_scores()
    found = headline.with_headline(scores)
    assert len(found[found["metric"] == "both"]) == len(SIMILARITY) * len(PAIRS) * 4
    for label in SIMILARITY:
        both, subject, style = (by_image(found, name, label) for name in ("both", "subject_r1", "style_r1"))
        assert both == {key: subject[key] * style[key] for key in both}
    assert set(found.loc[found["metric"] == "both", "backbone"]) == {"dino@micro+csd@micro"}
    pd.testing.assert_frame_equal(found.iloc[: len(scores)], scores)


def test_both_similarity_is_smaller_of_two_shares() -> None:
    found = headline.with_headline(make_scores())
    of = {
        (metric, label): by_image(found, metric, label)
        for metric in ("dino/content", "csd/style")
        for label in SIMILARITY
    }
    mean = {key: np.mean(list(values.values())) for key, values in of.items()}
    bounds = {"dino/content": "content_only", "csd/style": "style_only"}
    for label in SIMILARITY:
        for key, value in by_image(found, "both_similarity", label).items():
            shares = [
                (of[metric, label][key] - mean[metric, "base"]) / (mean[metric, single] - mean[metric, "base"])
                for metric, single in bounds.items()
            ]
            assert value == pytest.approx(min(shares))


@pytest.mark.parametrize("lost", ["base", "content_only", "style_only"])
def test_both_similarity_needs_rows_that_scale_it(lost: str) -> None:
    scores = make_scores()
    found = headline.with_headline(scores[scores["label"] != lost])
    assert "both_similarity" not in set(found["metric"]) and "both" in set(found["metric"])


def test_single_lora_that_learned_nothing_is_no_unit() -> None:
    scores = make_scores()
    same = scores["label"].eq("content_only") & scores["metric"].eq("dino/content")
    scores.loc[same, "value"] = 0.1
    assert "both_similarity" not in set(headline.with_headline(scores)["metric"])


def test_table_begins_with_headline_and_names_ceiling(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", "direct", pairs=PAIRS, images=4)
    scores = make_scores()
    scores.drop(columns="label").to_parquet(folder / "scores.parquet")
    write_report(folder)
    text = (folder / "table.md").read_text()
    assert text.splitlines()[0].startswith("| method | both | both_similarity | dino/content |")
    table = read_table(folder)
    ceiling = np.mean(list(by_image(headline.with_headline(scores), "both", "oracle").values()))
    assert table.loc["oracle", "both"] == pytest.approx(ceiling) and 0 < table.loc["direct", "both"] < 1
    assert (
        f"48 held-out subjects and 38 held-out styles. Its ceiling is {ceiling:.3f}, the value of the oracle." in text
    )
    assert "Scored by dino@micro, csd@micro." in text
    assert table.loc["base", "both_similarity"] < 0.1 < table.loc["direct", "both_similarity"] < 0.8
    assert (folder / "report.html").stat().st_size > 0
    runs = [RunFolder.load(folder)]
    assert Table.of(runs).columns[0].backbone == "dino@micro+csd@micro"
    assert "both" not in set(runs[0].scores["metric"]) and "both" in set(join_scores(runs)["metric"])


def test_note_names_candidates_of_development_pairs() -> None:
    scores = make_scores()
    lines = pd.DataFrame({"metric": ["both"], "label": ["direct"], "mean": [0.5]})
    [note] = headline.notes(lines, scores.assign(content="mug_dev1", style="ink_dev1"))
    assert f"among {len(mw.DEVELOPMENT_SUBJECTS)} development subjects and" in note and "held-out" not in note
    [note] = headline.notes(lines, pd.concat([scores, scores.assign(content="mug_dev1")]))
    assert "48 held-out subjects or" in note and "and 38 held-out styles." in note


def test_row_names_concepts_that_its_merge_was_trained_on(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", "lora_rar", images=1)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert not any("was trained on" in note for note in Table.of([RunFolder.load(folder)]).notes)
    (folder / "manifest.json").write_text(json.dumps(manifest | {"trained_on": ["neon_1"]}))
    [note] = [note for note in Table.of([RunFolder.load(folder)]).notes if "was trained on" in note]
    assert note.startswith("lora_rar was trained on neon_1 of these pairs")


def test_shipped_network_of_lora_rar_names_what_it_was_trained_on() -> None:
    names = load("lora_rar").merge.trained_on()
    assert {"teapot_dev1", "neon_dev1"} < names
    assert names.isdisjoint({*mw.HELDOUT_SUBJECTS, *mw.HELDOUT_STYLES})
    assert load("direct").merge.trained_on() == frozenset()
