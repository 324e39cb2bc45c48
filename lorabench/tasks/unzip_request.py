"""A request of task=unzip: a method, a model and the settings of its training and its images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lorabench.base import UserError
from lorabench.config.schemas import GenerateSpec, LoRASpec, TrainerSpec
from lorabench.config.task_schemas import UnzipTask
from lorabench.data.concepts import Concept, Reference
from lorabench.engine.store import Store
from lorabench.merging.method import Method
from lorabench.models.files import ModelFiles
from lorabench.personalization.schemes.unziplora import UnZipJob, UnZipLoRA
from lorabench.tasks.unzip_words import Words


@dataclass(frozen=True)
class Unzip:
    """Settings of the command.

    Args:
        world: Whether the model is that of the microworld, whose words are few.
        settings: Settings of the method, for the files' metadata.
    """

    method: Method
    ablation: str
    model: ModelFiles
    model_name: str
    world: bool
    scorers: tuple[Any, ...]
    lora: LoRASpec
    generation: GenerateSpec
    trainer: TrainerSpec
    task: UnzipTask
    store: Store
    seed: int
    settings: Any

    @cached_property
    def scheme(self) -> UnZipLoRA:
        """Return the training.

        Raises:
            UserError: If the method has another training or another merge than the sum.
        """
        training = self.method.training
        if not isinstance(training, UnZipLoRA):
            option = self.method.options["training"]
            raise UserError(f"task=unzip trains as UnZipLoRA, not as method/training={option}; use method=unziplora")
        if (merge := self.method.options["merge"]) != "direct":
            raise UserError(
                f"task=unzip adds both LoRAs and method/merge={merge} does not; use task=merge for the files"
            )
        return training

    def job(self, images: tuple[Reference, ...], words: Words) -> UnZipJob:
        """Return the training job of images and their words."""
        concept = Concept("image", "content", words.subject, images, ())
        return UnZipJob(concept, self.lora, "image", words.prompts, self.scheme)
