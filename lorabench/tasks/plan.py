"""The plan of a run: its artifacts for each row and pair, and the inputs of each.

The plan depends only on the configuration and on hashes of images and weights. So it is known, and a finished run is
recognized, before heavy packages are imported.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from lorabench.base import seed_of
from lorabench.config.dataset_schemas import DatasetSpec
from lorabench.config.schemas import GenerateSpec, LoRASpec, MergeSpec, TrainerSpec
from lorabench.data.catalogue import world_version
from lorabench.data.concepts import ROLES
from lorabench.data.pairs import Pair
from lorabench.data.scenes import Wording, worded
from lorabench.data.stylised import crosses
from lorabench.data.uses import CROSS, JOINT, Use, pair_for, scaled, strength_for
from lorabench.engine.artifact import Artifact
from lorabench.engine.record import key_of
from lorabench.engine.store import Store
from lorabench.merging.learned import LearnedMasks
from lorabench.models.files import ModelFiles
from lorabench.personalization.routing import routing_job
from lorabench.sampling.routing import LEARNED
from lorabench.sampling.rule import variants
from lorabench.scoring.files import ScorerSet
from lorabench.tasks import jobs as tasks
from lorabench.tasks import units
from lorabench.tasks.plan_trainings import Trainings
from lorabench.tasks.rows import ORACLE, Row
from lorabench.tasks.sample_keys import sample_name, sampling_key, scenes_of
from lorabench.tasks.scores import Scoring

STAGES = ("personalize", "merge", "generate", "embed", "score")
# The version of a stage. Raise it when its results change for all methods; components have versions of their own.
VERSIONS = {"merge": 2, "generate": 2, "oracle": 1}

Extended = TypeVar("Extended", bound="Plan")


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

    def extended(self, kind: type[Extended], **changes: Any) -> Extended:
        """Return a plan of a subclass with the same values, except for changes and the subclass's own fields."""
        return kind(**{each.name: getattr(self, each.name) for each in fields(Plan)} | changes)

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
                for concept, lora in zip(
                    self.trained.adapted(row, pair).concepts, self.trained.loras(row, pair), strict=True
                ):
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

    def merge(self, row: Row, pair: Pair) -> Artifact:
        """Return the merge of a row for a pair."""
        loras, merge, adapted = self.trained.loras(row, pair), row.own.merge, self.trained.adapted(row, pair)
        shared = {"model": self.trained.model_params(), "merge": row.merge_key(pair), "seed": self.seed}
        params = {**shared, "prompt": pair.prompt}
        learns = isinstance(merge, LearnedMasks)
        if learns and self.merging.pairs_per_batch != 1:  # it changes the last digits; 1 is omitted to keep old keys
            params["pairs_per_batch"] = self.merging.pairs_per_batch
        backbone = self.trained.backbone(row, pair)
        work = tasks.MergePair(
            self.model, self.trainer, merge, tuple(self.trained.file(lora) for lora in loras), adapted, self.seed,
            self.merging.pairs_per_batch, backbone,
        )  # fmt: skip
        steps = merge.optimizer_steps(adapted)
        rows = merge.fit.batch * (2 if row.is_uniform else len(pair.concepts)) if isinstance(merge, LearnedMasks) else 0
        return Artifact(
            "merge", pair.name, VERSIONS["merge"], params, work, {"loras": loras}, steps, 10.0 * steps * rows,
            key_of("batch", shared | {"backbone": backbone and backbone.parent.name}) if learns else None,
        )  # fmt: skip

    def generate(self, row: Row, pair: Pair, use: Use = JOINT) -> Artifact:
        """Return the images of a row for a pair: samples, or the renderings of the oracle."""
        return self.oracle(pair) if row.name == ORACLE else self.sample(row, pair, use)

    def sample(self, row: Row, pair: Pair, use: Use = JOINT) -> Artifact:
        """Return the sampled images of a row for a pair."""
        shown = pair_for(pair, use)
        method, seeds = row.own, self.seeds(shown)
        loras = self.trained.loras(row, pair)
        adapted = replace(self.trained.adapted(row, pair), alone=shown.alone, scenes=shown.scenes)
        merged = self.merge(row, pair) if row.is_method else None
        strength = row.strength
        if use != JOINT and method.merge.keeps_parts:
            strength = scaled(row.strength, strength_for(use))
        params = {
            "model": self.trained.model_params(), "sampling": sampling_key(method.sampling),
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
            self.model, self.trainer, method.merge, method.sampling, tuple(self.trained.file(lora) for lora in loras),
            merged and self.path(merged), adapted, tuple(seeds), self.generation, strength, self.seed,
            self.trained.backbone(row, pair), self.path(encoder[0]) if encoder else None,
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
        return [self.trained.training(routing_job(mode, pair, self.trained.outputs(row, pair)))]

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
    def trained(self) -> Trainings:
        """Return the builder of trainings."""
        return Trainings(
            self.store, self.dataset, self.model, self.weights, self.scorers, self.lora, self.generation,
            self.trainer, self.seed,
        )  # fmt: skip

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
        branches = row.own.sampling.branches(self.trained.context(pair.roles)) or ()
        return sorted(variants(branches) - {"prompt"})

    def path(self, artifact: Artifact) -> Path:
        """Return the folder of an artifact."""
        return self.store.path(artifact)
