"""task=memory: compute the GPU memory needed to train a LoRA and to merge two, without weights and without a GPU.

A step runs on torch's meta device, which has shapes and no data. Hooks of autograd count the tensors that are kept for
the backward pass, each storage once, with attention as a GPU's fused kernels compute it. The sum also has the weights,
LoRAs, gradients, Adam's two moments and, with activation checkpointing, the largest block's activations. Text encoders
and autoencoder are on the CPU. Short-lived buffers (workspaces, fragmentation) are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from lorabench.base import CONF, UserError
from lorabench.config.choices import choose
from lorabench.config.schemas import LoRASpec
from lorabench.data.concepts import ROLES
from lorabench.merging.learned import LearnedMasks
from lorabench.merging.method import load
from lorabench.models.layer import Layer

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

    from lorabench.data.concepts import Concept, Role
    from lorabench.data.pairs import Pair
    from lorabench.lora.layer import Adapters
    from lorabench.models.model import DiffusionModel

GB = 1e9
TRAINING = "training a LoRA"
PARTS = ["weights", "loras", "optimizer", "activations", "block"]
COLUMNS = ["model", "targets", "step", "checkpointing", *PARTS, "total"]
Step = tuple[Callable[[], Any], Sequence["Tensor"]]  # forward pass, and the tensors that get gradients


def run(cfg: DictConfig, folder: Path) -> str:
    """Write memory.csv and memory.md, and print the latter."""
    from lorabench.models.shapes import KNOWN

    for model in cfg.task.models:
        choose("task.models", model, KNOWN)
    methods, rank, targets = list(cfg.task.methods), cfg.task.rank, cfg.task.targets
    counts = pd.concat([count(model, methods, rank, targets) for model in cfg.task.models])
    text = table(counts)
    counts.to_csv(folder / "memory.csv", index=False, float_format="%.4g")
    (folder / "memory.md").write_text(text, encoding="utf-8")
    print(text)
    return "memory.md"


def count(model: str, methods: Sequence[str], rank: int, targets: str = "attention") -> pd.DataFrame:
    """Return GB by part: one row per step, without and with checkpointing.

    Weights are bfloat16, LoRAs float32, with one image per LoRA.

    Args:
        model: Name of the model.
        methods: Learned merges to count, besides the training of one LoRA.
        rank: Rank of the LoRAs.
        targets: Set of layers that the LoRAs adapt.
    """
    rows = []
    for step in (TRAINING, *methods):
        weights, loras, learned, plain = parts(model, step, rank, targets, checkpointing=False)
        recomputed = parts(model, step, rank, targets, checkpointing=True)[-1]
        fixed = [weights, loras, 3 * learned]  # gradients and two moments
        for checkpointing, activations, block in ((False, plain.bytes, 0), (True, recomputed.bytes, plain.largest)):
            values = [each / GB for each in (*fixed, activations, block)]
            rows.append((model, targets, step, checkpointing, *values, sum(values)))
    return pd.DataFrame(rows, columns=COLUMNS)


def parts(name: str, step: str, rank: int, targets: str, checkpointing: bool) -> tuple[int, int, int, Kept]:
    """Return the bytes of weights, of LoRAs and of learned tensors, and the tensors that a step keeps.

    Args:
        name: Name of a known model.
        step: TRAINING, or the name of a method with a learned merge.
        rank: Rank of the LoRAs.
        targets: Set of layers that the LoRAs adapt.
        checkpointing: Whether blocks are recomputed in the backward pass.
    """
    import torch

    from lorabench.lora.adapter import Factors, LoRA
    from lorabench.models.shapes import empty_model

    model = empty_model(name, torch.bfloat16, checkpointing)
    with torch.device("meta"):
        factors = {
            layer: Factors(torch.empty(rank, module.in_features), torch.empty(module.out_features, rank))
            for layer, module in model.layers.trained(targets=targets).items()
        }
    weights, loras = size(model.denoiser.parameters()), [LoRA(factors)] * (1 if step == TRAINING else 2)
    layers = model.layers.adapted(loras, ROLES[: len(loras)])
    with model.attach(loras, dtype=torch.float32) as adapters, fused_attention():
        stacks = [factor for module in adapters.layers.values() for factor in (module.down, module.up)]
        if step == TRAINING:
            forward, learned = training(model, adapters, rank)
        else:
            forward, learned = merging(model, adapters, learned_merge(step), layers)
        with Kept(model.denoiser, model.recomputed_blocks()) as kept:
            forward()
    return weights, size(stacks), size(learned), kept


def training(model: DiffusionModel, adapters: Adapters, rank: int) -> Step:
    """Return a step of DreamBooth-LoRA on one image."""
    from torch import Generator

    from lorabench.personalization.dreambooth import DreamBoothLoRA

    values: Any = OmegaConf.load(CONF / "lora" / "dreambooth.yaml")
    del values["defaults"]
    spec = LoRASpec(**{**values, "rank": rank, "alpha": rank})
    module = DreamBoothLoRA(model, adapters, plain_pair().contents[0], spec, 0)
    return lambda: module.loss(module.images.draw(model, 1, Generator())), list(module.factors)


def learned_merge(name: str) -> LearnedMasks:
    """Return the learned merge of a preset.

    Raises:
        UserError: If the preset's merge does not learn.
    """
    merge = load(name).merge
    if not isinstance(merge, LearnedMasks):
        raise UserError(f"task.methods={name} must learn masks; use task.methods=[ziplora,duolora]")
    return merge


def merging(model: DiffusionModel, adapters: Adapters, merge: LearnedMasks, layers: Mapping[str, Layer]) -> Step:
    """Return a step of a learned merge on one image per LoRA."""
    from lorabench.merging.draws import Draws
    from lorabench.merging.learn import Merging

    pair = plain_pair()
    starts = [merge.masks(layers, 0)]
    module = Merging(adapters, layers, merge, starts, [pair], [Draws(model, pair, 0)])
    return lambda: module.loss(0), list(module.learned)


class Kept:
    """Context manager that counts the tensors that autograd keeps of the forward passes inside.

    Each storage counts once; weights do not count. `bytes` is the sum, `largest` the maximum over the given blocks.
    """

    def __init__(self, network: nn.Module, blocks: Sequence[nn.Module]):
        self.blocks = blocks
        self.storages: dict[int, Any] = {key(parameter): parameter for parameter in network.parameters()}
        self.bytes = self.largest = 0
        self.starts: list[int] = []
        self.handles: list[RemovableHandle] = []

    def __enter__(self) -> Kept:
        from torch.autograd.graph import saved_tensors_hooks

        for block in self.blocks:
            self.handles.append(block.register_forward_pre_hook(lambda *_: self.starts.append(self.bytes)))
            self.handles.append(block.register_forward_hook(lambda *_: self.end()))
        self.hooks = saved_tensors_hooks(self.pack, lambda tensor: tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.hooks.__exit__(None, None, None)
        for handle in self.handles:
            handle.remove()

    def pack(self, tensor: Tensor) -> Tensor:
        """Count a tensor that autograd saves."""
        if key(tensor) not in self.storages:
            self.storages[key(tensor)] = tensor  # keep it alive, so that its address is not used again
            self.bytes += tensor.untyped_storage().nbytes()
        return tensor

    def end(self) -> None:
        """Record the bytes of the block that ends."""
        self.largest = max(self.largest, self.bytes - self.starts.pop())


def key(tensor: Tensor) -> int:
    """Return an identity of a tensor's storage that also works on the meta device, whose data has no address."""
    return tensor.untyped_storage()._cdata


