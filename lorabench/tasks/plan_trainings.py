"""The trainings of a plan: which adapters a row has for a pair, and the artifacts that contain them."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lorabench.base import UserError
from lorabench.config.dataset_schemas import DatasetSpec
from lorabench.config.schemas import GenerateSpec, LoRASpec, TrainerSpec
from lorabench.data.concepts import ROLES, Concept, Role
from lorabench.data.pairs import Pair
from lorabench.engine.artifact import Artifact, Part
from lorabench.engine.store import Store
from lorabench.engine.work import Resumable
from lorabench.merging.method import Method
from lorabench.models.files import ModelFiles
from lorabench.personalization.class_images import ClassImages
from lorabench.personalization.training import BACKBONE, Job, Output, backbone_of
from lorabench.sampling.rule import Context, adapters_used
from lorabench.scoring.description import ScorerFiles, read_config
from lorabench.scoring.files import ScorerSet
from lorabench.tasks import jobs as tasks
from lorabench.tasks.composition import check_images
from lorabench.tasks.rows import Row

# The version of a stage. Raise it when its results change for all methods; trainings have versions of their own.
VERSIONS = {"class_images": 1, "personalize": 1}


@dataclass(frozen=True)
class Trainings:
    """Builder of the artifacts of trainings.

    Args:
        store: Store of the artifacts.
        dataset: Settings of the dataset.
        model: Files of the base model.
        weights: Hash of the model's files.
        scorers: Files of the scorers, which some trainings need.
        lora: Settings of LoRA training.
        generation: Settings of image generation.
        trainer: Device, precision and processes.
        seed: Seed of the run.
    """

    store: Store
    dataset: DatasetSpec
    model: ModelFiles
    weights: str
    scorers: ScorerSet
    lora: LoRASpec
    generation: GenerateSpec
    trainer: TrainerSpec
    seed: int

    def model_params(self) -> dict[str, Any]:
        """Return all properties of the base model that change results."""
        return {"weights": self.weights, "precision": self.trainer.precision, **self.model.numbers()}

    def outputs(self, row: Row, pair: Pair) -> list[Output]:
        """Return the LoRAs of a row, without those that neither its merge nor its sampling rule uses."""
        method = row.own
        check_images(method, self.dataset)
        outputs = self.declared(method, pair)
        roles: tuple[Role, ...] = tuple(output.shown.role for output in outputs)
        sampled = adapters_used(method.sampling, self.context(roles))
        return [
            output
            for output, role, used in zip(outputs, roles, sampled, strict=True)
            if used and method.merge.uses(role)
        ]

    def declared(self, method: Method, pair: Pair) -> list[Output]:
        """Return the LoRAs of a method's training; of a pair from two images, content of one and style of the other.

        Raises:
            UserError: If these images have one LoRA for both.
        """
        if not pair.sources:
            return method.training.outputs(pair, self.lora)
        found = []
        for role, source in zip(ROLES, pair.sources, strict=True):
            outputs = [each for each in method.training.outputs(source, self.lora) if each.role == role]
            if not outputs:
                raise UserError(
                    f"method/training={method.options['training']} has no LoRA of the {role} by itself, which "
                    "uses=[cross] needs; leave cross out"
                )
            found += outputs
        return found

    def context(self, roles: tuple[Role, ...]) -> Context:
        """Return the context of a sampling rule for adapters of these roles."""
        return Context(roles, self.generation.steps, self.generation.guidance)

    def loras(self, row: Row, pair: Pair) -> list[Part]:
        """Return the LoRAs that a row merges or samples with, one per concept of `adapted`."""
        return [Part(self.training(output.job), output.name) for output in self.outputs(row, pair)]

    def adapted(self, row: Row, pair: Pair) -> Pair:
        """Return the pair with the concepts that the row's LoRAs are trained on."""
        shown = [output.shown for output in self.outputs(row, pair)]
        if len(shown) == len(pair.concepts):
            return pair
        contents, styles = (tuple(each for each in shown if each.role == role) for role in ROLES)
        return replace(pair, contents=contents, styles=styles, couples=())

    def backbone(self, row: Row, pair: Pair) -> Path | None:
        """Return the file of the base weights on which the adapters of a row are used; None for the plain model."""
        return self.backbone_file(backbone_of(self.outputs(row, pair)))

    def training(self, job: Job) -> Artifact:
        """Return the artifact of a training job, which has one or several LoRAs."""
        spec = job.recipe
        params: dict[str, Any] = {"model": self.model_params(), "job": job.params, "seed": self.seed}
        if spec.sample_every or job.samples:
            params["generate"] = {"steps": self.generation.steps, "guidance": self.generation.guidance}
        scorers = {kind: self.scorer(kind, job) for kind in job.scorers}
        if scorers:
            params["scorers"] = {kind: self.store.digest(*files.contents()) for kind, files in scorers.items()}
        prior = self.class_images(job.concept, job.class_images) if job.class_images else None
        needed = [self.training(each) for each in job.needs]
        inputs = {"class_images": [prior] if prior else [], "needs": needed, "backbone": self.backbone_of(job)}
        work = tasks.Personalize(
            self.model, self.trainer, job, self.seed, self.generation,
            (self.prior(job.concept, job.class_images), self.store.path(prior)) if prior else None,
            scorers,
            tuple(map(self.store.path, needed)), self.backbone_file(job.backbone),
        )  # fmt: skip
        return Artifact(
            job.stage, job.name, VERSIONS["personalize"], params, Resumable(work),
            {name: several for name, several in inputs.items() if several}, job.steps,
            2.0 * job.steps * spec.batch * spec.accumulate * (2 if prior else 1),
        )  # fmt: skip

    def backbone_of(self, job: Job) -> list[Part]:
        """Return the change of the base weights that a job is trained on, if there is one."""
        return [Part(self.training(job.backbone), BACKBONE)] if job.backbone else []

    def backbone_file(self, job: Job | None) -> Path | None:
        """Return the file of a change of the base weights."""
        return self.file(Part(self.training(job), BACKBONE)) if job else None

    def scorer(self, kind: str, job: Job) -> ScorerFiles:
        """Return the first scorer of a kind, which a training needs.

        Raises:
            UserError: If the configuration has none.
        """
        for files in self.scorers.scorers:
            if read_config(files.config)["kind"] == kind:
                return files
        raise UserError(
            f"training {job.name} needs a {kind} scorer; use scorers=micro, or "
            "scorers.backbones=[dino@vits16,clip@vitb32,csd@vitl14]"
        )

    def class_images(self, concept: Concept, count: int) -> Artifact:
        """Return the class images of a concept, which concepts of the same class share."""
        images = self.prior(concept, count)
        work = partial(tasks.class_images, self.model, self.trainer, images)
        params = {"model": self.model_params(), **images.params()}
        cost, name, version = 2.0 * count * self.generation.steps, ", ".join(images.prompts), VERSIONS["class_images"]
        return Artifact("class_images", name, version, params, work, steps=count, cost=cost)

    def prior(self, concept: Concept, count: int) -> ClassImages:
        """Return the description of a concept's class images."""
        return ClassImages.of(concept, count, self.generation, self.seed)

    def file(self, lora: Part) -> Path:
        """Return the file of a LoRA."""
        return self.store.path(lora.artifact) / f"{lora.name}.safetensors"
