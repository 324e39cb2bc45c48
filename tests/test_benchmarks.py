"""The benchmarks compare equal computations, and our steps have the documented passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import CPU, random_lora
from test_merge import recolored, short
from tiny_scorers import write_scorer
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import measure, merge_batch, merge_step, scoring, sequential
from benchmarks.contenders import EXTRA_DUOLORA, METHODS, Ours, Plain, builders, differences, total
from benchmarks.sequential import ColumnMasked, RankMasked
from benchmarks.sizes import plain_pair
from lorabench.lora.adapter import LoRA, in_basis
from lorabench.merging.draws import Draws
from lorabench.merging.learn import Merging
from lorabench.merging.merge import MergeEnvironment
from lorabench.merging.method import load
from lorabench.models.sdxl.denoiser_only import DenoiserOnly
from lorabench.scoring.description import KINDS, ScorerFiles

REFERENCES = {
    "ziplora": ({}, ColumnMasked, sequential.ziplora),
    "duolora_released": ({"shared_masks": False}, RankMasked, sequential.duolora_released),
}


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("bare", [False, True], ids=["pipeline", "denoiser_only"])
def test_reference_has_our_losses_and_gradients(model, loras, name, bare) -> None:
    overrides, layer, loss = REFERENCES[name]
    method: Any = load(name, **overrides).merge
    network = DenoiserOnly(model.unet) if bare else model
    far = differences(Ours(network, loras, method), Plain(network, loras, method, layer, loss))
    assert max(far.values()) < 1e-4


def test_step_of_ours_and_of_reference_move_masks_alike(model, loras) -> None:
    overrides, layer, loss = REFERENCES["ziplora"]
    method: Any = load("ziplora", **overrides).merge
    ours, plain = Ours(model, loras, method), Plain(model, loras, method, layer, loss)
    for contender in (ours, plain):
        contender.attach()
        for i in range(2):
            contender.run(i)
        contender.detach()
    vectors = [mask.only() for masks in ours.module.masks.values() for mask in masks]
    for mine, theirs in zip(vectors, plain.net.masks, strict=True):
        assert not torch.equal(mine, torch.ones_like(mine))
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-3)  # masks have moved by 0.02
    assert all(type(model.denoiser.get_submodule(name)) is torch.nn.Linear for name in model.layers)  # restored


class Forwards:
    """Record the rows of each forward pass with image, timestep, prompt, scales and masks."""

    def __init__(self, unet, layer):
        self.rows: list[list[tuple]] = []
        self.graphs: list[bool] = []
        self.layer = layer
        self.hook = unet.register_forward_pre_hook(self.see, with_kwargs=True)

    def see(self, _, inputs, options) -> None:
        x, t, prompts = inputs
        rows = zip(x, t, prompts, self.layer.scale.expand(len(x), -1), strict=True)
        self.rows.append([(self.layer.masked, *(tuple(each.flatten().tolist()) for each in row)) for row in rows])
        self.graphs.append(torch.is_grad_enabled())


@pytest.mark.parametrize(
    ("name", "forwards", "without", "with_gradient"),
    [("ziplora", 2, 2, 2), ("duolora", 3, 2, 6), ("duolora_released", 4, 6, 2)],
)
def test_step_makes_each_distinct_pass_once(model, loras, name, forwards, without, with_gradient) -> None:
    """Teachers are one forward pass without gradients, all masked rows are another one."""
    ours = Ours(model, loras, load(name).merge)
    ours.attach()
    seen = Forwards(model.unet, next(iter(ours.adapters.layers.values())))
    encoders = [part.register_forward_pre_hook(refuse) for part in (model.vae.encoder, model.pipeline.text_encoder)]
    ours.run(0)
    for hook in (seen.hook, *encoders):
        hook.remove()
    ours.detach()
    passes = [row for rows in seen.rows for row in rows]
    assert len(seen.rows) <= forwards and len(set(passes)) == len(passes)
    for graph, count in ((False, without), (True, with_gradient)):
        assert sum(len(rows) for rows, has in zip(seen.rows, seen.graphs, strict=True) if has is graph) == count
    masked = [graph for rows, graph in zip(seen.rows, seen.graphs, strict=True) if rows[0][0]]
    assert masked == [True]  # one forward pass for all masked rows
    assert min(map(len, seen.rows)) >= 2  # content and style share all forward passes


def refuse(*_: object) -> None:
    raise AssertionError("images and prompts are encoded once, before the first step")


class NewMatrices(TorchDispatchMode):
    """Record the shapes of all matrices that operations create, except views of frozen weights."""

    def __init__(self, unet, pairs: int = 1):
        super().__init__()
        self.frozen = {parameter.untyped_storage().data_ptr() for parameter in unet.parameters()}
        self.pairs, self.shapes = pairs, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else [made]:
            if not isinstance(each, torch.Tensor) or each.untyped_storage().data_ptr() in self.frozen:
                continue
            if each.ndim == 2 or (each.ndim == 3 and len(each) == self.pairs):
                self.shapes.add(tuple(each.shape[-2:]))
        return made


def dense_shapes(model) -> set[tuple[int, ...]]:
    shapes = {(layer.out_features, layer.in_features) for layer in model.layers.trained().values()}
    return shapes | {shape[::-1] for shape in shapes}


# With three images per concept and step, no activation [rows * tokens, width] has the shape of an update.
THREE: dict[str, Any] = {"steps": 1, "lr": 0.01, "batch": 3}


@pytest.mark.parametrize("name", ["ziplora", "ziprank", "duolora", "duolora_released"])
def test_no_step_forms_dense_update(model, loras, name) -> None:
    ours = Ours(model, loras, load(name, fit=THREE).merge)
    dense = dense_shapes(model)
    ours.attach()
    with NewMatrices(model.unet) as seen:
        ours.run(0)
    ours.detach()
    assert seen.shapes and not seen.shapes & dense


@pytest.mark.parametrize("name", ["ziplora", "duolora"])
def test_no_step_of_several_pairs_forms_dense_update(model, loras, pair, name) -> None:
    method: Any = load(name, fit=THREE).merge
    dense = dense_shapes(model)
    others = [random_lora(model, 3, "other"), random_lora(model, 2, "look")]
    rebased = [in_basis(each, method.basis) for each in (loras, others)]
    stacked = [LoRA.stack(alike) for alike in zip(*rebased, strict=True)]
    layers = model.layers.adapted(loras, pair.roles)
    starts = [method.masks(layers, seed) for seed in (0, 1)]
    pairs = [pair, recolored(pair, "cup_1")]
    draws = [Draws(model, each, seed) for seed, each in enumerate(pairs)]
    with model.attach(stacked) as adapters:
        module = Merging(adapters, layers, method, starts, pairs, draws)
        with NewMatrices(model.unet, pairs=2) as seen:
            total(module.loss(0)).backward()
    assert seen.shapes and not seen.shapes & dense


@pytest.mark.parametrize("name", REFERENCES)
def test_reference_forms_dense_updates(model, loras, name) -> None:
    """This shows that the tests above would detect a dense update."""
    overrides, layer, loss = REFERENCES[name]
    plain = Plain(model, loras, load(name, fit=THREE, **overrides).merge, layer, loss)
    plain.attach()
    with NewMatrices(model.unet) as seen:
        plain.run(0)
    plain.detach()
    assert dense_shapes(model) <= seen.shapes | {shape[::-1] for shape in seen.shapes}


def test_extra_passes_are_those_between_steps(model, loras) -> None:
    made = builders(model, loras)
    counts = {}
    for name in ("ZipLoRA", "DuoLoRA", EXTRA_DUOLORA):
        contender = made[name]()
        contender.attach()
        contender.prepare(0)
        rows: list[int] = []
        hook = model.unet.register_forward_pre_hook(lambda _, inputs, rows=rows: rows.append(len(inputs[0])))
        contender.run(0)
        hook.remove()
        contender.detach()
        counts[name] = sum(rows)
    assert counts["ZipLoRA"] + counts[EXTRA_DUOLORA] == counts["DuoLoRA"]


def test_merges_in_batch_are_those_alone(model) -> None:
    items = [merge_batch.item(model, str(number)) for number in range(2)]
    assert (
        merge_batch.difference(short("duolora").merge, MergeEnvironment(model.layers, model, 0, CPU), items)
        < merge_batch.TOLERANCE
    )


def test_what_is_measured() -> None:
    cpu = torch.device("cpu")
    assert measure.gigaflops(lambda: torch.ones(100, 200) @ torch.ones(200, 300)) == pytest.approx(0.012)
    assert measure.ratio([2.0, 9.0, 4.0], [1.0, 3.0, 2.0]) == 2.0
    order: list[tuple[str, int]] = []

    def run(name: str, i: int) -> float:
        order.append((name, i))
        return float(i)

    runs = {"a": lambda i: run("a", i), "b": lambda i: run("b", i)}
    assert measure.interleaved(runs, 2) == {"a": [1.0, 2.0], "b": [1.0, 2.0]}
    assert order == [(name, i) for i in range(3) for name in "ab"]
    memory = measure.Peak(cpu)
    memory.start()
    torch.ones(50 * 2**18)  # freed immediately; only the peak matters
    found = memory.mib()
    assert found is None or 49 < found < 60


def test_goals_compare_what_they_name() -> None:
    names = [*METHODS, *merge_step.EXTRAS.values()]
    times = {name: [1.0] for name in names} | {"reference ZipLoRA": [3.5], "DuoLoRA": [2.5]}
    memory = dict.fromkeys(METHODS, 40.0) | {"reference ZipLoRA": 100.0}
    zipped, memories, duo, slower, *_ = merge_step.goals(times, memory, {})
    assert (zipped["value"], zipped["met"]) == (3.5, True) and (memories["value"], memories["met"]) == (0.4, True)
    assert (duo["value"], duo["met"]) == (1.25, False) and slower["met"]


def test_every_pair_of_batch_is_another() -> None:
    assert len({tuple(each.sha256 for each in plain_pair(str(i)).contents[0].images) for i in range(8)}) == 8


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Score four folders of two tiny images with both implementations."""
    root = tmp_path_factory.mktemp("scoring")
    files = {kind: ScorerFiles.of(write_scorer(root / kind, kind)) for kind in KINDS}
    sizes = ["--side", "40", "--contents", "2", "--methods", "1", "--references", "3"]
    bench = scoring.Bench(root / "folders", files, 2, scoring.parsed(sizes))
    return bench, *bench.plain()


