"""CRAFT-LoRA's training: layer sets, the rank-limited backbone, contrastive pairs, and a whole run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Commands
from conftest import CPU
from merges import trained
from PIL import Image

from lorabench.base import UserError, seed_of
from lorabench.config.dataset_schemas import FolderSpec
from lorabench.config.schemas import GenerateSpec
from lorabench.data import microworld as mw
from lorabench.lora.adapter import Adapter
from lorabench.lora.factors import Factors
from lorabench.lora.projection import output_basis
from lorabench.merging.method import load
from lorabench.models.shapes import layer_map
from lorabench.personalization.backbone import BackboneSpec
from lorabench.personalization.contrastive import contrastive
from lorabench.personalization.dreambooth import personalize
from lorabench.personalization.frequency import RenderJob, dct, matched, rendered, substituted
from lorabench.personalization.training import BACKBONE, Environment
from lorabench.sampling.generate import generate
from lorabench.tasks.user_loras import UserLoRA, UserPair

SMALL = {"contents": 2, "styles": 2, "steps": 2, "batch": 1}
LIST = "{content: [mid_block], style: [up_blocks.1]}"


def craft(*arguments: str, **settings) -> Any:
    return load("craft", *arguments, **settings).training


def spec(**changes) -> BackboneSpec:
    return replace(craft().backbone, **changes)


def test_ranks_fall_along_forward_pass_of_sdxl() -> None:
    layers = layer_map("sdxl")
    ranks = spec(r_max=128, r_min=4, most=None).ranks(layers)
    values = list(ranks.values())
    assert list(ranks) == list(layers.trained()) and len(ranks) == 560
    assert values[0] == 128 and values[-1] == 4 and values == sorted(values, reverse=True)
    assert next(iter(ranks)).startswith("down_blocks.1") and list(ranks)[-1].startswith("up_blocks.1")
    capped = spec(r_max=128, r_min=4, most=0.1).ranks(layers)
    assert max(capped.values()) == 121 and capped[next(iter(ranks))] == 64
    with pytest.raises(UserError, match=r"r_min=9 must be at most method.backbone.r_max=8"):
        spec(r_max=8, r_min=9).ranks(layers)


@pytest.mark.parametrize("ablation", ["none", "table4_layers", "blora_layers", "measured_layers"])
def test_layer_sets_are_disjoint_and_present_on_sdxl(ablation: str, pair, lora_spec, capsys) -> None:
    layers = layer_map("sdxl")
    jobs = [output.job for output in craft(ablation).outputs(pair, lora_spec)]
    content, style = (set(job.ranks(layers)) for job in jobs)
    assert content and style and not content & style
    if ablation == "none":
        assert (len(content), len(style)) == (192, 128)
    if ablation == "table4_layers":
        assert (len(content), len(style)) == (256, 16)
        assert jobs[0].present(layers)[-1] == "up_blocks.1.attentions.0"


def test_sets_without_layers_and_with_common_layers_are_refused(pair, lora_spec) -> None:
    sets = {"content": ["mid_block"], "style": ["up_blocks.7"]}
    job = craft(layer_sets=sets).outputs(pair, lora_spec)[1].job
    with pytest.raises(UserError, match=r"the style set of method.layer_sets \(up_blocks.7\) has no layer of lora"):
        job.ranks(layer_map("sdxl"))
    with pytest.raises(UserError, match=r"method.layer_sets gives mid_block.attentions.0.* to both roles"):
        craft(layer_sets={"content": ["mid_block"], "style": ["mid_block.attentions.0"]}).check(
            layer_map("sdxl"), lora_spec
        )
    with pytest.raises(UserError, match=r"method.layer_sets=nope"):
        load("craft", layer_sets="nope")


def test_adapters_are_trained_in_their_layers_on_backbone(model, pair, lora_spec) -> None:
    training = craft(backbone=SMALL, layer_sets={"content": ["mid_block"], "style": ["up_blocks.1"]})
    jobs = [output.job for output in training.outputs(pair, lora_spec)]
    assert jobs[0].backbone == jobs[1].backbone and jobs[0].concept.images == pair.contents[0].images[:1]
    env = Environment(0, CPU)
    found = trained(jobs[0], model, env)["lora"]
    assert set(found) == {name for name in model.layers.trained() if name.startswith("mid_block")}
    backbone = jobs[0].backbone.run(model, env)[BACKBONE]
    with model.changed(backbone):
        expected = personalize(model, jobs[0].concept, replace(lora_spec, blocks=["mid_block"]), env)
    plain = personalize(model, jobs[0].concept, replace(lora_spec, blocks=["mid_block"]), env)
    assert all(torch.equal(each.up, expected[name].up) for name, each in found.items())
    assert any(not torch.equal(each.up, plain[name].up) for name, each in found.items())
    free = craft("no_rank_limit").outputs(pair, lora_spec)[0].job
    assert free.backbone is None


def test_backbone_removes_both_subspaces(model, pair, lora_spec, tmp_path: Path) -> None:
    training = craft(backbone=SMALL | {"r_max": 2, "r_min": 1, "most": 0.4})
    job = training.outputs(pair, lora_spec)[0].job.backbone
    backbone = job.run(model, Environment(0, CPU, folder=tmp_path))[BACKBONE]
    content, style = (Adapter.load(tmp_path / f"{role}.safetensors") for role in ("content", "style"))
    assert set(backbone) == set(model.layers.trained())
    for name, factors in backbone.items():
        weight = model.denoiser.get_submodule(name).weight.double()
        union = torch.cat([output_basis(content[name]), output_basis(style[name])], 1)
        projector = union @ torch.linalg.pinv(union)
        found = weight + factors.up.double() @ factors.down.double()
        torch.testing.assert_close(found, weight - projector @ weight, rtol=1e-5, atol=1e-5)
    assert job.learned(backbone) == sum(each.up.numel() for each in backbone.values())


def test_true_pairs_fix_one_factor_and_leave_benchmark_out() -> None:
    found = contrastive(10, 10, True, None)
    assert len(found.images) == len(found.styled) == 100
    assert all("sks" not in image.prompt and " in " in image.prompt for image in (*found.images, *found.styled))
    first, second = (np.asarray(found.images[i].load(), dtype=float) for i in (0, 1))
    assert first.shape == (64, 64, 3) and np.abs(first - second).mean() > 2  # one subject in two styles
    again = contrastive.__wrapped__(10, 10, True, None)
    assert again.identity() == found.identity()
    assert len({image.sha256 for image in (*found.images, *found.styled)}) == 200
    assert not any(name in mw.HELDOUT_SUBJECTS for name in mw.DEVELOPMENT_SUBJECTS)
    with pytest.raises(UserError, match=r"method.backbone.contents=99 must be at most 24"):
        contrastive(99, 1, True, None)


def test_band_substitution_is_orthonormal() -> None:
    rows = dct(8)
    torch.testing.assert_close(rows @ rows.T, torch.eye(8), rtol=1e-5, atol=1e-5)
    x = torch.arange(8) + 0.5
    torch.testing.assert_close(rows[3] / rows[3].norm(), torch.cos(torch.pi * x * 3 / 8) / 2, rtol=1e-5, atol=1e-5)
    draw = torch.Generator().manual_seed(0)
    low, high = torch.randn(2, 40, 4, 8, 8, generator=draw)
    torch.testing.assert_close(substituted(low, high, 2.0), low, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(substituted(low, high, -1.0), high, rtol=1e-4, atol=1e-5)
    mixed = substituted(low, high, 0.35)
    assert 0.95 < mixed.var() < 1.05  # white noise stays white
    torch.testing.assert_close(substituted(mixed, low, 0.35), low, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(substituted(high, mixed, 0.35), high, rtol=1e-4, atol=1e-5)
    like = matched(high, low)
    torch.testing.assert_close(like.mean((-2, -1)), low.mean((-2, -1)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(like.std((-2, -1)), low.std((-2, -1)), rtol=1e-4, atol=1e-5)


def test_rendered_pairs_train_backbone(model, pair, lora_spec, tmp_path: Path) -> None:
    training = craft(pairs="rendered", backbone=SMALL)
    render = replace(training.render, steps=4, share=1.0, batch=3, match_color=False)
    job = RenderJob(contrastive(2, 2, False, None), lora_spec, "pairs", render)
    assert job.run(model, Environment(0, CPU, folder=tmp_path)) == {}
    entries = json.loads((tmp_path / "pairs.json").read_text())
    assert len(entries) == job.steps == 8 and len({entry["seed"] for entry in entries}) == 8
    assert {entry["prompt"] for entry in entries} == {image.prompt for image in contrastive(2, 2, True, None).images}
    content, style = rendered(tmp_path)
    assert len(content) == len(style) == 4 and content[0].load().size == (64, 64)
    backbone = training.outputs(pair, lora_spec)[0].job.backbone
    assert backbone.needs[0].params["render"]["cutoff"] == 0.35
    assert set(backbone.run(model, Environment(0, CPU, needed=[tmp_path]))[BACKBONE]) == set(model.layers.trained())


def test_photographs_need_references() -> None:
    with pytest.raises(UserError, match=r"method.pairs=truth has no images outside the microworld"):
        craft().check_dataset(FolderSpec(name="folder"))
    craft("no_rank_limit").check_dataset(FolderSpec(name="folder"))
    craft("rendered_pairs", references="m.yaml").check_dataset(FolderSpec(name="folder"))


def test_whole_run_shares_backbone_and_exports_it(commands: Commands, tiny: list[str], tmp_path: Path, model) -> None:
    """The file of a merge holds the change of the base weights, so that it gives the images of the run."""
    small = [f"method.backbone.{key}={value}" for key, value in SMALL.items()]
    result = commands.run(
        "method=craft", "method/sampling=plain", f"method.layer_sets={LIST}", *small, *tiny, f"output={tmp_path}",
        "dataset.subjects=[mug_1,cat_1]", "dataset.styles=[ink_1]",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    [backbone] = (tmp_path / "store" / "backbone").iterdir()
    keys = [Adapter.load(file).backbone for file in (tmp_path / "store" / "personalize").glob("*/lora.safetensors")]
    assert keys.count(backbone.name) == 3 and keys.count(None) == 3  # those of craft, and of the baselines
    [folder] = tmp_path.glob("adhoc/craft+sampling.plain*")
    merged = Adapter.load(folder / "merged" / "mug_1+ink_1.safetensors")
    assert merged.backbone is None and set(merged) == set(model.layers.trained())
    prompt = "a sks mug in szn style"
    seeds = [seed_of("image", "mug_1", "ink_1", prompt, i, 0) for i in range(2)]
    images = generate(model, [merged], [prompt] * 2, seeds, GenerateSpec(2, 2, 3.0, 8), CPU)
    shown = folder / "images" / "craft+sampling.plain" / "mug_1+ink_1"
    for index, image in enumerate(images):
        stored = np.asarray(Image.open(shown / f"{index:02d}.png")).astype(int)
        assert np.abs(stored - image.astype(int)).max() <= 1


def test_files_that_need_backbone_are_refused() -> None:
    factors = Factors(torch.ones(1, 4), torch.ones(4, 1))
    own = UserPair((UserLoRA("a.safetensors"),), (UserLoRA("b.safetensors"),))
    with pytest.raises(UserError, match=r"trained on changed base weights \(key\).*; use the files in merged/"):
        own.check_parts([Adapter({"a": factors}, backbone="key")] * 2, load("direct"))
