"""Measure time and memory of an UnZipLoRA step against a joint DreamBooth step and a step with dense updates.

python -m benchmarks.unzip --size micro|slice|sdxl
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import Peak, in_own_process, interleaved, markdown, publish, ratio, seconds
from benchmarks.merge_step import warm_up
from benchmarks.sizes import DIFFERENCES, RANKS, build
from lorabench.base import seed_of
from lorabench.config.schemas import LoRASpec
from lorabench.data.concepts import ROLES, Concept, Reference
from lorabench.data.stylised import ThreePrompts
from lorabench.engine.lightning import quiet_trainer
from lorabench.lora.factors import Factors
from lorabench.merging.method import load
from lorabench.personalization.columns import is_masked
from lorabench.personalization.dreambooth import denoised, weighted_mse
from lorabench.personalization.initial import random_factors
from lorabench.personalization.schemes.unziplora import UnZipJob
from lorabench.personalization.unzip import UnZipping

OURS, CHOICE, JOINT, DENSE = "UnZipLoRA", "UnZipLoRA, choosing columns", "joint DreamBooth", "dense updates"
PLAIN = {"columns": 1.0, "merge_lr": 0.0, "prompt_separation": False}  # two ordinary LoRAs, one prompt
TOLERANCE = 1e-4  # relative, for fp32
PROMPTS = ThreePrompts("a sks mug in ink style", "a sks mug", "a mug in ink style")
GOALS = ((OURS, JOINT, "at most", 1.15), (DENSE, OURS, "at least", 2.0))


def job_of(size: str, **settings: Any) -> UnZipJob:
    """Return the job of one gray image with batch 1."""
    from PIL import Image

    spec = LoRASpec(
        rank=RANKS[size], alpha=RANKS[size], blocks=[], text_encoders=False, text_lr=1e-4, steps=600, batch=1,
        accumulate=1, optimizer="adamw", lr=5e-5, betas=(0.9, 0.999), weight_decay=1e-4, schedule="constant", cycles=1,
        warmup=0, max_grad_norm=None, min_snr=None, prior_weight=0.0, prior_images=1, flips=False, crops=0,
        sample_every=0,
    )  # fmt: skip
    scheme: Any = load("unziplora", **settings).training
    image = Reference("mug", PROMPTS.full, "gray", partial(Image.new, "RGB", (64, 64), "gray"))
    return UnZipJob(Concept("gray", "content", "mug", (image,), ()), spec, "gray", PROMPTS, scheme)


class Ours:
    """The product's module, without Lightning's loop.

    Args:
        choosing: Make steps that choose columns, instead of steps that do not.
    """

    def __init__(self, model: Any, size: str, choosing: bool = False, **settings: Any):
        job = job_of(size, **settings)
        starts = starts_of(model, size)
        self.choosing = choosing
        adapters = model.attach(starts, dtype=torch.float32)
        self.module = UnZipping(model, adapters, job, 0)
        self.module.log = lambda *arguments, **options: None
        self.module.trainer = quiet_trainer(model.device, "32-true")
        self.optimizer = self.module.configure_optimizers()["optimizer"]
        self.layers = adapters.layers
        chosen = torch.rand(self.module.columns.shape, generator=torch.Generator().manual_seed(0)) < 0.3
        self.module.columns.copy_(self.module.columns + chosen.to(model.device)).clamp_(0, 1)
        adapters.detach()

    def loss(self, i: int) -> Tensor:
        step = 1 + 200 * (i % 3) if self.choosing else 2 + i
        assert self.choosing != is_masked(step, self.module.period)
        return self.module.training_step(step)

    def run(self, i: int) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(i)
        loss.backward()
        self.module.on_after_backward()
        self.optimizer.step()
        with torch.no_grad():
            self.module.vectors.clamp_(0, 1)
        return loss.detach()


class DenseLayer(nn.Module):
    """W x + sum_k x_k (D_k^T U_k^T . v_k m_k), with the dense update of each adapter, as the public code forms it."""

    def __init__(self, base: nn.Linear, factors: Sequence[Factors], masks: Tensor):
        super().__init__()
        self.base, self.masks = base, masks
        self.downs = nn.ParameterList(nn.Parameter(each.down.to(masks.device).clone()) for each in factors)
        self.ups = nn.ParameterList(nn.Parameter(each.up.to(masks.device).clone()) for each in factors)
        self.merge = nn.ParameterList(nn.Parameter(torch.ones_like(each)) for each in masks)
        self.own: Sequence[Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        for k, (down, up) in enumerate(zip(self.downs, self.ups, strict=True)):
            update = (down.T.to(x.dtype) @ up.T.to(x.dtype)) * self.merge[k].to(x.dtype) * self.masks[k].to(x.dtype)
            y = y + (x if self.own is None else self.own[k].to(x.dtype)) @ update
        return y


class Dense:
    """A step with the same factors and columns, written from a description of the public code."""

    def __init__(self, model: Any, size: str):
        ours = Ours(model, size)
        self.model, self.module = model, ours.module
        widths = ours.module.widths
        columns = dict(zip(ours.layers, ours.module.columns.split(widths, dim=1), strict=True))
        starts = starts_of(model, size)
        self.layers = {
            name: DenseLayer(model.denoiser.get_submodule(name), [each[name] for each in starts], columns[name].clone())
            for name in ours.layers
        }
        layers = list(self.layers.values())
        factors = [each for layer in layers for each in (*layer.downs, *layer.ups)]
        merge = [each for layer in layers for each in layer.merge]
        spec = ours.module.spec
        groups = [{"params": factors}, {"params": merge, "lr": 5e-3, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, spec.lr, weight_decay=spec.weight_decay)

    def loss(self, i: int) -> Tensor:
        module, model = self.module, self.model
        draw = torch.Generator().manual_seed(seed_of(module.seed, 2 + i))
        batch = module.images.draw(model, 1, draw)
        own = [each.tensors[0] for each in module.own]
        for name, layer in self.layers.items():
            layer.own = own if name.endswith(("attn2.to_k", "attn2.to_v")) else None
        prediction, target = denoised(model, batch, model.encode_prompts(batch.prompts))
        loss = weighted_mse(prediction, target, None)
        overlaps = [
            (each.merge[0] * each.masks[0] * each.merge[1] * each.masks[1]).abs().mean()
            for each in self.layers.values()
        ]
        return loss + module.scheme.lambda_orthogonality * torch.stack(overlaps).mean()

    def run(self, i: int) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(i)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for layer in self.layers.values():
                for each in layer.merge:
                    each.clamp_(0, 1)
        return loss.detach()


def starts_of(model: Any, size: str) -> list[Any]:
    layers = model.layers.trained()
    return [random_factors(layers, RANKS[size], seed_of("benchmark", role)) for role in ROLES]


BUILDERS: dict[str, Any] = {
    OURS: Ours,
    CHOICE: partial(Ours, choosing=True),
    JOINT: partial(Ours, **PLAIN),
    DENSE: Dense,
}


def put(model: Any, contender: Ours | Dense, on: bool) -> None:
    """Put the layers of a contender on the UNet, or the plain layers."""
    for name, layer in contender.layers.items():
        model.denoiser.set_submodule(name, layer if on else layer.base)  # pyright: ignore[reportArgumentType]


def difference(model: Any, ours: Ours, dense: Dense) -> float:
    """Return the largest relative difference of losses and gradients of one step."""
    found: list[list[Tensor]] = []
    for contender in (ours, dense):
        put(model, contender, True)
        contender.optimizer.zero_grad(set_to_none=True)
        loss = contender.loss(0)
        loss.backward()
        put(model, contender, False)
        found.append([loss.detach()[None], *gradients(contender)])
    return max(float((one - other).norm() / other.norm().clamp_min(1e-12)) for one, other in zip(*found, strict=True))


def gradients(contender: Any) -> list[Tensor]:
    """Return the gradients of all `down`, all `up` and all merge vectors, each as one vector."""
    if isinstance(contender, Dense):
        layers = contender.layers.values()
        downs = [torch.cat([each.grad.flatten() for each in layer.downs]) for layer in layers]
        ups = [torch.cat([each.grad for each in layer.ups], dim=1).flatten() for layer in layers]
        merge = [each.grad for k in range(2) for layer in layers for each in [layer.merge[k]]]
    else:
        layers = contender.layers.values()
        downs, ups = [each.down.grad.flatten() for each in layers], [each.up.grad.flatten() for each in layers]
        merge = [contender.module.vectors.grad.flatten()]
    return [torch.cat(downs), torch.cat(ups), torch.cat(merge)]


def peak(name: str, size: str, *settings: Any) -> float | None:
    """Return the peak MiB of building a contender and two steps, without the loaded UNet."""
    model = prepared(size, *settings)
    warm_up(model)
    memory = Peak(model.device)
    memory.start()
    contender = BUILDERS[name](model, size)
    put(model, contender, True)
    for i in range(2):
        contender.run(i)
    return memory.mib()


def prepared(size: str, device: str, dtype: str, latents: int | None, threads: int) -> Any:
    torch.set_num_threads(threads)
    return build(size, device, getattr(torch, dtype), latents)


def timer(model: Any, contender: Ours | Dense) -> Any:
    def timed(i: int) -> float:
        put(model, contender, True)
        taken = seconds(lambda: contender.run(i), model.device)
        put(model, contender, False)
        return taken

    return timed


def main(arguments: list[str] | None = None) -> None:
    options = parsed(arguments)
    settings = (options.size, options.device, options.dtype, options.latents, options.threads)
    measured = () if options.skip_memory else (OURS, JOINT, DENSE)
    memory = {name: in_own_process(peak, name, *settings) for name in measured}
    model = prepared(*settings)
    contenders = {name: make(model, options.size) for name, make in BUILDERS.items()}
    far = difference(model, contenders[OURS], contenders[DENSE])
    if model.dtype == torch.float32 and far > TOLERANCE:
        sys.exit(f"{OURS} and {DENSE} differ by {far}; the tolerance is {TOLERANCE}")
    times = interleaved({name: timer(model, each) for name, each in contenders.items()}, options.repeats)
    rows = [
        [
            name,
            f"{median(each):.3f}",
            f"{ratio(each, times[JOINT]):.2f}",
            f"{memory[name]:.0f}" if memory.get(name) else "",
        ]
        for name, each in times.items()
    ]
    goals = [
        {"quantity": f"{one} / {other}", "value": ratio(times[one], times[other]), "goal": f"{bound} {goal}"}
        for one, other, bound, goal in GOALS
    ]
    facts = {"settings": settings, "rank": RANKS[options.size], "difference": far, "goals": goals, "memory": memory}
    text = "\n\n".join(
        [
            f"size {options.size}, latent edge {model.latent_shape[-1]}, {len(model.layers.trained())} layers, rank "
            f"{RANKS[options.size]}, {options.dtype}, {options.device}, {options.threads} thread(s); largest relative "
            f"difference from {DENSE}: {far:.0e}",
            markdown(["step", "s", f"x {JOINT}", "MiB"], rows),
            markdown(
                ["quantity", "measured", "goal"],
                [[each["quantity"], f"{each['value']:.2f}", each["goal"]] for each in goals],
            ),
        ]
    )
    publish(text + "\n", facts | {"times": times}, options)


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(RANKS), default="micro")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 for sdxl, else float32")
    parser.add_argument("--latents", type=int, help="edge of the latents for slice and sdxl, a multiple of 4")
    parser.add_argument("--repeats", type=int, default=5, help="rounds after one warm-up round")
    parser.add_argument(
        "--skip-memory", action="store_true", help="do not measure memory, which builds the model again"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on a CPU")
    parser.add_argument("--out", help="markdown file to write")
    parser.add_argument("--json", help="JSON file to write with all numbers")
    options = parser.parse_args(arguments)
    options.dtype = options.dtype or ("bfloat16" if options.size == "sdxl" else "float32")
    if options.latents and (options.size not in DIFFERENCES or options.latents % 4):
        parser.error("--latents must be a multiple of 4 and needs --size slice or sdxl; use --latents 16")
    return options


if __name__ == "__main__":
    main()