def test_scoring_computes_what_scripts_do(scored) -> None:
    bench, plain, parts = scored
    rows, _ = bench.ours()
    assert len(plain) == 4 and bench.difference(rows, plain) < 1e-5
    name = next(iter(plain))
    assert {metric: tuple(values.shape) for metric, values in plain[name].items()} == {
        "dino/content": (2, 3), "clip_i/style": (2, 1), "clip_t": (2, 1), "csd/style": (2, 1),
    }  # fmt: skip
    rows[name].loc[rows[name]["metric"] == "csd/style", "value"] += 0.01  # a difference is detected
    assert bench.difference(rows, plain) == pytest.approx(0.01, abs=1e-3)
    rows[name] = rows[name].query("metric != 'csd/style' or image != 0")
    assert bench.difference(rows, plain) == float("inf")
    assert {part.split(",")[0] for part in parts} == set(scoring.PARTS)


def test_scripts_load_and_embed_anew_for_every_folder_and_we_once(scored, monkeypatch) -> None:
    from benchmarks import folder_scripts
    from lorabench.scoring.scorer import Scorer

    bench, embedded, built = scored[0], [], []
    cut = Scorer.embed_cut
    monkeypatch.setattr(Scorer, "embed_cut", lambda self, *args: embedded.append(len(args[0])) or cut(self, *args))
    bench.ours()
    assert sum(embedded) == 3 * (4 * 2 + 2 * 3 + 2 * 1)  # scorers x (images, references of both contents and styles)
    load = folder_scripts.FolderScripts.load
    monkeypatch.setattr(folder_scripts.FolderScripts, "load", lambda self, kind: built.append(kind) or load(self, kind))
    bench.plain()
    assert sorted(built) == sorted(["dino", "clip", "clip", "csd"] * 4)
