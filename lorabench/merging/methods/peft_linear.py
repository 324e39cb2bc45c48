"""The combination types of the library peft, computed layer by layer with its `add_weighted_adapter`.

    linear, ties, dare_linear, dare_ties, magnitude_prune     A_m = f(sqrt(w) A_1, ...), B_m = f(sqrt(w) B_1, ...)
    cat                                                       dW_m = sum_k w dW_k, exactly
    svd, ties_svd, dare_linear_svd, dare_ties_svd, magnitude_prune_svd
                                                              dW_m = f(w dW_1, ...), cut to `rank`

Each type is a method `peft_<type>`. The types of the first line merge A and B separately. This gives cross terms,
(B_1 + B_2)(A_1 + A_2), and needs equal ranks; they are included because many tools offer them. ties.py has the same
prunings of dense updates. Random draws are seeded by pair and layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lorabench.base import UserError
from lorabench.config.settings import setting
from lorabench.merging.layerwise import LayerwiseMerge
from lorabench.models.layer import Layer

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.lora.adapter import Factors

DENSE = ("svd", "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd")
APART = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")


@dataclass(frozen=True, kw_only=True)
class PeftLinear(LayerwiseMerge):
    """A combination type of peft.

    Args:
        combination: The type.
        weight: Weight of each adapter.
        density: Share of entries that a pruning keeps.
        sign: How signs are elected, "total" or "frequency".
        rank: Rank of the file for the types that end in svd. None: the highest rank of the adapters, as in peft.
    """

    version: ClassVar[int] = 3  # alpha / rank of the adapters is peft's scaling, not part of B

    combination: str = setting(options=(*APART, "cat", *DENSE))
    weight: float
    density: float = setting(above=0, most=1)
    sign: str = setting(options=("total", "frequency"))
    rank: int | None = setting(least=1)

    def check(self, layers: Mapping[str, Layer]) -> None:
        if self.combination not in APART:
            return
        for layer in layers.values():
            if len(ranks := {rank for rank in layer.ranks if rank}) > 1:
                listed = ", ".join(map(str, sorted(ranks)))
                raise UserError(f"peft's {self.combination} needs LoRAs of one rank, not {listed}; use method=peft_cat")

    def file_rank(self, layer: Layer) -> int:
        return max(self.rank or 0, sum(layer.ranks))  # peft itself cuts the types that end in svd

    def combine(self, updates: Sequence["Factors"], layer: Layer, seed: int, moments: "Tensor | None") -> "Factors":
        import torch
        from peft import LoraConfig, get_peft_model
        from torch import nn

        from lorabench.base import seed_of
        from lorabench.lora.adapter import Factors

        present = {str(k): each for k, each in enumerate(updates) if each.rank}
        base = nn.Sequential()
        base.add_module("layer", nn.utils.skip_init(nn.Linear, layer.in_features, layer.out_features, bias=False))
        model: Any = None
        for name, each in present.items():
            alpha: Any = each.rank * each.scale  # peft allows floats
            config = LoraConfig(r=each.rank, lora_alpha=alpha, target_modules=["layer"])
            if model is None:
                model = get_peft_model(base, config, adapter_name=name)
            else:
                model.add_adapter(name, config)
            module = model.base_model.model.layer
            down, up = each.trained
            module.lora_A[name].weight.data = down.float()
            module.lora_B[name].weight.data = up.float()
        limit = min(self.rank or max(layer.ranks), layer.in_features, layer.out_features)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of("peft", seed, layer.name))
            model.add_weighted_adapter(
                list(present), [self.weight] * len(present), "merged", self.combination, svd_rank=limit,
                density=self.density, majority_sign_method=self.sign,
            )  # fmt: skip
        module = model.base_model.model.layer
        scale = module.scaling["merged"]
        return Factors(module.lora_A["merged"].weight.data.clone(), scale * module.lora_B["merged"].weight.data)
