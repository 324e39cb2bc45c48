"""Every method on tiny SD3 and FLUX.1 models: it merges and generates, or one line says why not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_hypernetwork
from merges import draw, fitting, merge_all
from test_style_guidance import SCENES
from transformers_tiny import tiny_transformer

from lorabench.base import CONF, UserError, seed_of
from lorabench.config.schemas import GenerateSpec, LoRASpec
from lorabench.data.concepts import ROLES
from lorabench.data.pairs import Pair
from lorabench.data.pairs import pair as make_pair
from lorabench.data.scenes import Prompts
from lorabench.lora.adapter import LoRA
from lorabench.lora.factors import Factors
from lorabench.merging.learned import LearnedMasks
from lorabench.merging.merge import Merged, MergeItem
from lorabench.merging.method import load as load_method
from lorabench.models.model import DiffusionModel

NAMES = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
# Combinations of peft for LoRAs of different ranks.
UNEQUAL = (
    "peft_cat",
    "peft_svd",
    "peft_ties_svd",
    "peft_dare_linear_svd",
    "peft_dare_ties_svd",
    "peft_magnitude_prune_svd",
)
EQUAL_RANKS = "needs LoRAs of one rank, not 2, 3"
SUMS = "sums predictions .* use model.true_guidance=true"
REFUSED = {  # reasons by method
    "blora": r"method.content_block=up_blocks.0.attentions.0 has no layer to adapt; use one of double, early, ",
    "craft": r"method.layer_sets .* no layer of lora.targets=attention in this model; use method.layer_sets=<a yaml of",
    "duolora_released": r"method.prior must name modules of this model; .* use method.prior=depth",
    "unziplora": r"method.content_blocks=.* has no layer to adapt; use method.dedicated=depth",
    "unziplora_released": r"method.content_blocks=.* has no layer to adapt; use method.dedicated=depth",
    **dict.fromkeys((name for name in NAMES if name.startswith("peft_") and name not in UNEQUAL), EQUAL_RANKS),
}
WITHOUT_CFG: dict[str, str] = dict.fromkeys(("lora_composite", "pair_customization", "styledrop"), SUMS)  # FLUX.1


@pytest.fixture(scope="module", params=["sd3", "dev", "schnell"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DiffusionModel:
    return tiny_transformer(request.param, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def uneven(model: DiffusionModel) -> tuple[LoRA, LoRA]:
    """Return LoRAs of ranks 2 and 3; a third of the layers has only the content, another third only the style."""
    found = []
    for k, (role, rank) in enumerate(zip(ROLES, (2, 3), strict=True)):
        factors = {}
        for i, (name, layer) in enumerate(model.layers.trained().items()):
            rng = torch.Generator().manual_seed(seed_of(role, name))
            down = 0.3 * torch.randn(rank, layer.in_features, generator=rng)
            if i % 3 != k:
                factors[name] = Factors(down, 0.3 * torch.randn(layer.out_features, rank, generator=rng))
        found.append(LoRA(factors))
    return found[0], found[1]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a random network of LoRA.rar for the width of the tiny transformers."""
    return random_hypernetwork(tmp_path_factory.mktemp("network"), 32)


@pytest.mark.parametrize("name", NAMES)
def test_method_runs_or_says_why_not(
    model: DiffusionModel, uneven: tuple[LoRA, LoRA], pair: Pair, lora_spec: LoRASpec, network: Path, name: str
) -> None:
    def run() -> tuple[Merged, np.ndarray]:
        method = load_method(name, **({"weights": str(network)} if name == "lora_rar" else {}))
        if isinstance(method.merge, LearnedMasks):
            method = method.with_settings(fit=replace(method.merge.fit, steps=1))
        method.training.check(model.layers, lora_spec)
        if method.training.images == "concepts":
            for output in method.training.outputs(pair, lora_spec):
                output.job.ranks(model.layers)
        loras = tuple(fitting(model, method, uneven))
        [result] = merge_all(model, method, [MergeItem(loras, pair)])
        spec = GenerateSpec(images=1, steps=2, guidance=1.0 if model.guidance == "none" else 3.5, batch=1)
        return result, draw(model, method, lambda: loras, ROLES, result, SCENES[:1], [3], spec)

    reason = REFUSED.get(name) or (WITHOUT_CFG.get(name) if model.guidance != "cfg" else None)
    if reason is None:
        result, images = run()
        assert set(result.file) <= {*uneven[0], *uneven[1]}
        assert images.shape == (1, 16, 16, 3) and images.std() > 0
        return
    with pytest.raises(UserError, match=reason) as error:
        run()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["ziplora", "duolora"])
def test_pairs_side_by_side_are_pairs_one_by_one(
    model: DiffusionModel, uneven: tuple[LoRA, LoRA], pair: Pair, name: str
) -> None:
    """The rows of a batch read the prompts of their own pair."""
    method = load_method(name, fit={"steps": 2, "batch": 1})
    content = replace(pair.contents[0], name="cup_1", word="cup", images=pair.styles[0].images)
    other = make_pair((content,), pair.styles, Prompts())
    turned = LoRA({layer: Factors(factors.down.flip(1), factors.up) for layer, factors in uneven[0].items()})
    items = [MergeItem(uneven, pair), MergeItem((turned, uneven[1]), other)]
    separate = [merge_all(model, method, [item])[0] for item in items]
    for one, result in zip(separate, merge_all(model, method, items), strict=True):
        for layer in one.file:
            left, right = (each.file[layer].up @ each.file[layer].down for each in (result, one))
            torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)
        assert set(result.losses) == set(one.losses)
        for term, losses in one.losses.items():
            torch.testing.assert_close(torch.tensor(result.losses[term]), torch.tensor(losses), rtol=1e-4, atol=1e-6)
