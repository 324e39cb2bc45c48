"""LoRA.rar: masks against the formula by column, any ranks and widths, and the hypernetwork's training."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import merges
import pandas as pd
import pytest
import torch
from conftest import CPU, random_lora
from hydra import compose
from test_koala import koala as koala
from test_merge import recolored
from test_resume import Killed, kill_at
from torch import Tensor

from lorabench.base import UserError
from lorabench.data.concepts import ROLES
from lorabench.data.pairs import Pair
from lorabench.engine.checkpoint import Checkpoint
from lorabench.engine.curves import Curves
from lorabench.lora.adapter import Factors, LoRA
from lorabench.merging.draws import Draws
from lorabench.merging.hypernetwork import KEY, Hypernetwork, about, load
from lorabench.merging.hypernetwork_training import Masked, Predict, held_out, train, zip_loss
from lorabench.merging.method import Method
from lorabench.merging.method import load as load_method
from lorabench.merging.methods.lora_rar import SHIPPED, is_masked
from lorabench.models.shapes import layer_map
from lorabench.tasks.hypernetwork import check_disjoint, run, training_pairs
from lorabench.tasks.rows import Row


def network(*widths: int, seed: int = 0) -> Hypernetwork:
    torch.manual_seed(seed)
    return Hypernetwork(widths)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Return a hypernetwork for the tiny model's width, with masks far from zero."""
    made = network(16)
    with torch.no_grad():
        made.last.bias.add_(torch.tensor([1.0, 0.5]))
    made.save(tmp_path / "tiny.safetensors", {"model": "tiny"})
    return tmp_path / "tiny.safetensors"


@pytest.fixture
def method(weights: Path) -> Method:
    return load_method("lora_rar", weights=str(weights))


def merged(model, method: Method, loras, pair: Pair) -> LoRA:
    return merges.merged(model, method, loras, pair).file


def dense(factors: Factors | None, like: Factors) -> Tensor:
    if factors is None:
        return torch.zeros(len(like.up), like.down.shape[1])
    return factors.up @ factors.down


def by_columns(path: Path, contents: Tensor, styles: Tensor) -> Tensor:
    """Return the merged update [out, in] of dense updates, column by column, from the tensors of the file."""
    from safetensors.torch import load_file

    tensors, out = load_file(path), torch.zeros_like(contents)
    width = len(contents)
    for j in range(contents.shape[1]):
        column = torch.cat([contents[:, j], styles[:, j]])
        hidden = (tensors[f"first.{width}.weight"] @ column + tensors[f"first.{width}.bias"]).clamp(min=0)
        m_c, m_s = tensors["last.weight"] @ hidden + tensors["last.bias"]
        out[:, j] = m_c * contents[:, j] + m_s * styles[:, j]
    return out


def check(lora: LoRA, path: Path, contents: list[LoRA], styles: list[LoRA]) -> None:
    everywhere = sorted({layer for each in (*contents, *styles) for layer in each})
    assert list(lora) == everywhere and {is_masked(layer) for layer in everywhere} == {True, False}
    for layer in everywhere:
        like = next(each[layer] for each in (*contents, *styles) if layer in each)
        c, s = (sum((dense(each.get(layer), like) for each in loras), torch.zeros(1)) for loras in (contents, styles))
        expected = by_columns(path, c, s) if is_masked(layer) else c + s
        torch.testing.assert_close(lora[layer].up @ lora[layer].down, expected, rtol=1e-5, atol=1e-5)
        assert lora[layer].rank == sum(each[layer].rank for each in (*contents, *styles) if layer in each)


def test_merge_is_formula_column_by_column(model, method, weights, loras, pair) -> None:
    check(merged(model, method, loras, pair), weights, [loras[0]], [loras[1]])


def test_layer_that_one_lora_leaves_alone(model, method, weights, loras, pair) -> None:
    content = LoRA({layer: each for layer, each in loras[0].items() if "up_blocks" in layer})
    style = LoRA({layer: each for layer, each in loras[1].items() if "down_blocks.2" not in layer})
    check(merged(model, method, (content, style), pair), weights, [content], [style])


def test_of_several_of_role_sum_counts(model, method, weights, loras, pair) -> None:
    from lorabench.data.pairs import pair as make_pair
    from lorabench.data.scenes import Prompts

    cat = replace(pair.contents[0], name="cat_1", word="cat")
    trio = make_pair((pair.contents[0], cat), pair.styles, Prompts())
    other = random_lora(model, 4, "cat")
    check(merged(model, method, (loras[0], other, loras[1]), trio), weights, [loras[0], other], [loras[1]])


def test_on_koala(koala, method, weights, pair) -> None:
    loras = random_lora(koala, 2, "content"), random_lora(koala, 3, "style")
    check(merged(koala, method, loras, pair), weights, [loras[0]], [loras[1]])


