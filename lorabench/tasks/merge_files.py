"""Merging the user's own LoRAs by any method: `lorabench.merge`, also used by task=merge and task=generate.

    from lorabench import UserLoRA, merge

    merge("dog.safetensors", "crayon.safetensors").save("merged.safetensors")  # the direct merge, without any model

    dog, crayon = UserLoRA("dog.safetensors", "a sks dog"), UserLoRA("crayon.safetensors", "a cat in szn style")
    merged = merge(dog, crayon, method="duolora", prompt="a sks dog in szn style", device="gpu")
    merged.save("merged.safetensors", format="kohya")

A method that learns needs the model, the prompts, and images of both: the given ones, or images that each LoRA
generates from its own prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabench.base import UserError, seed_of
from lorabench.config.choices import choose
from lorabench.config.schemas import GenerateSpec, ModelSpec, TrainerSpec
from lorabench.data.concepts import Reference, Role
from lorabench.merging.learned import LearnedMasks
from lorabench.merging.method import Method, load
from lorabench.models.files import model_files, preset
from lorabench.models.shapes import layer_map
from lorabench.tasks.recognition import fitting, recognized
from lorabench.tasks.user_loras import UserLoRA, UserPair

if TYPE_CHECKING:
    from lorabench.lora.adapter import LoRA
    from lorabench.merging.merge import Merged
    from lorabench.models.model import DiffusionModel

LAYERS = 1.0  # work of a merge without the model
STEP, IMAGE = 10.0, 2.0  # cost of a row of a merging step, and of a step of an image, in denoiser rows; see Item.cost

Own = UserLoRA | Path | str
Teacher = Callable[["DiffusionModel", UserLoRA, "LoRA", Callable[[int], None]], Sequence[Reference]]


def merge(
    content: Own | Sequence[Own],
    style: Own | Sequence[Own],
    /,
    method: str | Method = "direct",
    *,
    prompt: str | None = None,
    model: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
    teachers: GenerateSpec | None = None,
    **settings: Any,
) -> LoRA:
    """Merge a content LoRA and a style LoRA (or several of each) into one LoRA.

    Args:
        content, style: One LoRA or several: files, or files with prompts and images.
        method: Name of the method.
        prompt: Prompt with the identifiers of both; only a method that learns needs one.
        model: A preset ("sdxl", "koala_1b", "micro", "flux", ...), a diffusers folder, a single file or a hub id. None
            is the transformer whose layers the files adapt, otherwise SDXL.
        device: "cpu", "gpu" or "auto".
        seed: Seed of all random draws.
        teachers: Sampler of images for LoRAs that come without images. None: 4 images with the model's own settings.
        settings: As on the command line: merge(..., method="duolora", ablation="no_cycle", lambda_prior=0.2).

    Raises:
        UserError: If files, method and model do not fit together; before any long work starts.
    """
    choose("device", device, ("cpu", "gpu", "auto"))
    chosen = load(method, **settings) if isinstance(method, str) else method
    check_file(chosen)
    pair = UserPair(listed(content, "content"), listed(style, "style"), prompt)
    spec = preset(model) if model is not None else recognized(pair, preset("sdxl"))
    trainer = TrainerSpec(accelerator=device, precision="32-true", workers=0, threads=1)
    teachers = teachers or GenerateSpec(images=4, steps=spec.steps, guidance=spec.guidance, batch=1)
    return merged(pair, chosen, spec, seed, trainer, partial(drawn, teachers, seed, trainer)).file


def merged(
    own: UserPair,
    method: Method,
    spec: ModelSpec,
    seed: int,
    trainer: TrainerSpec,
    teacher: Teacher,
    progress: Callable[[float], None] | None = None,
    image_cost: float = 0.0,
) -> Merged:
    """Merge a pair; the model's weights are only read for a method that needs them.

    Args:
        own: The LoRAs.
        method: The method.
        spec: The base model.
        seed: Seed of all random draws.
        trainer: Device and precision.
        teacher: Function that generates the images of a LoRA that has none.
        progress: Called with the finished work, in the units of `work`.
        image_cost: Work of one image of `teacher`.
    """
    own.check(method)
    loras = tuple(each.read(spec) for each in own.files)
    own.check_parts(loras, method)
    given_images = [each.references() for each in own.files]
    from lorabench.merging.merge import MergeEnvironment, MergeItem

    layers = layer_map(spec)
    for each, lora, role in zip(own.files, loras, own.roles, strict=True):
        try:
            layers.adapted([lora], [role])
        except UserError as error:
            raise UserError(f"{each.path} does not fit {spec.path}: {error}, or use model={fitting(lora)}") from None
    merge = method.merge
    if not merge.needs_model:
        env = MergeEnvironment(layers, None, seed, trainer, share=lambda share: progress and progress(share * LAYERS))
        [result] = merge.merge_pairs([MergeItem(loras, own.pair())], env)
        return result
    from lorabench.tasks.jobs import load_model

    loras = tuple(lora.loaded() for lora in loras)
    base = load_model(model_files(spec), trainer.accelerator)
    images, done = [], 0.0

    def advance(count: int, cost: float) -> None:
        if progress:
            progress(done + count * cost)

    for each, lora, known in zip(own.files, loras, given_images, strict=True):
        if not merge.needs_images:
            images.append((each.blank(),))
            continue
        images.append(tuple(known or teacher(base, each, lora, partial(advance, cost=image_cost))))
        done += 0 if known else len(images[-1]) * image_cost
    item = MergeItem(loras, own.pair(images))
    env = MergeEnvironment(base.layers, base, seed, trainer, partial(advance, cost=step_cost(own, method)))
    [result] = merge.merge_pairs([item], env)
    return result


def work(own: UserPair, method: Method, teachers: GenerateSpec) -> float:
    """Return the cost of a merge, in rows of the denoiser while sampling."""
    merge = method.merge
    if not merge.needs_model:
        return LAYERS
    lacking = sum(not each.images for each in own.files) if merge.needs_images else 0
    return lacking * teachers.images * image_cost(teachers) + merge.optimizer_steps(own.pair()) * step_cost(own, method)


def image_cost(spec: GenerateSpec) -> float:
    """Return the cost of an image, in rows of the denoiser while sampling."""
    return IMAGE * spec.steps


def step_cost(own: UserPair, method: Method) -> float:
    """Return the cost of a merging step, in rows of the denoiser while sampling."""
    batch = method.merge.fit.batch if isinstance(method.merge, LearnedMasks) else 1
    return STEP * len(own.files) * batch


def drawn(
    spec: GenerateSpec,
    seed: int,
    trainer: TrainerSpec,
    model: DiffusionModel,
    own: UserLoRA,
    lora: LoRA,
    progress: Callable[[int], None],
) -> list[Reference]:
    """Generate images of a LoRA's own prompt, as references; the seed is made of prompt, index and `seed`.

    Args:
        spec: Sampler, with the number of images.
        seed: Seed of the command.
        trainer: Device and precision.
        model: The model.
        own: The LoRA's prompt.
        lora: The LoRA.
        progress: Called with the number of finished images.
    """
    from PIL import Image

    from lorabench.sampling.generate import generate

    assert own.prompt
    seeds = [seed_of("teacher", own.prompt, index, seed) for index in range(spec.images)]
    images = generate(model, [lora], [own.prompt] * spec.images, seeds, spec, trainer, progress=progress)
    return [
        Reference("", own.prompt, hashlib.sha256(image.tobytes()).hexdigest(), partial(Image.fromarray, image))
        for image in images
    ]


def check_file(method: Method) -> None:
    """Check that one LoRA file expresses a method.

    Raises:
        UserError: If it does not.
    """
    if not method.is_file:
        raise UserError(
            f"{method.name} cannot be exported as one LoRA file, because method/sampling={method.options['sampling']} "
            "changes adapter scales or guidance while sampling; use task=generate"
        )


def listed(owns: Own | Sequence[Own], role: Role) -> tuple[UserLoRA, ...]:
    """Return one LoRA or several as a tuple, with their role."""
    several = owns if isinstance(owns, Sequence) and not isinstance(owns, str) else [owns]
    return tuple(replace(each if isinstance(each, UserLoRA) else UserLoRA(each), role=role) for each in several)
