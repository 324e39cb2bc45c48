"""LoRA training: the loss is the denoising loss, only factors change, and draws are seeded by the concept."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import CPU, reference
from diffusers.training_utils import compute_snr
from PIL import Image

from lorabench.base import UserError
from lorabench.data.concepts import Concept
from lorabench.engine.curves import Curves
from lorabench.models.files import model_folder
from lorabench.models.sdxl.model import SDXL
from lorabench.personalization.class_images import class_prompts
from lorabench.personalization.dreambooth import DreamBoothLoRA, personalize
from lorabench.personalization.initial import initial
from lorabench.personalization.samples import SampleTarget
from lorabench.personalization.training import Environment


def same(left, right) -> bool:
    return all(torch.equal(left[layer].up, right[layer].up) for layer in left)


def test_trains_factors_and_nothing_else(model: SDXL, pair, lora_spec) -> None:
    before = {name: value.clone() for name, value in model.unet.state_dict().items()}
    done: list[int] = []
    lora = personalize(model, pair.contents[0], lora_spec, Environment(0, CPU, done.append))
    assert done == [1, 2, 3] and lora.rank == lora_spec.rank
    assert lora.layers == sorted(model.layers.trained())
    assert all(factors.up.abs().sum() > 0 for factors in lora.values())
    after = model.unet.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert not any(parameter.requires_grad for parameter in model.unet.parameters())


def test_draws_belong_to_concept_and_seed(model, pair, lora_spec) -> None:
    first = personalize(model, pair.contents[0], lora_spec, Environment(0, CPU))
    personalize(model, pair.styles[0], lora_spec, Environment(0, CPU))  # another item in between changes nothing
    assert same(first, personalize(model, pair.contents[0], lora_spec, Environment(0, CPU)))
    assert not same(first, personalize(model, pair.contents[0], lora_spec, Environment(1, CPU)))


def test_alpha_over_rank_is_folded_in(model, pair, lora_spec) -> None:
    """The trained adapter with scale alpha / rank equals the returned LoRA with scale 1."""
    start = initial(model.layers.trained(), lora_spec.rank, 0)
    with model.attach([start], dtype=torch.float32) as adapters:
        DreamBoothLoRA(model, adapters, pair.contents[0], lora_spec, 0)
        assert all(
            layer.scale is not None and set(layer.scale.flatten().tolist()) == {2.0}
            for layer in adapters.layers.values()
        )
    trained = personalize(model, pair.contents[0], lora_spec, Environment(0, CPU))
    assert 2.0 * lora_spec.lr < max(factors.up.abs().max() for factors in trained.values())


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_loss_is_denoising_loss_of_models_own_target(model, pair, lora_spec, prediction_type) -> None:
    model.process.predicts = prediction_type
    concept: Concept = replace(pair.contents[0], images=pair.contents[0].images[:1])
    with model.attach([initial(model.layers.trained(), 2, 0)]) as adapters:
        module = DreamBoothLoRA(model, adapters, concept, lora_spec, 0)
        module.log = lambda *_, **__: None
        loss = module.training_step(5)
        draw = torch.Generator().manual_seed(module.step_seed(5))
        torch.randint(1, (2,), generator=draw)
        t = torch.randint(1000, (2,), generator=draw)
        noise = torch.randn(2, *module.latents.shape[1:], generator=draw)
        x = module.latents[[0, 0]]
        alpha_bar = model.pipeline.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        noised = alpha_bar.sqrt() * x + (1 - alpha_bar).sqrt() * noise
        target = noise if prediction_type == "epsilon" else alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x
        prediction = model.predict(noised, t, model.encode_prompts(["a sks mug"] * 2))
    torch.testing.assert_close(loss, ((prediction - target) ** 2).mean())


def test_training_lowers_loss(model, pair, lora_spec) -> None:
    spec = replace(lora_spec, steps=40, batch=4, rank=4)
    trained = personalize(model, pair.contents[0], spec, Environment(0, CPU))

    def loss(lora) -> float:
        with model.attach([lora], dtype=torch.float32) as adapters, torch.no_grad():
            module = DreamBoothLoRA(model, adapters, pair.contents[0], replace(spec, alpha=spec.rank), 1)
            module.log = lambda *_, **__: None
            return sum(float(module.training_step(step)) for step in range(8))

    assert loss(trained) < loss(initial(model.layers.trained(), 4, 0))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_weights_follow_diffusers_snr(model: SDXL, lora_spec, prediction_type: str) -> None:
    model.process.predicts = prediction_type  # pyright: ignore[reportAttributeAccessIssue]
    t = torch.tensor([0, 1, 250, 500, 999])
    snr = compute_snr(model.pipeline.scheduler, t)
    base = torch.minimum(snr, torch.full_like(snr, 5.0))
    expected = base / (snr if prediction_type == "epsilon" else snr + 1)
    torch.testing.assert_close(model.process.loss_weight(t, replace(lora_spec, min_snr=5.0)), expected)
    assert model.process.loss_weight(t, lora_spec) is None


@pytest.mark.parametrize("changes", [{}, {"min_snr": 0.5}, {"loss": "v"}, {"loss": "eps"}, {"loss": "x0"}])
def test_prior_term_has_weights_of_loss_but_not_of_min_snr(model: SDXL, pair, lora_spec, changes: dict) -> None:
    """Min-SNR applies to the concept's images only, as in diffusers. The error of eps is that of v times the signal."""
    assert model.process.predicts == "v_prediction"
    spec = replace(lora_spec, prior_weight=3.0, **changes)
    prior = [reference("mug", "a mug", "gray")]
    with model.attach([initial(model.layers.trained(), 2, 0)]) as adapters:
        module = DreamBoothLoRA(model, adapters, pair.contents[0], spec, 0, prior)
        draw = torch.Generator().manual_seed(0)
        own, theirs = (each.draw(model, 2, draw) for each in (module.images, module.prior) if each)
        errors = []
        for part in (own, theirs):
            noised = model.process.add_noise(part.latents, part.noise, part.t)
            prediction = model.predict(noised, part.t, model.encode_prompts(part.prompts))
            target = model.process.target(part.latents, part.noise, part.t)
            errors.append((prediction - target).square().mean(dim=(1, 2, 3)))
        weight = model.process.loss_weight(own.t, spec)
        alpha_bar = model.pipeline.scheduler.alphas_cumprod[theirs.t]
        loss_weight = {"eps": alpha_bar, "x0": 1 - alpha_bar}.get(spec.loss, torch.ones_like(alpha_bar))
        expected = (errors[0] * (1 if weight is None else weight)).mean() + 3.0 * (errors[1] * loss_weight).mean()
        torch.testing.assert_close(module.loss(own.join(theirs)), expected)
    assert theirs.prompts == ["a mug"] * 2


