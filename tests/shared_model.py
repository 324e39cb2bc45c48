"""One loaded pipeline for all tests of a process, loaded again only after a test has changed it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from torch import nn

from lorabench.models.files import model_folder
from lorabench.models.sdxl.model import SDXL

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
PLAIN = {bool, int, float, str}
LOADED: dict[Path, StableDiffusionXLPipeline] = {}


@contextmanager
def shared(folder: Path) -> Iterator[SDXL]:
    """Yield the model of a folder with weights, modules and settings as loaded."""
    pipeline = LOADED.pop(folder, None) or loaded(folder)
    model = SDXL(pipeline, model_folder(folder))
    before = state_of(model.pipeline)
    yield model
    if state_of(model.pipeline) == before:
        LOADED[folder] = model.pipeline


def loaded(folder: Path) -> StableDiffusionXLPipeline:
    """Load a pipeline and encode a prompt, because transformers adds hooks to the text encoders at the first one."""
    model = SDXL.load(folder)
    model.encode_prompts([""])
    return model.pipeline


def state_of(pipeline: StableDiffusionXLPipeline) -> list[Any]:
    """Return everything that a test can change in a pipeline, as values that can be compared."""
    parts = [getattr(pipeline, name) for name in PARTS]
    modules = [module for part in parts for module in part.modules()]
    tensors = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
    return [
        id(pipeline.scheduler),
        dict(pipeline.scheduler.config),
        len(pipeline.tokenizer),
        len(pipeline.tokenizer_2),
        [(id(module), len(vars(module)), *settings(module)) for module in modules],
        [(id(x), x._version, x.dtype, x.requires_grad, x.grad is None, x.double().sum().item()) for x in tensors],
    ]


def settings(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the plain attributes of a module and the number of its hooks."""
    for name, value in vars(module).items():
        if type(value) in PLAIN:
            yield name, value
        elif name.endswith("_hooks"):
            yield name, len(value)
