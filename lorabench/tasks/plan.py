"""The plan of a run: its artifacts for each row and pair, and the inputs of each.

The plan depends only on the configuration and on hashes of images and weights. So it is known, and a finished run is
recognized, before heavy packages are imported.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from lorabench.base import UserError, seed_of
from lorabench.config.dataset_schemas import DatasetSpec
from lorabench.config.schemas import GenerateSpec, LoRASpec, MergeSpec, TrainerSpec
from lorabench.data.catalogue import world_version
from lorabench.data.pairs import ROLES, Concept, Pair, Role, Wording, worded
from lorabench.data.stylised import crosses
from lorabench.data.uses import CROSS, JOINT, Use, pair_for, strength_for
from lorabench.engine.artifact import Artifact, Part
from lorabench.engine.record import key_of
from lorabench.engine.store import Store
from lorabench.engine.work import Resumable
from lorabench.merging.learned import LearnedMasks
from lorabench.merging.method import Method, key_of_component
from lorabench.models.files import ModelFiles
from lorabench.personalization.class_images import ClassImages
from lorabench.personalization.routing import routing_job
from lorabench.personalization.training import BACKBONE, Job, Output, backbone_of
from lorabench.sampling.routing import LEARNED
from lorabench.sampling.rule import Context, Sampling, adapters_used, variants
from lorabench.scoring.description import ScorerFiles, read_config
from lorabench.scoring.files import ScorerSet
from lorabench.tasks import jobs as tasks
from lorabench.tasks import units
from lorabench.tasks.composition import check_images
from lorabench.tasks.rows import ORACLE, Row
from lorabench.tasks.scores import Scoring

STAGES = ("personalize", "merge", "generate", "embed", "score")
# The version of a stage. Raise it when its results change for all methods; components have versions of their own.
VERSIONS = {"class_images": 1, "personalize": 1, "merge": 2, "generate": 2, "oracle": 1}


@dataclass(frozen=True)
class Plan:
    """All artifacts of one run.

    Args:
        store: Store of the artifacts.
        pairs: Pairs of a subject and a style.
        rows: Rows of the table.
        dataset: Settings of the dataset.
        model: Files of the base model.
        model_name: Its name in tables.
        scorers: Files of the scorers.
        weights: Hash of the model's files.
        scorers_digest: Hash of the scorers' files.
        lora: Settings of LoRA training.
        generation: Settings of image generation.
        merging: Settings of merging.
        trainer: Device, precision and processes.
        seed: Seed of the run.
        scoring_batch: Images that a scorer embeds together.
        uses: Kinds of sample sets to generate.
        left_out: Listed scenes that the model would cut, with the reason.
    """

    store: Store
    pairs: list[Pair]
    rows: list[Row]
    dataset: DatasetSpec
    model: ModelFiles
    model_name: str
    scorers: ScorerSet
    weights: str
    scorers_digest: str
    lora: LoRASpec
    generation: GenerateSpec
    merging: MergeSpec
    trainer: TrainerSpec
    seed: int
    scoring_batch: int = 32
    uses: tuple[Use, ...] = (JOINT,)
    left_out: dict[str, str] = field(default_factory=dict)

    def artifacts(self, stage: str) -> list[Artifact]:
        """Return the artifacts of a stage, without duplicates."""
        if stage == "personalize":
            made = self.trainings()
        elif stage == "merge":
            made = [self.merge(row, pair) for row, pair in (*self.cells(), *self.cross_cells()) if row.is_method]
        elif stage == "generate":
            made = [self.generate(*each) for each in self.samples()]
        else:
            made = [self.score(*each) for each in self.samples()]
            if stage == "embed":
                made = [each for score in made for each in score.sources() if each.stage == stage]
        return list({each.key: each for each in made}.values())

    def all_artifacts(self) -> list[Artifact]:
        """Return the artifacts of all stages, in the order of the stages."""
        return [each for stage in STAGES for each in self.artifacts(stage)]

    def trainings(self) -> list[Artifact]:
        """Return the trained LoRAs, concept by concept, subjects first."""
        of: dict[tuple[int, str], list[Artifact]] = {}
        for row, pair in self.cells():
            if row.method is not None:
                for concept, lora in zip(self.adapted(row, pair).concepts, self.loras(row, pair), strict=True):
                    of.setdefault((ROLES.index(concept.role), concept.name), []).append(lora.artifact)
        return [each for key in sorted(of, key=lambda key: key[0]) for each in of[key]]

    def cells(self) -> Iterator[tuple[Row, Pair]]:
        """Return all combinations of a row and a pair."""
        return ((row, pair) for row in self.rows for pair in self.pairs)

    def cross_cells(self) -> Iterator[tuple[Row, Pair]]:
        """Return the rows with methods and the pairs whose content and style come from two images."""
        pairs = crosses(self.pairs) if CROSS in self.uses else []
        return ((row, pair) for row in self.rows for pair in pairs if row.method)

    def key(self) -> str:
        """Return the hash of all keys of scores; runs with equal keys have equal scores."""
        return key_of("run", {"scores": [self.score(*each).key for each in self.samples()]})

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

    def training(self, job: Job) -> Artifact:
        """Return the artifact of a training job, which has one or several LoRAs."""
        spec = job.recipe
        params: dict[str, Any] = {"model": self.model_params(), "job": job.params, "seed": self.seed}
        if spec.sample_every or job.samples:
            params["generate"] = {"steps": self.generation.steps, "guidance": self.generation.guidance}
        scorers = {kind: self.scorer(kind, job) for kind in job.scorers}
        if scorers:
            params["scorers"] = {kind: self.scoring.digests[files] for kind, files in scorers.items()}
        prior = self.class_images(job.concept, job.class_images) if job.class_images else None
        needed = [self.training(each) for each in job.needs]
        inputs = {"class_images": [prior] if prior else [], "needs": needed, "backbone": self.backbone_of(job)}
        work = tasks.Personalize(
            self.model, self.trainer, job, self.seed, self.generation,
            (self.prior(job.concept, job.class_images), self.path(prior)) if prior else None,
            scorers,
            tuple(map(self.path, needed)), self.backbone_file(job.backbone),
        )  # fmt: skip
        return Artifact(
            job.stage, job.name, VERSIONS["personalize"], params, Resumable(work),
            {name: several for name, several in inputs.items() if several}, job.steps,
            2.0 * job.steps * spec.batch * spec.accumulate * (2 if prior else 1),
        )  # fmt: skip

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

    def backbone_of(self, job: Job) -> list[Part]:
        """Return the change of the base weights that a job is trained on, if there is one."""
        return [Part(self.training(job.backbone), BACKBONE)] if job.backbone else []

    def backbone_file(self, job: Job | None) -> Path | None:
        """Return the file of a change of the base weights."""
        return self.file(Part(self.training(job), BACKBONE)) if job else None

    def backbone(self, row: Row, pair: Pair) -> Path | None:
        """Return the file of the base weights on which the adapters of a row are used; None for the plain model."""
        return self.backbone_file(backbone_of(self.outputs(row, pair)))

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

    def merge(self, row: Row, pair: Pair) -> Artifact:
        """Return the merge of a row for a pair."""
        loras, merge, adapted = self.loras(row, pair), row.own.merge, self.adapted(row, pair)
        shared = {"model": self.model_params(), "merge": row.merge_key(pair), "seed": self.seed}
        params = {**shared, "prompt": pair.prompt}
        learns = isinstance(merge, LearnedMasks)
        if learns and self.merging.pairs_per_batch != 1:  # it changes the last digits; 1 is omitted to keep old keys
            params["pairs_per_batch"] = self.merging.pairs_per_batch
        work = tasks.MergePair(
            self.model, self.trainer, merge, tuple(self.file(lora) for lora in loras), adapted, self.seed,
            self.merging.pairs_per_batch, self.backbone(row, pair),
        )  # fmt: skip
        steps = merge.optimizer_steps(adapted)
        rows = merge.fit.batch * (2 if row.is_uniform else len(pair.concepts)) if isinstance(merge, LearnedMasks) else 0
        return Artifact(
            "merge", pair.name, VERSIONS["merge"], params, work, {"loras": loras}, steps, 10.0 * steps * rows,
            key_of("batch", shared) if learns else None,
        )  # fmt: skip

    def generate(self, row: Row, pair: Pair, use: Use = JOINT) -> Artifact:
        """Return the images of a row for a pair: samples, or the renderings of the oracle."""
        return self.oracle(pair) if row.name == ORACLE else self.sample(row, pair, use)

    def sample(self, row: Row, pair: Pair, use: Use = JOINT) -> Artifact:
        """Return the sampled images of a row for a pair."""
        shown = pair_for(pair, use)
        method, seeds = row.own, self.seeds(shown)
        loras, adapted = self.loras(row, pair), pair_for(self.adapted(row, pair), use)
        merged = self.merge(row, pair) if row.is_method else None
        strength = row.strength
        if use != JOINT and method.merge.keeps_parts:
            strength = scaled(row.strength, strength_for(use))
        params = {
            "model": self.model_params(), "sampling": sampling_key(method.sampling),
            "generate": self.generation.params(), "prompt": shown.prompt, "seeds": seeds, **scenes_of(shown),
        }  # fmt: skip
        if merged is None:
            params["merge"] = row.merge_key(pair)
        if strength:
            params["strength"] = strength
        if method.sampling.routing != "none":
            params["marked"] = [[scene.marked(role) for role in ROLES] for scene in shown.drawn]
        encoder = self.encoder(row, pair)
        if prompts := self.prompts(row, adapted):
            params["prompts"] = {each: worded(shown.drawn, each) for each in prompts}
        work = units.Generate(
            self.model, self.trainer, method.merge, method.sampling, tuple(self.file(lora) for lora in loras),
            merged and self.path(merged), adapted, tuple(seeds), self.generation, strength, self.seed,
            self.backbone(row, pair), self.path(encoder[0]) if encoder else None,
        )  # fmt: skip
        return Artifact(
            "generate", sample_name(row, pair, use), VERSIONS["generate"], params, work,
            {"loras": loras, **({"merged": [merged]} if merged else {}), **({"encoder": encoder} if encoder else {})},
            len(seeds),
            2.0 * len(seeds) * self.generation.steps,
        )  # fmt: skip

    def encoder(self, row: Row, pair: Pair) -> list[Artifact]:
        """Return the expert encoder of a row for a pair, if its routing is learned."""
        if (mode := row.own.sampling.routing) not in LEARNED:
            return []
        return [self.training(routing_job(mode, pair, self.outputs(row, pair)))]

    def oracle(self, pair: Pair) -> Artifact:
        """Return the images that the microworld renders: the subject in the style."""
        count = len(self.seeds(pair))
        params = {
            "world": world_version(self.dataset), "content": pair.content_name, "style": pair.style_name,
            "images": count,
        }  # fmt: skip
        work, version = units.Oracle(pair, count), VERSIONS["oracle"]
        return Artifact("generate", f"{ORACLE} {pair.name}", version, params, work, steps=count, cost=count)

    def seeds(self, pair: Pair) -> list[int]:
        """Return one seed per image, the same for every method."""
        names, images = (pair.content_name, pair.style_name), range(self.generation.images)
        return [seed_of("image", *names, scene.prompt, i, self.seed) for scene in pair.drawn for i in images]

    def score(self, row: Row, pair: Pair, use: Use = JOINT) -> Artifact:
        """Return the scores of a row's images for a pair."""
        shown = pair_for(pair, use)
        return self.scoring.score(sample_name(row, pair, use), shown, self.generate(row, pair, use), self.seeds(shown))

    @cached_property
    def scoring(self) -> Scoring:
        """Return the builder of embeddings and scores."""
        world = world_version(self.dataset)
        return Scoring(self.store, self.scorers, self.trainer, self.scorers_digest, world, self.scoring_batch)

    def samples(self) -> Iterator[tuple[Row, Pair, Use]]:
        """Yield row, pair and use of the sample sets; the oracle has joint ones only."""
        for row, pair in self.cells():
            for use in self.uses:
                if use == JOINT or (row.method and use != CROSS):
                    yield row, pair, use
        for row, pair in self.cross_cells():
            yield row, pair, CROSS

    def prompts(self, row: Row, pair: Pair) -> list[Wording]:
        """Return the prompt variants that a row needs in addition to the prompt."""
        branches = row.own.sampling.branches(self.context(pair.roles)) or ()
        return sorted(variants(branches) - {"prompt"})

    def path(self, artifact: Artifact) -> Path:
        """Return the folder of an artifact."""
        return self.store.path(artifact)

    def file(self, lora: Part) -> Path:
        """Return the file of a LoRA."""
        return self.path(lora.artifact) / f"{lora.name}.safetensors"


def sample_name(row: Row, pair: Pair, use: Use) -> str:
    """Return the name of a sample set and of its scores."""
    return " ".join([row.name, pair.name, *([] if use == JOINT else [use])])


def scaled(strength: dict[Role, float] | None, other: dict[Role, float] | None) -> dict[Role, float] | None:
    """Return the product of two scales by role; None stands for 1."""
    if strength is None or other is None:
        return strength or other
    return {role: strength[role] * other[role] for role in ROLES}


def sampling_key(sampling: Sampling) -> dict[str, Any]:
    """Return what of a sampling rule determines its images; without routing, so that keys stay, where there is none."""
    key = key_of_component(sampling)
    if sampling.routing == "none":
        del key["settings"]["routing"]
    return key


def scenes_of(pair: Pair) -> dict[str, Any]:
    """Return the scenes of a pair as a part of a key; empty for a pair without scenes, to keep old keys."""
    return {"scenes": [[scene.prompt, scene.text] for scene in pair.scenes]} if pair.scenes else {}