def test_masks_of_one_are_naive_sum(model, loras, pair, tmp_path: Path) -> None:
    made = network(16)
    torch.nn.init.zeros_(made.last.weight)
    torch.nn.init.ones_(made.last.bias)
    made.save(tmp_path / "ones.safetensors", {})
    ours = merged(model, load_method("lora_rar", weights=str(tmp_path / "ones.safetensors")), loras, pair)
    plain = merged(model, load_method("direct"), loras, pair)
    assert all(torch.equal(ours[layer].down, plain[layer].down) for layer in plain)


def test_its_size_on_sdxl_is_papers() -> None:
    layers = layer_map("sdxl").planned(4, ROLES)
    masked = [layer for name, layer in layers.items() if is_masked(name)]
    assert len(masked) == 280 and all(layer.in_features == layer.out_features for layer in masked)
    made = Hypernetwork(layer.out_features for layer in masked)
    assert sum(parameter.numel() for parameter in made.parameters()) == 492_034


# --- the file


def test_file_says_what_it_is(tmp_path: Path) -> None:
    made, path = network(8, 16), tmp_path / "a.safetensors"
    made.save(path, {"model": "tiny", "epochs": 3}, torch.float16)
    assert about(path) == {"kind": "lora_rar", "model": "tiny", "epochs": 3, "widths": [8, 16]}
    again = load(path)
    assert again.widths == [8, 16] and not any(each.requires_grad for each in again.parameters())
    for mine, theirs in zip(made.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    network(32).save(path, {})
    assert load(path).widths == [32]  # a changed file is read again


def test_what_is_shipped_fits_micro_model() -> None:
    path = SHIPPED / "micro.safetensors"
    known = about(path)
    layers = layer_map("micro").planned(16, ROLES)
    load_method("lora_rar").merge.check(layers)
    assert known["model"] == "micro" and path.stat().st_size < 300_000
    masks = load(path)([Factors(torch.randn(2, 96), torch.randn(96, 2))] * 2, ("content", "style"))
    assert [len(mask) for mask in masks] == [96, 96] and all(mask.isfinite().all() for mask in masks)


def wrong_weights(tmp_path: Path, kind: str) -> str:
    from safetensors.torch import save_file

    path = tmp_path / f"{kind}.safetensors"
    if kind == "pickle":
        torch.save({"first.16.weight": torch.ones(2)}, path)
    elif kind == "lora":
        save_file({"a.lora_A.weight": torch.ones(2, 2)}, path)
    elif kind == "torn":
        save_file({"last.bias": torch.ones(2)}, path, {KEY: json.dumps({"widths": [16]})})
    return str(path)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("absent", "method.weights=.*absent.* is unknown; use method.weights=<micro|a file of task=hypernetwork>"),
        ("pickle", "is not a safetensors file"),
        ("lora", "has no hypernetwork of LoRA.rar; use task=hypernetwork"),
        ("torn", "is an incomplete hypernetwork"),
    ],
)
def test_wrong_weights_are_refused_in_one_line(model, loras, pair, tmp_path: Path, kind: str, words: str) -> None:
    with pytest.raises(UserError, match=words.replace("|", r"\|")) as error:
        merged(model, load_method("lora_rar", weights=wrong_weights(tmp_path, kind)), loras, pair)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("known", [[96, 160], [640]])
def test_widths_that_are_lacking_are_named(tmp_path: Path, known: list[int]) -> None:
    path = tmp_path / "h.safetensors"
    network(*known).save(path, {})
    lacking = "640 and 1280" if 96 in known else "1280"
    message = (
        rf"knows layers of width {' and '.join(map(str, known))} and this model has {lacking}; use method.weights="
    )
    method = load_method("lora_rar", weights=str(path))
    with pytest.raises(UserError, match=message):
        method.merge.check(layer_map("sdxl").planned(4, ROLES))  # before any LoRA is trained


def test_what_file_holds_decides_and_not_its_name(pair, tmp_path: Path) -> None:
    def key(path: Path) -> Any:
        return Row.of("lora_rar", weights=str(path)).merge_key(pair)

    paths = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    for path in paths:
        network(16).save(path, {})
    assert key(paths[0]) == key(paths[1]) and str(tmp_path) not in str(key(paths[0]))
    network(16, seed=1).save(paths[1], {})
    assert key(paths[0]) != key(paths[1])


# --- its training


def trained(model, pair: Pair, loras, epochs: int, progress: Callable[[int], None] | None = None, scratch=None):
    pairs = [pair, recolored(pair, "cup_1")]
    known = {"mug_1": loras[0], "cup_1": random_lora(model, 3, "cup"), "halftone_1": loras[1]}
    curves = Curves()
    checkpoint = Checkpoint(scratch, 2, curves) if scratch else None
    return train(model, pairs, known, epochs, 0.01, zip_loss(0.01), 0, CPU, progress, checkpoint, curves), curves.values


def test_training_lowers_loss_on_its_pairs(model, loras, pair) -> None:
    before, _ = trained(model, pair, loras, 1)
    after, curves = trained(model, pair, loras, 12)
    assert set(curves) == {"content", "style", "similarity"} and len(curves["content"]) == 24  # two images an epoch

    def way(made: Hypernetwork) -> Predict:
        return lambda updates, layer: made(updates, layer.roles)

    found = held_out(model, pair, loras, {"before": way(before), "after": way(after)}, zip_loss(0.01), 8, 0)
    losses = {name: sum(terms.values()) for name, terms in found.items()}
    assert losses["after"] < 0.9 * losses["before"]
    assert all(type(model.denoiser.get_submodule(name)) is torch.nn.Linear for name in model.layers)


