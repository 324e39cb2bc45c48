"""`lorabench.apply`: a method, with adapter scales by step if its rule has them, on the user's own diffusers pipeline.

pipeline = StableDiffusionXLPipeline.from_pretrained("stabilityai/stable-diffusion-xl-base-1.0")
with lorabench.apply(pipeline, ("dog.safetensors", "crayon.safetensors"), method="klora"):
    image = pipeline("a sks dog in szn style").images[0]
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from lorabench.base import UserError
from lorabench.config.schemas import TrainerSpec
from lorabench.merging.method import Method, load
from lorabench.tasks.merge_files import Own, listed
from lorabench.tasks.user_loras import UserLoRA, UserPair

if TYPE_CHECKING:
    from lorabench.lora.adapter import Adapter
    from lorabench.lora.layer import Adapters
    from lorabench.models.model import DiffusionModel
    from lorabench.sampling.parts import Parts

SOURCE = '("content.safetensors", "style.safetensors")'


class Applied:
    """A method on a pipeline, until `remove` is called or the context ends."""

    def __init__(self, stack: ExitStack):
        self._stack = stack

    def remove(self) -> None:
        """Put the pipeline back as it was."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.remove()


def apply(
    pipeline: Any, source: Path | str | Sequence[Own | Sequence[Own]], method: str | Method = "klora", **settings: Any
) -> Applied:
    """Put a method on a diffusers pipeline of SDXL.

    Scales by step are set through hooks on the denoiser, so the pipeline is called as usual. Adapters on the text
    encoders apply to prompts that are encoded while the method is applied.

    Args:
        pipeline: A pipeline with SDXL's UNet and text encoders.
        source: Content LoRA and style LoRA (or a list of each); or a run folder, whose one merge in `merged/` is
            applied for every method.
        method: Name of a method, or a method.
        settings: Its settings, `ablation="late_switch"`, `tau=2`.

    Returns:
        A context manager, which may be ignored.

    Raises:
        UserError: If the pipeline is of another family or has LoRAs already, the files do not fit it, or the method
            cannot be applied in this way.
    """
    chosen = load(method, **settings) if isinstance(method, str) else method
    with ExitStack() as stack:  # closed if anything is refused
        fill(pipeline, source, chosen, stack)
        return Applied(stack.pop_all())


def fill(pipeline: Any, source: Path | str | Sequence[Any], method: Method, stack: ExitStack) -> None:
    """Attach adapters and hooks to a pipeline until the stack is closed.

    Args:
        pipeline: Pipeline of diffusers.
        source: A merged file or folder, or a content LoRA and a style LoRA.
        method: The method.
        stack: Stack that removes them.

    Raises:
        UserError: If the method cannot be applied to a pipeline, or a file does not fit it.
    """
    from lorabench.models.sdxl.user_pipeline import open_pipeline

    model = open_pipeline(pipeline)
    if isinstance(source, Path | str):
        attach(model, [merge_of(Path(source)).read()], stack)
        return
    if len(source) != 2:
        raise UserError(f"apply needs a content LoRA and a style LoRA; use {SOURCE}")
    pair = UserPair(listed(source[0], "content"), listed(source[1], "style"))
    if method.merge.needs_model:
        raise UserError(
            f"{method.name} learns its merge, which apply does not do; use task=merge, and the path of the merged file"
        )
    if method.sampling.routing != "none":
        raise UserError(
            f"{method.name} reads markers in prompts, which apply does not see; use routing='none', or task=generate"
        )
    pair.check(method)
    adapters = [each.read() for each in pair.files]
    pair.check_parts(adapters, method)
    model.layers.adapted(adapters, pair.roles)  # raises UserError if a file does not fit
    from lorabench.merging.merge import MergeEnvironment, MergeItem
    from lorabench.sampling.parts import step_scales, whole
    from lorabench.sampling.pipeline import RuleHooks
    from lorabench.sampling.rule import Context

    env = MergeEnvironment(model.layers, None, 0, TrainerSpec("cpu", "32-true", 0, 1))
    [merged] = method.merge.merge_pairs([MergeItem(tuple(adapters), pair.pair())], env)
    if method.is_file:
        attach(model, [merged.file], stack)
        return
    parts = method.merge.parts(adapters, pair.roles, merged.masks) or whole(merged.file)
    layers = model.layers.adapted(parts.adapters, parts.roles)
    text = step_scales(method.sampling, parts, Context(parts.roles, 1, 2.0, layers)).text
    attached = attach(model, parts.adapters, stack, parts, text)
    stack.callback(RuleHooks(pipeline, model.denoiser, method.sampling, parts, attached, layers).remove)


def attach(
    model: DiffusionModel, adapters: Sequence[Adapter], stack: ExitStack, parts: Parts | None = None, text: Any = None
) -> Adapters:
    """Put adapters on denoiser and text encoders until the stack is closed.

    Args:
        model: The model.
        adapters: The adapters.
        stack: Stack that removes them.
        parts: Masks of the adapters on the denoiser.
        text: Scales on the text encoders by layer.
    """
    masks = parts and parts.masks
    on_device = masks and {
        layer: tuple(mask.map(lambda tensor: tensor.to(model.device)) for mask in each) for layer, each in masks.items()
    }
    attached = stack.enter_context(model.attach(adapters, on_device))
    stack.enter_context(model.attach_text(adapters, text))
    return attached


def merge_of(source: Path) -> UserLoRA:
    """Return the one merged LoRA of a run folder, or a file."""
    if source.is_file():
        return UserLoRA(source)
    found = sorted((source / "merged").rglob("*.safetensors"))
    if len(found) != 1:
        count = "no merge" if not found else f"{len(found)} merges"
        raise UserError(f"{source} has {count} in merged/; use the path of one of its files, or {SOURCE}")
    return UserLoRA(found[0])
