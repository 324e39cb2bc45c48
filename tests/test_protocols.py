"""Protocols: known results for hand-written scores, for each average and each printed column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from made_run import make_run, read_table

from lorabench.base import CONF, UserError
from lorabench.config.checks import check_protocol
from lorabench.config.schemas import ColumnSpec, ProtocolSpec
from lorabench.report import protocols, stats, write_joint_report, write_report
from lorabench.report.__main__ import main
from lorabench.report.folder import RunFolder
from lorabench.report.protocols import Column
from lorabench.report.table import Table

# (content, style, prompt, image) -> value by reference. c1 has two references, c2 has one reference and two prompts.
VALUES = {
    ("c1", "s1", "p", 0): [0.2, 0.4],
    ("c1", "s1", "p", 1): [0.4, 0.6],
    ("c1", "s2", "p", 0): [0.6, 0.8],
    ("c2", "s1", "p", 0): [0.1],
    ("c2", "s1", "q", 0): [0.3],
    ("c2", "s1", "q", 1): [0.5],
}
PAIR = (0.4 + 0.7 + 0.25) / 3  # pairs: mean(.3, .5), .7, mean(.1, mean(.3, .5))
BY_CONTENT = (np.mean([0.4, 0.7]) + 0.25) / 2
BY_STYLE = (np.mean([0.4, 0.25]) + 0.7) / 2
MICRO = 3.9 / 9
RULES = {"pair": PAIR, "content": BY_CONTENT, "style": BY_STYLE, "micro": MICRO}


def table(metric: str, backbone: str, add: float = 0.0, method: str = "direct") -> pd.DataFrame:
    rows = [
        {
            "dataset": "d", "world": "", "content": content, "style": style, "prompt": prompt, "seed": image,
            "image": image, "method": method, "ablation": "none", "model": "m", "metric": metric, "backbone": backbone,
            "reference": f"r{number}", "value": value + add,
        }
        for (content, style, prompt, image), values in VALUES.items() for number, value in enumerate(values)
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(label=method)


def mean_of(scores: pd.DataFrame, **spec: Any) -> float:
    column = Column(ColumnSpec("x", **spec), spec["backbone"])
    return stats.mean(protocols.image_values(scores, column), *column.rule).mean


@pytest.mark.parametrize(
    ("metric", "spec", "expected"),
    [
        ("dino/content", {}, PAIR),
        ("dino/content", {"average": "macro"}, BY_CONTENT),
        ("clip_i/style", {"average": "macro"}, BY_STYLE),
        ("clip_t/prompt", {"average": "macro"}, BY_CONTENT),
        ("dino/content", {"average": "micro"}, MICRO),
        ("dino/content", {"references": "max"}, (0.5 + 0.8 + 0.25) / 3),
        ("dino/content", {"references": "first"}, (0.3 + 0.6 + 0.25) / 3),
        ("dino/content", {"references": "max", "average": "micro"}, (0.4 + 0.6 + 0.8 + 0.1 + 0.3 + 0.5) / 6),
        ("dino/content", {"scale": 100.0}, 100 * PAIR),
    ],
)
def test_every_average_on_hand_made_table(metric: str, spec: dict, expected: float) -> None:
    scores = table(metric, "b")
    assert mean_of(scores, metric=metric, backbone="b", **spec) == pytest.approx(expected, abs=1e-12)
    mixed = pd.concat([scores, table(metric, "other", 0.3), table("other", "b", 0.3)])
    assert mean_of(mixed, metric=metric, backbone="b", **spec) == pytest.approx(expected, abs=1e-12)


def test_clipscore_is_cut_at_zero_before_it_is_scaled() -> None:
    low = table("clip_t", "b", -0.35)
    values = [max(0.0, value - 0.35) for value in (0.1, 0.3, 0.5)]
    pairs = [(0.025 + 0.15) / 2, 0.35, (values[0] + (values[1] + values[2]) / 2) / 2]
    expected = 2.5 * sum(pairs) / 3
    assert mean_of(low, metric="clip_t", backbone="b", scale=2.5, floor=0.0) == pytest.approx(expected, abs=1e-12)


def test_product_is_one_of_each_image() -> None:
    scores = pd.concat([table("clip_i/content", "b"), table("clip_i/style", "b", 0.1)])
    images = {of: float(np.mean(values) * (np.mean(values) + 0.1)) for of, values in VALUES.items()}
    pairs = [
        (images["c1", "s1", "p", 0] + images["c1", "s1", "p", 1]) / 2, images["c1", "s2", "p", 0],
        (images["c2", "s1", "p", 0] + (images["c2", "s1", "q", 0] + images["c2", "s1", "q", 1]) / 2) / 2,
    ]  # fmt: skip
    found = mean_of(scores, metric="clip_i/content", times="clip_i/style", backbone="b")
    assert found == pytest.approx(np.mean(pairs), abs=1e-12)


# Definition of each printed column: metric, backbone, average (macro by its object), scale.
S16, S8, B8, V2 = "dino@vits16", "dino@vits8", "dino@vitb8", "dinov2@vits14"
B32, CSD = "clip@vitb32", "csd@vitl14"
EXPECTED = {
    "dreambooth": {
        "DINO": ("dino/content", S16, "content", 1), "CLIP-I": ("clip_i/content", B32, "content", 1),
        "CLIP-T": ("clip_t/prompt", B32, "content", 1),
    },
    "ziplora": {
        "Style-alignment": ("clip_i/style", B32, "style", 1), "Subject-alignment": ("dino/content", S16, "content", 1),
        "Text-alignment": ("clip_t", B32, "content", 1),
    },
    "duolora": {
        "DINO": ("dino/content", S16, "content", 1), "CLIP-I": ("clip_i/style", B32, "style", 1),
        "CLIP-T": ("clip_t/prompt", B32, "content", 1), "CSD-s": ("csd/style", CSD, "style", 1),
    },
    "klora": {
        "Style Sim": ("clip_i/style", B32, "pair", 100), "CLIP Score": ("clip_i/content", B32, "pair", 100),
        "DINO Score": ("dino/content", S16, "pair", 100),
    },
    "blora": {
        "Style alignment": ("dino/style", B8, "pair", 1), "Content alignment": ("dino/content", B8, "pair", 1),
    },
    "unziplora": {
        "Style (CLIP-I)": ("style clip_i/style", B32, "pair", 1),
        "Content (DINO)": ("content dino/content", S16, "pair", 1),
        "Style (CSD)": ("style csd/style", CSD, "pair", 1), "Content (CSD)": ("content csd/content", CSD, "pair", 1),
    },
    "craft": {"Content Sim.": ("clip_i/content", B32, "pair", 1), "Style Sim.": ("clip_i/style", B32, "pair", 1)},
    "dreambench_pp": {"CLIP-T": ("clip_t", B32, "micro", 100)},
}  # fmt: skip
SCORED = [
    ("dino/content", S16), ("dino/content", S8), ("dino/content", B8), ("dino/style", S16), ("dino/style", B8),
    ("dino/content", V2), ("clip_i/content", B32), ("clip_i/style", B32), ("clip_i/content", "clip@vitl14"),
    ("clip_t", B32), ("clip_t/prompt", B32), ("csd/style", CSD), ("csd/content", CSD),
]  # fmt: skip
OFFSETS = {of: 0.01 * number for number, of in enumerate(SCORED)}
EVERYTHING = pd.concat([table(*of, add) for of, add in OFFSETS.items()], ignore_index=True)
USED = {
    (f"{use} {metric}", backbone): 0.3 + 0.01 * number
    for number, (use, metric, backbone) in enumerate(
        [("style", "clip_i/style", B32), ("content", "dino/content", S16), ("style", "csd/style", CSD),
         ("content", "csd/content", CSD)]
    )
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_which_score_each_printed_column_is(name: str) -> None:
    scores = pd.concat([EVERYTHING, *(table(*of, add) for of, add in USED.items())], ignore_index=True)
    columns, notes = protocols.columns(protocols.load_protocol(name), scores)
    found = {c.name: stats.mean(protocols.image_values(scores, c), *c.rule).mean for c in columns}
    for printed, (metric, backbone, rule, scale) in EXPECTED[name].items():
        offset = (OFFSETS | USED)[metric, backbone]
        assert found[printed] == pytest.approx(scale * (RULES[rule] + offset)), printed
    assert len(notes) == 1 and notes[0].startswith(f"Columns of protocol={name} (arXiv ")


def test_dreambench_pp_scores_against_one_image() -> None:
    columns, _ = protocols.columns(protocols.load_protocol("dreambench_pp"), EVERYTHING)
    first = np.mean([values[0] for values in VALUES.values()])
    expected = {"DINOv1": ("dino/content", S8), "DINOv2": ("dino/content", V2), "CLIP-I": ("clip_i/content", B32)}
    for column in columns[:3]:
        found = stats.mean(protocols.image_values(EVERYTHING, column), *column.rule).mean
        assert found == pytest.approx(100 * (first + OFFSETS[expected[column.name]]))


def test_every_protocol_has_its_test_and_source() -> None:
    names = {file.stem for file in (CONF / "protocol").glob("*.yaml")}
    assert names == {*EXPECTED, "all", "headline", "single_image"}  # these three are ours
    for name in EXPECTED:
        assert (CONF / "protocol" / f"{name}.yaml").read_text().startswith("#")
        assert protocols.load_protocol(name).name == name and protocols.load_protocol(name).arxiv


def test_weights_are_drawn_with_their_pairs() -> None:
    """A weighted bootstrap resamples each pair together with its weight."""
    values, weights = np.random.default_rng(0).normal(size=12), np.array([1.0] * 6 + [3.0] * 6)
    at = stats.interval(values, weights)
    assert at.mean == pytest.approx(np.mean([*values[:6], *np.repeat(values[6:], 3)]))
    rng = np.random.default_rng(1)
    draws = rng.integers(0, 12, (20000, 12))
    means = (values[draws] * weights[draws]).sum(1) / weights[draws].sum(1)
    assert (at.low, at.high) == pytest.approx(tuple(np.quantile(means, [0.0125, 0.9875])), abs=0.05)
    assert stats.interval(values, np.full(12, 0.5)) == stats.interval(values)


def test_paired_differences_hold_for_every_average() -> None:
    a, b = table("dino/content", "b", 0.05), table("dino/content", "b")
    for average in ("pair", "macro", "micro"):
        column = Column(ColumnSpec("x", "dino/content", "b", average=average, scale=100.0), "b")
        one, other = (protocols.image_values(each, column) for each in (a, b))
        delta = stats.difference(one, other, *column.rule)
        assert [delta.mean, delta.low, delta.high] == pytest.approx([5.0] * 3)


# --- missing and replaced backbones


def test_micro_scorers_stand_in_and_say_so() -> None:
    micro = EVERYTHING[EVERYTHING["backbone"].isin([S16, B32, CSD])].replace("@.*", "@micro", regex=True)
    assert isinstance(micro, pd.DataFrame)
    columns, notes = protocols.columns(protocols.load_protocol("duolora"), micro)
    assert [column.backbone for column in columns] == ["dino@micro", "clip@micro", "clip@micro", "csd@micro"]
    assert notes[1].startswith("Replaced backbones: dino@micro for dino@vits16, clip@micro for clip@vitb32, ")


def test_another_real_backbone_never_stands_in() -> None:
    other = EVERYTHING.loc[~EVERYTHING["backbone"].isin([S16, CSD])]
    columns, notes = protocols.columns(protocols.load_protocol("duolora"), other)
    assert [column.name for column in columns] == ["CLIP-I", "CLIP-T"]
    here = ",".join(other["backbone"].unique())
    assert notes[1] == (
        f"Missing: DINO, CSD-s; to add them run again with scorers.backbones=[{here},dino@vits16,csd@vitl14]."
    )
    with pytest.raises(UserError, match=r"run again with scorers\.backbones=\[.*,dino@vitb8\]") as error:
        protocols.columns(protocols.load_protocol("blora"), other.loc[other["backbone"] != B8])
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="did you mean duolora"):
        protocols.load_protocol("duolra")


def test_protocol_without_its_backbones_is_refused_before_run() -> None:
    duolora = yaml.safe_load((CONF / "protocol" / "duolora.yaml").read_text())
    duolora["columns"] = [
        {"references": "mean", "average": "pair", "use": "joint"} | column for column in duolora["columns"]
    ]
    real = {"path": None, "backbones": ["dino@vits16", "clip@vitb32", "csd@vitl14"]}
    check_protocol(duolora, real)
    check_protocol(duolora, {"path": "micro", "backbones": []})  # micro scorers replace them
    with pytest.raises(UserError, match=r"needs csd@vitl14 too; use scorers.backbones=\[dino@vits16,clip@vitb32,csd@"):
        check_protocol(duolora, real | {"backbones": real["backbones"][:2]})
    duolora["columns"][0]["average"] = "median"
    with pytest.raises(UserError, match="average=median is unknown"):
        check_protocol(duolora, real)


def test_all_metrics_name_backbone_where_there_are_several() -> None:
    columns, notes = protocols.columns(protocols.ALL, EVERYTHING)
    names = [column.name for column in columns]
    assert notes == [] and names[:4] == [f"dino/content {backbone}" for backbone in (S16, S8, B8, V2)]
    assert "clip_t" in names and "csd/style" in names
    assert not {"clip_t/prompt", "dino/style"} & {column.spec.metric for column in columns}


def test_protocol_is_read_from_run_s_config() -> None:
    own = {"name": "mine", "arxiv": None, "columns": [{"name": "D", "metric": "dino/content", "backbone": "b"}]}
    assert protocols.of_config(yaml.safe_dump({"protocol": own})) == ProtocolSpec(
        "mine", None, [ColumnSpec("D", "dino/content", "b")]
    )
    for config in ("", "[", "protocol: 3", "protocol: {name: x, colums: []}", "a: b"):
        assert protocols.of_config(config) == protocols.ALL


# --- reports


def with_protocol(folder: Path, name: str) -> Path:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    chosen = yaml.safe_load((CONF / "protocol" / f"{name}.yaml").read_text())
    chosen.pop("defaults")
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"protocol": chosen}))
    return folder


def test_report_changes_its_protocol_afterwards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = with_protocol(make_run(tmp_path / "run"), "ziplora")
    write_report(folder)
    printed = ["Style-alignment", "Subject-alignment", "Text-alignment"]
    assert [name for name in read_table(folder) if name in printed] == printed
    assert "dino@micro for dino@vits16" in (folder / "table.md").read_text()
    assert "Text-alignment" in (folder / "report.html").read_text()

    assert main([str(folder), "--protocol", "klora"]) == 0
    klora = read_table(folder)
    assert main([str(folder), "--protocol", "all"]) == 0
    plain = read_table(folder)
    assert klora["Style Sim"].tolist() == pytest.approx((100 * plain["clip_i/style"]).tolist(), rel=1e-4)
    assert "protocol=" not in (folder / "table.md").read_text()
    capsys.readouterr()
    assert main([str(folder), "--protocol", "blora"]) == 0  # scores exist for one of its two columns
    text = (folder / "table.md").read_text()
    assert "Missing: Style alignment; to add them run again with scorers.backbones=[dino@vitb8]." in text
    assert main([str(folder), "--protocol", "nothing"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_percent_has_one_digit(tmp_path: Path) -> None:
    folder = with_protocol(make_run(tmp_path / "run"), "klora")
    write_report(folder)
    row = next(line for line in (folder / "table.md").read_text().splitlines() if line.startswith("| duolora"))
    assert all(
        len(number.split(".")[1]) == 1 for number in row.split("|")[2].strip(" ]").replace(" [", ", ").split(", ")
    )


def test_two_backbones_of_metric_are_not_mixed(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    scores = pd.read_parquet(folder / "scores.parquet")
    dino = scores[scores["metric"] == "dino/content"]
    other = dino.assign(backbone="dino@vitb8", value=dino["value"] + 0.2)
    pd.concat([scores, other]).to_parquet(folder / "scores.parquet")
    write_report(folder)
    table = read_table(folder)
    assert table["dino/content dino@vitb8"].tolist() == pytest.approx(
        (table["dino/content dino@micro"] + 0.2).tolist(), abs=1e-5
    )
    assert "dino/content" not in table
    picture = RunFolder.load(folder).pictures[0].values
    assert picture["dino/content dino@vitb8"] == pytest.approx(picture["dino/content dino@micro"] + 0.2)
    write_joint_report([folder, make_run(tmp_path / "direct", "direct")], tmp_path / "joint")  # they share one backbone
    joint = read_table(tmp_path / "joint")
    assert len(joint["dino/content dino@vitb8"].dropna()) == 5
    assert len(joint["dino/content dino@micro"].dropna()) == len(joint) == 6


def test_paper_s_numbers_stand_in_its_own_columns_alone(tmp_path: Path) -> None:
    runs = [RunFolder.load(make_run(tmp_path / method, method)) for method in ("ziplora", "klora")]
    reported = {
        name: [own.values for own in Table.of(runs, protocols.load_protocol(name)).reported.get("ziplora", [])]
        for name in ("all", "ziplora", "duolora", "klora")
    }
    assert len(reported["all"]) == 3  # two tables of ZipLoRA and one of K-LoRA
    with pytest.raises(UserError, match=r"run again with uses=\[content,style\]"):
        Table.of(runs, protocols.load_protocol("unziplora"))
    assert reported["ziplora"][0] == {"Style-alignment": 0.699, "Subject-alignment": 0.42, "Text-alignment": 0.303}
    assert reported["duolora"] == [{"DINO": 0.53, "CLIP-I": 0.65}]  # these runs have no clip_t/prompt
    assert reported["klora"] == [{name: pytest.approx(value) for name, value in zip(
        ("Style Sim", "DINO Score"), (60.4, 35.7), strict=True)}]  # fmt: skip