def test_accumulated_forwards_are_one_update(model: SDXL, pair, lora_spec) -> None:
    """There is not one update per pass, as in accelerate with one image; the schedule counts updates, too."""
    curves, done = Curves(), []
    spec = replace(lora_spec, accumulate=4, steps=2)
    personalize(model, pair.contents[0], spec, Environment(0, CPU, done.append, curves))
    assert done == [0, 0, 0, 1, 1, 1, 1, 2]
    assert len(curves.values["loss"]) == 2
    one = personalize(model, pair.contents[0], replace(lora_spec, steps=1), Environment(0, CPU))
    four = personalize(model, pair.contents[0], replace(lora_spec, steps=1, accumulate=4), Environment(0, CPU))
    assert not same(one, four)
    assert all(factors.up.abs().max() < 1.5 * 2.0 * lora_spec.lr for factors in four.values())


def test_only_blocks_asked_for_are_adapted(model: SDXL, pair, lora_spec) -> None:
    blocks = ["up_blocks.0.attentions.0", "up_blocks.0.attentions.1"]
    lora = personalize(model, pair.contents[0], replace(lora_spec, blocks=blocks), Environment(0, CPU))
    expected = {layer for layer in model.layers.trained() if any(layer.startswith(f"{block}.") for block in blocks)}
    assert set(lora) == expected and 0 < len(expected) < len(model.layers.trained())
    with pytest.raises(UserError, match=r"lora.blocks=up_blocks.7 has no layer .* up_blocks.0.attentions.0, "):
        personalize(
            model, pair.contents[0], replace(lora_spec, blocks=["mid_block", "up_blocks.7"]), Environment(0, CPU)
        )
    with pytest.raises(UserError, match=r"attentions.0.trans has no layer"):
        personalize(model, pair.contents[0], replace(lora_spec, blocks=[f"{blocks[0]}.trans"]), Environment(0, CPU))


