"""A request of task=merge, task=generate or task=tune: the user's LoRAs, a method, a model and an output."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from lorabench.base import UserError, __version__
from lorabench.config.schemas import GenerateSpec, ModelSpec, TrainerSpec
from lorabench.config.task_schemas import FileTask
from lorabench.data.concepts import Reference
from lorabench.data.markers import parse
from lorabench.engine.artifact import Artifact
from lorabench.engine.bar import Bar
from lorabench.engine.own_files import VERSION
from lorabench.engine.record import sha256
from lorabench.engine.store import Store
from lorabench.engine.work import Progress
from lorabench.merging.method import Method
from lorabench.models.files import ModelFiles, model_files
from lorabench.models.shapes import family_and_guidance
from lorabench.personalization.schemes.given import Given
from lorabench.report.labels import label
from lorabench.sampling.rule import Context
from lorabench.tasks.checks import check_generation, check_rule
from lorabench.tasks.composition import ablation_of, method_of
from lorabench.tasks.given_loras import user_loras
from lorabench.tasks.merge_files import drawn, image_cost, merged
from lorabench.tasks.prompts import check_style_kept, readers_of
from lorabench.tasks.recognition import recognized
from lorabench.tasks.user_loras import UserLoRA, UserPair

if TYPE_CHECKING:
    from lorabench.lora.adapter import LoRA
    from lorabench.merging.merge import Merged
    from lorabench.models.model import DiffusionModel


@dataclass(frozen=True)
class Request:
    """The configuration of a task on files.

    Args:
        name: Name of the method and its ablation.
        own: The user's LoRAs.
        method: The method.
        model: The base model.
        generation: Settings of image generation.
        trainer: Device and precision.
        task: Settings of the task.
        root: Folder of the store.
        seed: Seed of all random draws.
        output: File or folder to write.
        settings: Settings of the method, for the metadata of the file.
        style_token: Identifier of styles in prompts.
    """

    name: str
    own: UserPair
    method: Method
    model: ModelSpec
    generation: GenerateSpec
    trainer: TrainerSpec
    task: FileTask
    root: Path
    seed: int
    output: Path
    settings: Any = None
    style_token: str = ""

    @classmethod
    def of(cls, cfg: DictConfig) -> Request:
        """Return the request of a configuration.

        Raises:
            UserError: If a file or a prompt is missing.
        """
        own = UserPair(user_loras(cfg, "content"), user_loras(cfg, "style"), cfg.prompt).weighted(cfg.weights)
        method = method_of(cfg)
        own.check(method)
        name = label(method.name, ablation_of())
        is_chosen = any(each.startswith("model") for each in HydraConfig.get().overrides.task)
        if not (is_chosen or method.merge.needs_model):
            default: Any = OmegaConf.to_object(cfg.model)
            cfg.model = recognized(own, default)  # generate.steps and generate.guidance follow it
        typed: Any = {name: OmegaConf.to_object(cfg[name]) for name in ("model", "generate", "trainer", "task")}
        return cls(
            name, own, method, typed["model"], typed["generate"], typed["trainer"], typed["task"], Path(cfg.store),
            cfg.seed, Path(cfg.output), OmegaConf.to_container(cfg.method, resolve=True), cfg.prompts.style_token,
        )  # fmt: skip

    def check_sampling(self) -> None:
        """Check the sampling of the method against the model, which is neither downloaded nor loaded if it is known.

        Raises:
            UserError: If the model has no such sampler, guidance or prompts by adapter.
        """
        family, kind = family_and_guidance(self.model)
        check_generation(self.generation, family, kind)
        context = Context(self.own.roles, self.generation.steps, self.generation.guidance)
        check_rule(replace(self.method, training=Given()), self.name, context, family, kind)

    def check_prompts(self) -> None:
        """Warn of prompts that the model truncates; raise UserError if words of the style would be lost."""
        readers = readers_of(self.files, self.model.name)
        words = {self.style_token, *(word for own in self.own.styles for word in own.style_words)}
        for prompt in filter(None, [self.own.prompt, *(own.prompt for own in self.own.files)]):
            check_style_kept(parse(prompt).text, words, readers)
        if self.generation.negative:
            check_style_kept(self.generation.negative, (), readers)

    @cached_property
    def store(self) -> Store:
        """Open the store, on first use only: a sum of two files needs none."""
        return Store.open(self.root)

    @cached_property
    def files(self) -> ModelFiles:
        """Find the files of the model once; for a hub id this asks the hub."""
        return model_files(self.model)

    def merged(self, bar: Bar) -> Merged:
        """Merge the LoRAs. Images that the merge needs and the user does not give are generated and kept."""
        cost = image_cost(self.generation)
        return merged(self.own, self.method, self.model, self.seed, self.trainer, self.kept, bar.reach, cost)

    def kept(
        self, model: DiffusionModel, own: UserLoRA, lora: LoRA, progress: Callable[[int], None]
    ) -> list[Reference]:
        """Return images that a LoRA generates from its prompt, from the store."""
        from lorabench.data.images import image_paths, reference
        from lorabench.lora.files.refuse import resolve

        files, spec = self.files, replace(self.generation, negative=None)
        params = {
            "model": {"weights": self.store.digest(*files.sources()), **files.numbers()},
            "precision": self.trainer.precision, "lora": sha256(resolve(own.file)), "weight": own.weight,
            "prompt": own.prompt, **by_blocks(own),
            "generate": spec.params(), "seed": self.seed,
        }  # fmt: skip

        def generate(folder: Path, progress: Progress) -> None:
            images = drawn(spec, self.seed, self.trainer, model, own, lora, progress)
            for index, image in enumerate(images):
                image.load().save(folder / f"{index:02d}.png")

        teachers = Artifact("teachers", Path(own.path).name, 1, params, generate)
        folder = self.store.get_or_make(teachers, lambda draft: generate(draft, progress))
        assert own.prompt
        return [reference(path, "", own.prompt) for path in image_paths(folder)]


def by_blocks(own: UserLoRA) -> dict[str, Any]:
    """Return the weights by block of a LoRA as part of a key; nothing without."""
    return {} if own.blocks is None else {"blocks": own.blocks, "role": own.role}


def resolved(own: UserLoRA) -> Path | None:
    """Return the file of a LoRA, without links; None if there is none."""
    from lorabench.lora.files.refuse import resolve

    try:
        return resolve(own.file).resolve()
    except UserError:
        return None


def origin(request: Request) -> dict[str, str]:
    """Return the metadata of the merged file: method, settings and inputs."""
    inputs = [
        {"role": role, "name": Path(own.path).name, "sha256": sha256(file), "weight": own.weight, **by_blocks(own)}
        for own, role in zip(request.own.files, request.own.roles, strict=True)
        if (file := resolved(own)) is not None
    ]
    return {
        VERSION: __version__, "lorabench.method": request.name, "lorabench.seed": str(request.seed),
        "lorabench.inputs": json.dumps(inputs), "lorabench.settings": json.dumps(request.settings, default=str),
        "lorabench.model": request.model.name,
    }  # fmt: skip
