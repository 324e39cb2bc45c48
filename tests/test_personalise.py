"""Stage 1: the loss is the plain denoising loss, only the factors move, and every draw belongs to the item."""

from dataclasses import replace

import pytest
import torch
from conftest import CPU

from lorabench.adapters import attach
from lorabench.data.pairs import Concept
from lorabench.models.sdxl import SDXL
from lorabench.models.sites import attention_sites
from lorabench.stages.personalise import DreamBoothLoRA, initial, personalise


def same(left, right) -> bool:
    return all(torch.equal(left[site].up, right[site].up) for site in left)


def test_trains_the_factors_and_nothing_else(model: SDXL, pair, lora_spec) -> None:
    before = {name: value.clone() for name, value in model.unet.state_dict().items()}
    done: list[int] = []
    lora = personalise(model, pair.contents[0], lora_spec, 0, CPU, done.append)
    assert done == [1, 2, 3] and lora.rank == lora_spec.rank
    assert lora.sites == sorted(attention_sites(model.unet))
    assert all(factors.up.abs().sum() > 0 for factors in lora.values())
    after = model.unet.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert not any(parameter.requires_grad for parameter in model.unet.parameters())


def test_draws_belong_to_the_concept_and_the_seed(model, pair, lora_spec) -> None:
    first = personalise(model, pair.contents[0], lora_spec, 0, CPU)
    personalise(model, pair.styles[0], lora_spec, 0, CPU)  # another item in between changes nothing
    assert same(first, personalise(model, pair.contents[0], lora_spec, 0, CPU))
    assert not same(first, personalise(model, pair.contents[0], lora_spec, 1, CPU))


def test_alpha_over_rank_is_folded_in(model, pair, lora_spec) -> None:
    """The trained adapter at strength alpha / rank and the returned LoRA at full strength are one function."""
    start = initial(model.unet, lora_spec.rank, 0)
    with attach(model.unet, [start], dtype=torch.float32) as adapters:
        DreamBoothLoRA(model, adapters, pair.contents[0], lora_spec, 0)
        assert all(
            layer.gain is not None and set(layer.gain.flatten().tolist()) == {2.0} for layer in adapters.layers.values()
        )
    trained = personalise(model, pair.contents[0], lora_spec, 0, CPU)
    assert 2.0 * lora_spec.lr < max(factors.up.abs().max() for factors in trained.values())


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_loss_is_the_denoising_loss_of_the_models_own_target(model, pair, lora_spec, prediction_type) -> None:
    model.prediction_type = prediction_type
    concept: Concept = replace(pair.contents[0], images=pair.contents[0].images[:1])
    with attach(model.unet, [initial(model.unet, 2, 0)]) as adapters:
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


def test_training_lowers_the_loss(model, pair, lora_spec) -> None:
    spec = replace(lora_spec, steps=40, batch=4, rank=4)
    trained = personalise(model, pair.contents[0], spec, 0, CPU)

    def loss(lora) -> float:
        with attach(model.unet, [lora], dtype=torch.float32) as adapters, torch.no_grad():
            module = DreamBoothLoRA(model, adapters, pair.contents[0], replace(spec, alpha=spec.rank), 1)
            module.log = lambda *_, **__: None
            return sum(float(module.training_step(step)) for step in range(8))

    assert loss(trained) < loss(initial(model.unet, 4, 0))