def size(tensors: Iterable[Tensor]) -> int:
    """Return the size of tensors in bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def plain_pair() -> Pair:
    """Return a subject and a style of one gray image each; the content of the images does not matter."""
    from PIL import Image

    from lorabench.data.concepts import Concept, Reference
    from lorabench.data.pairs import Pair
    from lorabench.data.scenes import Scene

    def concept(role: Role) -> Concept:
        image = Reference("", role, role, lambda: Image.new("RGB", (64, 64), "gray"))
        return Concept(role, role, "", (image,), ())

    return Pair((concept("content"),), (concept("style"),), Scene("both", "both"))


@contextmanager
def fused_attention() -> Iterator[None]:
    """Replace attention by one that keeps q, k, v and its output only, as on a GPU but not on the meta device."""
    import torch

    def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]

    with patch.object(torch.nn.functional, "scaled_dot_product_attention", attention):
        yield


def table(counts: pd.DataFrame) -> str:
    """Return Markdown with one row per model, step and setting, in GB."""
    head = [*COLUMNS[:4], "denoiser", "LoRAs", "gradients, Adam", "activations", "a block again", "sum, GB"]
    lines = [head, ["---"] * 4 + ["---:"] * 6]
    for row in counts.to_dict("records"):
        numbers = [f"{row[column]:.2f}" for column in (*PARTS, "total")]
        lines.append([row["model"], row["targets"], row["step"], "yes" if row["checkpointing"] else "no", *numbers])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
