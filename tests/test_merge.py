"""Stage 2: gradients reach the gates and nothing else, rows do not see one another, results come back from disk."""

from typing import Any

import torch
from conftest import CPU

from lorabench.adapters import attach
from lorabench.method import load
from lorabench.passes import CONTENT, MERGED, STYLE, MergeStep
from lorabench.stages.merge import MergeResult, Merging, initial_gates, live_sites, merge

SHORT = {"steps": 2, "lr": 0.01, "batch": 2}


def short(name: str, ablation: str = "none") -> Any:
    return load(name, ablation, fit=SHORT)


def merging(model, loras, pair, method) -> Merging:
    adapters = attach(model.unet, loras)
    sites = live_sites(model, adapters)
    gates = initial_gates(method, sites, 0)
    assert gates is not None
    return Merging(model, adapters, sites, method, gates, pair, 0)


def test_gradients_reach_the_gates_and_nothing_else(model, loras, pair) -> None:
    for name in ("ziplora", "ziprank", "duolora"):
        module = merging(model, loras, pair, short(name))
        module.loss(0)["style"].backward()
        assert all(gate.grad is not None and gate.grad.abs().sum() > 0 for gate in module.learned)
        parameters = list(model.unet.parameters())
        assert len(parameters) > 0 and all(parameter.grad is None for parameter in parameters)
        module.adapters.detach()


def test_teachers_are_each_lora_alone(model, loras, pair) -> None:
    module = merging(model, loras, pair, short("duolora"))
    step: MergeStep = module.draw(0)
    e_c, e_s = step.teachers()
    module.adapters.detach()
    for lora, noised, expected in ((loras[0], step.content, e_c), (loras[1], step.style, e_s)):
        with attach(model.unet, [lora]):
            torch.testing.assert_close(model.predict(noised.x, step.t, noised.prompt), expected, rtol=1e-4, atol=1e-5)


def test_predictions_do_not_depend_on_what_shares_the_forward(model, loras, pair) -> None:
    module = merging(model, loras, pair, short("duolora"))
    step = module.draw(0)
    together = step.merged(step.content, step.style, step.content.under(step.both))
    alone = [step.merged(noised)[0] for noised in (step.content, step.style, step.content.under(step.both))]
    for left, right in zip(together, alone, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)
    for gains in (CONTENT, STYLE, MERGED):
        module.adapters.rows(torch.tensor([gains]), gated=False)
        first = model.predict(step.content.x[:1], step.t[:1], step.content.prompt.take([0]))
        both = model.predict(step.content.x, step.t, step.content.prompt)
        torch.testing.assert_close(first, both[:1], rtol=1e-5, atol=1e-5)
    module.adapters.detach()


def test_content_and_style_share_noise_and_timestep(model, loras, pair) -> None:
    module = merging(model, loras, pair, short("ziplora"))
    step = module.draw(3)
    module.adapters.detach()
    alpha_bar = model.alphas_bar[step.t].view(-1, 1, 1, 1)
    signal = [noised.x - (1 - alpha_bar).sqrt() * step.noise for noised in (step.content, step.style)]
    for each, images in zip(signal, (module.content.latents, module.style.latents), strict=True):
        for row in each / alpha_bar.sqrt():
            assert min(float((row - image).abs().max()) for image in images) < 1e-2


def test_a_merge_leaves_model_and_loras_alone_and_is_repeatable(model, loras, pair) -> None:
    weights = {name: value.clone() for name, value in model.unet.state_dict().items()}
    factors = [{site: each.up.clone() for site, each in lora.items()} for lora in loras]
    done: list[int] = []
    result = merge(model, short("duolora"), loras[0], loras[1], pair, 0, CPU, done.append)
    assert done == [1, 2]
    assert set(result.losses) == {"content", "style", "style_cycle", "content_cycle", "prior"}
    assert all(len(values) == 2 for values in result.losses.values())
    assert result.learned_params == len(loras[0]) * 5
    assert all(torch.equal(value, weights[name]) for name, value in model.unet.state_dict().items())
    for lora, before in zip(loras, factors, strict=True):
        assert all(torch.equal(lora[site].up, before[site]) for site in before)
    merge(model, short("ziplora"), loras[0], loras[1], pair, 0, CPU)  # another item in between changes nothing
    again = merge(model, short("duolora"), loras[0], loras[1], pair, 0, CPU)
    assert again.losses == result.losses
    assert merge(model, short("duolora"), loras[0], loras[1], pair, 1, CPU).losses != result.losses


def test_a_result_comes_back_from_disk(model, loras, pair, tmp_path) -> None:
    for name in ("direct", "ziplora", "duolora"):
        result = merge(model, short(name), loras[0], loras[1], pair, 0, CPU)
        folder = tmp_path / name
        folder.mkdir()
        result.save(folder)
        loaded = MergeResult.load(folder)
        assert loaded.losses == result.losses and loaded.learned_params == result.learned_params
        assert (loaded.gates is None) == (result.gates is None) == (name == "direct")
        for site in result.lora:
            assert torch.equal(loaded.lora[site].down, result.lora[site].down)
            if result.gates is not None and loaded.gates is not None:
                for left, right in zip(loaded.gates[site], result.gates[site], strict=True):
                    assert left.named().keys() == right.named().keys()
                    assert all(torch.equal(left.named()[kind], gate) for kind, gate in right.named().items())


def test_the_merged_lora_is_the_live_merge(model, loras, pair) -> None:
    result = merge(model, short("duolora"), loras[0], loras[1], pair, 0, CPU)
    sample, t = torch.randn(1, model.unet.config.in_channels, 16, 16), torch.tensor([500])
    prompt = model.encode_prompts([pair.prompt])
    with attach(model.unet, loras, result.gates):
        live = model.predict(sample, t, prompt)
    with attach(model.unet, [result.lora]):
        torch.testing.assert_close(model.predict(sample, t, prompt), live, rtol=1e-5, atol=1e-5)


def test_the_direct_merge_is_the_sum(model, loras, pair) -> None:
    result = merge(model, load("direct"), loras[0], loras[1], pair, 0, CPU)
    assert result.gates is None and result.learned_params == 0 and result.losses == {}
    for site, merged in result.lora.items():
        total = sum(lora[site].up @ lora[site].down for lora in loras)
        torch.testing.assert_close(merged.up @ merged.down, total)