def test_resumed_is_same_bit_by_bit(model, loras, pair, tmp_path: Path) -> None:
    whole, curves = trained(model, pair, loras, 4)
    with pytest.raises(Killed):
        trained(model, pair, loras, 4, kill_at(5), tmp_path)
    steps: list[int] = []
    again, others = trained(model, pair, loras, 4, steps.append, tmp_path)
    assert steps == [5, 6, 7, 8] and others == curves
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_step_is_ziploras_of_merge_as_file(model, loras, pair, weights, method) -> None:
    """The loss with predicted masks equals that of the exported merge, and every network tensor has a gradient."""
    made = load(weights)
    predict = lambda updates, layer: made(updates, layer.roles)  # noqa: E731
    masked = Masked(model, Draws(model, pair, 3), loras)
    terms = masked.loss(zip_loss(0.01), predict, 0)
    step = masked.draws.step(0, 1, masked.adapters, masked.layers)
    targets = step.teachers()
    masked.close()
    with model.attach([merged(model, method, loras, pair)]):
        for k, role in enumerate(("content", "style")):
            ours = model.predict(step.images[k].x, step.t, step.images[k].prompt)
            torch.testing.assert_close((ours - targets[k]).square().mean(), terms[role], rtol=1e-4, atol=1e-7)
    learning = network(16)
    masked = Masked(model, Draws(model, pair, 3), loras)
    terms = masked.loss(zip_loss(0.01), lambda updates, layer: learning(updates, layer.roles), 0)
    torch.stack(list(terms.values())).sum().backward()
    masked.close()
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in learning.parameters())
    assert all(parameter.grad is None for parameter in model.unet.parameters())


# --- the task

SMALL = [
    "task=hypernetwork", "trainer.workers=0", "dataset.subjects=[mug_1]", "dataset.styles=[ink_1]", "lora.steps=1",
    "dataset.content_images=1", "dataset.style_images=2", "dataset.references=1",
    "task.subjects=[teapot_dev1,vase_dev1]", "task.styles=[neon_dev1]", "task.epochs=2", "task.draws=1",
]  # fmt: skip


def test_task_trains_checks_and_writes(tiny, hydra, tmp_path: Path, capsys) -> None:
    cfg = compose("config", [*tiny, *SMALL, f"output={tmp_path}"])
    folder = tmp_path / "run"
    folder.mkdir()
    run(cfg, folder)
    known = about(folder / "hypernetwork.safetensors")
    assert known["trained_on"] == {"content": ["teapot_dev1", "vase_dev1"], "style": ["neon_dev1"]}
    assert known["widths"] == [16]
    found = pd.read_csv(folder / "held_out.csv")
    assert set(found["pair"]) == {"mug_1+ink_1"} and len(found) == 3 * 3
    table = (folder / "hypernetwork.md").read_text()
    assert "predicted masks" in table and "16 rows through the denoiser, after" in table and "3 LoRAs" in table
    assert table in capsys.readouterr().out
    before = (folder / "hypernetwork.safetensors").read_bytes()
    run(cfg, folder)  # all of it is in the store
    assert (folder / "hypernetwork.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("dataset.subjects=[mug_1,teapot_dev1]", r"the dataset has teapot_dev1, .* leave it out of task\.subjects"),
        ("dataset.styles=[neon_dev1]", r"the dataset has neon_dev1, .* leave it out of task\.styles"),
        ("task.subjects=[lamp_4]", r"experiments=\w+ has lamp_4, .* leave it out of task\.subjects"),
        ("task.styles=[ink_1]", r"the dataset has ink_1"),
        ("task.subjects=[vase_dev1,vase_dev1]", r"list of different names; use task\.subjects="),
        ("task.styles=[]", r"use task\.styles="),
        ("task.subjects=[teapot_dev1+vase_dev1]", r"teapot_dev1\+vase_dev1\+neon_dev1 has several subjects"),
    ],
)
def test_what_is_held_out_is_not_trained_on(tiny, hydra, tmp_path: Path, override: str, words: str) -> None:
    cfg = compose("config", [*tiny, *SMALL, override, f"output={tmp_path}"])
    with pytest.raises(UserError, match=words):
        run(cfg, tmp_path)
    assert not list(tmp_path.glob("store/personalize/*"))


def test_default_training_is_new_to_every_experiment(hydra) -> None:
    from omegaconf import OmegaConf

    from lorabench.data.catalogue import load_pairs
    from lorabench.data.scenes import Prompts

    cfg = compose("config", ["task=hypernetwork"])
    values: dict[str, Any] = {key: OmegaConf.to_object(cfg[key]) for key in ("task", "dataset")}
    task, dataset = values["task"], values["dataset"]
    check_disjoint(training_pairs(task, dataset, Prompts()), load_pairs(dataset, Prompts()))