def test_text_encoders_learn_and_are_left_as_they_were(model: SDXL, pair, lora_spec) -> None:
    prompt = pair.contents[0].images[0].prompt
    before = model.encode_prompts([prompt])
    lora = personalize(model, pair.contents[0], replace(lora_spec, text_encoders=True), Environment(0, CPU))
    after = SDXL.encode_prompts(model, [prompt])
    assert torch.equal(before.tensors[0], after.tensors[0])
    heads = {layer.split(".")[0] for layer, factors in lora.text.items() if factors.up.abs().sum() > 0}
    assert heads == {"text_encoder", "text_encoder_2"}
    with model.attach_text([lora]):
        adapted = model.encode_prompts([prompt])
    assert not any(torch.equal(*states) for states in zip(before.tensors[:2], adapted.tensors[:2], strict=True))
    for encoder in model.text.values():
        assert not any(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize("text", [False, True], ids=["unet", "text_encoders"])
def test_samples_show_training_and_do_not_change_it(
    tmp_path: Path, model: SDXL, pair, lora_spec, generate_spec, text: bool
) -> None:
    spec = replace(lora_spec, sample_every=2, steps=4, text_encoders=text, text_lr=1e-2)
    target = SampleTarget(tmp_path / "samples", generate_spec)
    watched = personalize(
        model, pair.contents[0], spec, Environment(0, CPU, samples=target.folder, generate=target.spec)
    )
    assert same(watched, personalize(model, pair.contents[0], replace(spec, sample_every=0), Environment(0, CPU)))
    first, second = (Image.open(target.folder / name) for name in ("000002.png", "000004.png"))
    assert first.size == (64, 64) and first.tobytes() != second.tobytes()
    assert len(list(target.folder.iterdir())) == 2


def test_class_prompts_are_captions_in_plain_words(pair) -> None:
    assert class_prompts(pair.contents[0]) == ("a mug",)
    assert class_prompts(pair.styles[0]) == ("a boat in halftone style", "a tree in halftone style")


def test_model_may_be_in_half_precision_and_checkpointed(folder: Path, model: SDXL, pair, lora_spec) -> None:
    """Factors are fp32, because bf16 would round updates of 5e-5 to zero; checkpointing changes no number."""
    spec = replace(lora_spec, text_encoders=True, crops=1)
    files = model_folder(folder)
    exact, checkpointed, half = (
        personalize(SDXL.load(each), pair.contents[0], spec, Environment(0, CPU))
        for each in (files, replace(files, checkpointing=True), replace(files, dtype="bf16"))
    )
    for layer, factors in exact.items():
        torch.testing.assert_close(checkpointed[layer].up, factors.up)
        torch.testing.assert_close(checkpointed[layer].down, factors.down)
    stacked = [torch.cat([factors.up.flatten() for factors in lora.values()]) for lora in (exact, half)]
    assert stacked[1].dtype == torch.float32
    assert torch.cosine_similarity(*stacked, dim=0) > 0.5
