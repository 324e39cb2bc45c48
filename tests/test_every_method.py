"""Every method on a UNet with blocks missing, with LoRAs of different ranks that each lack some layers: it merges and
draws, or fails with the reason in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import build_koala, random_lora
from merges import draw, fitting, merge_all
from test_style_guidance import SCENES

from lorabench.base import CONF, UserError
from lorabench.config.schemas import GenerateSpec
from lorabench.data.concepts import ROLES
from lorabench.lora.adapter import LoRA
from lorabench.merging.learned import LearnedMasks
from lorabench.merging.merge import MergeItem
from lorabench.merging.method import load
from lorabench.models.sdxl.model import SDXL

NAMES = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
EQUAL_RANKS = "needs LoRAs of one rank, not 2, 3"


@pytest.fixture(scope="module")
def koala(tmp_path_factory: pytest.TempPathFactory) -> SDXL:
    return build_koala(tmp_path_factory.mktemp("koala"), middle=False)


@pytest.fixture(scope="module")
def uneven(koala: SDXL) -> tuple[LoRA, ...]:
    """Return LoRAs of ranks 2 and 3; a third of the layers has only the content, another third only the style."""
    loras = random_lora(koala, 2, "content"), random_lora(koala, 3, "style")
    return tuple(
        LoRA({layer: each for i, (layer, each) in enumerate(lora.items()) if i % 3 != k})
        for k, lora in enumerate(loras)
    )


@pytest.mark.parametrize("name", NAMES)
def test_uneven_loras_on_smaller_unet(koala: SDXL, uneven, pair, hypernetwork: Path, name: str) -> None:
    method = load(name, **({"weights": str(hypernetwork)} if name == "lora_rar" else {}))
    if isinstance(method.merge, LearnedMasks):
        method = method.with_settings(fit=replace(method.merge.fit, steps=1))
    uneven = tuple(fitting(koala, method, uneven))
    try:
        [result] = merge_all(koala, method, [MergeItem(uneven, pair)])
    except UserError as error:
        assert EQUAL_RANKS in str(error) and "use method=peft_cat" in str(error) and name.startswith("peft_")
        return
    assert set(result.file) <= {*uneven[0], *uneven[1]}
    spec = GenerateSpec(images=1, steps=2, guidance=5.0, batch=1)

    def drawn(name: str, result=None) -> np.ndarray:
        chosen = method if result else load(name)
        return draw(koala, chosen, lambda: uneven, ROLES, result, SCENES[:1], [3], spec)

    image = drawn(name, result)
    assert image.shape == (1, 64, 64, 3)
    assert np.array_equal(image, drawn("base")) == (name == "base")


def test_block_that_koala_lacks_is_named(koala: SDXL, uneven, pair) -> None:
    method = load("blora", content_block="up_blocks.0.attentions.2")
    with pytest.raises(UserError, match=r"method.content_block=up_blocks.0.attentions.2 must have a layer that"):
        merge_all(koala, method, [MergeItem(uneven, pair)])
