"""The artifacts of a run: which there are for each row and pair, and what each is made of.

Everything here follows from the config and from hashes of images and weights, so that the plan is known, and a finished
run recognized, before anything heavy is imported.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from lorabench.base import UserError, seed_of
from lorabench.config.schemas import DatasetSpec, GenerateSpec, LoRASpec, MergeSpec, MicroworldSpec, TrainerSpec
from lorabench.data.catalogue import aligned, world_version
from lorabench.data.pairs import ROLES, Concept, Pair, Role, Wording, joined, worded
from lorabench.engine.artifact import Artifact, Part
from lorabench.engine.record import canonical, key_of, sha256
from lorabench.engine.store import Store
from lorabench.merging import method as methods
from lorabench.models.files import ModelFiles
from lorabench.personalization.class_images import ClassImages
from lorabench.personalization.phases import check_aligned, updates
from lorabench.scoring.files import ScorerSet
from lorabench.tasks import jobs as tasks
from lorabench.tasks import units
from lorabench.tasks.scores import Scoring

STAGES = ("personalize", "merge", "generate", "embed", "score")
# The version of a stage. Raise it when its results change for all methods; a method has a version of its own.
VERSIONS = {"class_images": 1, "personalize": 1, "merge": 2, "generate": 2, "oracle": 1}

FLOORS = ("base", "content_only", "style_only")
ORACLE = "oracle"


@dataclass(frozen=True)
class Row:
    """A row of the table: the chosen method, a frame row, or the oracle, which has no method.

    live: drawn from the LoRAs at the method's scales, without a merge.
    strength: of all LoRAs of a role, beside what the method makes of them, while drawing; None is 1 for both.
    """

    name: str
    ablation: str = "none"
    settings: dict[str, Any] | None = None
    live: bool = False
    strength: dict[Role, float] | None = None

    @property
    def is_method(self) -> bool:
        return not self.live and self.name != ORACLE

    def method(self) -> methods.Method:
        assert self.settings is not None
        return _method(canonical(self.settings))

    def slice(self) -> dict[str, Any]:
        """Return what changes the results of the method: its version and settings, with files by their content."""
        assert self.settings is not None
        method = self.method()
        numbers = {key: value for key, value in self.settings.items() if key != "concepts"}
        numbers |= {key: sha256(file) for key, file in method.files().items()}
        return {"settings": numbers, "version": method.version}


@cache
def _method(settings: str) -> methods.Method:
    return methods.build(json.loads(settings))


@dataclass(frozen=True)
class Plan:
    """All artifacts of one run.

    weights: digest of the model's files; scorers_digest: of the scorers'.  scoring_batch: images scored together.
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

    def artifacts(self, stage: str) -> list[Artifact]:
        """Return the artifacts of a stage, each once."""
        if stage == "personalize":
            made = self.trainings()
        elif stage == "merge":
            made = [self.merge(row, pair) for row, pair in self.cells() if row.is_method]
        elif stage == "generate":
            made = [self.generate(row, pair) for row, pair in self.cells()]
        else:
            made = [self.score(row, pair) for row, pair in self.cells()]
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
            if row.settings is not None:
                for concept, lora in zip(self.adapted(row, pair).concepts, self.loras(row, pair), strict=True):
                    of.setdefault((ROLES.index(concept.role), concept.name), []).append(lora.artifact)
        return [each for key in sorted(of, key=lambda key: key[0]) for each in of[key]]

    def cells(self) -> Iterator[tuple[Row, Pair]]:
        return ((row, pair) for row in self.rows for pair in self.pairs)

    def key(self) -> str:
        """What the run is, in one hash: equal keys give equal scores."""
        return key_of("run", {"scores": [self.score(row, pair).key for row, pair in self.cells()]})

    def model_params(self) -> dict[str, Any]:
        """Return everything about the base model that changes results."""
        return {"weights": self.weights, "precision": self.trainer.precision, **self.model.numbers()}

    def personalise(self, row: Row, concept: Concept, times: int = 1) -> Artifact:
        """Return the LoRA of a concept as the row's method trains it.

        Args:
            times: Factor of the recipe's number of steps.
        """
        method = row.method()
        spec, training = method.lora(concept.role, self.lora), method.training
        spec, shown = replace(spec, steps=spec.steps * times), method.trained_on(concept)
        params: dict[str, Any] = {
            "model": self.model_params(), "lora": asdict(spec), "concept": shown.identity(), "seed": self.seed,
        }  # fmt: skip
        if training == "core":
            params["training"] = training
        if spec.sample_every:
            params["generate"] = {"steps": self.generation.steps, "guidance": self.generation.guidance}
        prior = self.class_images(shown, spec) if spec.prior_weight else None
        shared = (spec, shown, training) == (self.lora, concept, "each")
        artifact = Artifact(
            "personalize", concept.name if shared else f"{concept.name} as {row.name} wants it",
            VERSIONS["personalize"], params, tasks.nothing, {"class_images": [prior]} if prior else {}, spec.steps,
            2.0 * spec.steps * spec.batch * spec.accumulate * (2 if prior else 1),
        )  # fmt: skip
        work = partial(
            tasks.personalise, self.model, self.trainer, shown, spec, self.seed, self.generation,
            (self.prior(shown, spec), self.path(prior)) if prior else None, self.store.scratch(artifact),
            in_core=training == "core",
        )  # fmt: skip
        return replace(artifact, work=work)

    def class_images(self, concept: Concept, spec: LoRASpec) -> Artifact:
        """Return the class images of a concept, which concepts of the same class share."""
        images = self.prior(concept, spec)
        work = partial(tasks.class_images, self.model, self.trainer, images)
        params = {"model": self.model_params(), **images.params()}
        cost = 2.0 * spec.prior_images * self.generation.steps
        name = ", ".join(images.prompts)
        version = VERSIONS["class_images"]
        return Artifact("class_images", name, version, params, work, steps=spec.prior_images, cost=cost)

    def prior(self, concept: Concept, spec: LoRASpec) -> ClassImages:
        return ClassImages.of(concept, spec.prior_images, self.generation, self.seed)

    def aligned(self, row: Row, couple: Pair) -> Artifact:
        """Return both LoRAs of a single pair, trained on images of the subject before and after styling."""
        [content], [style] = couple.contents, couple.styles
        if not isinstance(self.dataset, MicroworldSpec):
            raise UserError(
                f"{row.name} is trained on a picture before and after styling, which {self.dataset.name} does not "
                "have; type dataset=microworld, or another method"
            )
        spec = row.method().lora("style", self.lora)
        check_aligned(spec)
        concept = aligned(content, style, couple.prompt)
        params = {
            "model": self.model_params(), "lora": asdict(spec), "concept": concept.identity(), "seed": self.seed,
            "training": "aligned",
        }  # fmt: skip
        steps = updates(spec.steps)
        artifact = Artifact(
            "personalize", concept.name, VERSIONS["personalize"], params, tasks.nothing, steps=steps,
            cost=2.0 * steps * spec.batch * spec.accumulate,
        )  # fmt: skip
        scratch = self.store.scratch(artifact)
        work = partial(tasks.personalise_aligned, self.model, self.trainer, concept, spec, self.seed, scratch)
        return replace(artifact, work=work)

    def loras(self, row: Row, pair: Pair) -> list[Part]:
        """Return the LoRAs that a row merges or applies, one for each concept of `adapted`."""
        training = row.method().training
        if training == "one":
            return [Part(self.personalise(row, joined(pair), len(pair.concepts)), "lora")]
        if training == "aligned":
            made = {couple.concepts: self.aligned(row, couple) for couple in pair.couples or (pair,)}
            contents = [Part(made[content, pair.styles[0]], "content") for content in pair.contents]
            return contents + [Part(made[pair.contents[0], style], "style") for style in pair.styles]
        return [Part(self.personalise(row, concept), "lora") for concept in self.adapted(row, pair).concepts]

    def adapted(self, row: Row, pair: Pair) -> Pair:
        """Return the pair with the concepts that the row's LoRAs are trained on, without LoRAs of scale 0."""
        method = row.method()
        if method.training == "one":
            return replace(pair, contents=(joined(pair),), styles=(), couples=())
        if all(method.uses(role) for role in ROLES):
            return pair
        contents, styles = (pair.of(role) if method.uses(role) else () for role in ROLES)
        return replace(pair, contents=contents, styles=styles, couples=())

    def merge(self, row: Row, pair: Pair) -> Artifact:
        loras, fit = self.loras(row, pair), row.method().fit
        shared = {"model": self.model_params(), "method": row.slice(), "seed": self.seed}
        params = {**shared, "prompt": pair.prompt}
        uniform = not pair.is_single and row.method().concepts == "uniform"
        if uniform:  # the same as joint for a single pair
            params["concepts"] = "uniform"
        if fit and self.merging.pairs_per_batch != 1:  # changes the last digits; 1 is left out, so that keys stay
            params["pairs_per_batch"] = self.merging.pairs_per_batch
        work = tasks.Merge(
            self.model, self.trainer, row.settings or {}, tuple(self.file(lora) for lora in loras),
            self.adapted(row, pair), self.seed, self.merging.pairs_per_batch,
        )  # fmt: skip
        steps = fit.steps * (len(pair.couples) if uniform else 1) if fit else 0
        rows = fit.batch * (2 if uniform else len(pair.concepts)) if fit else 0
        return Artifact(
            "merge", pair.name, VERSIONS["merge"], params, work, {"loras": loras}, steps, 10.0 * steps * rows,
            key_of("batch", shared) if fit else None,
        )  # fmt: skip

    def generate(self, row: Row, pair: Pair) -> Artifact:
        return self.oracle(pair) if row.name == ORACLE else self.sample(row, pair)

    def sample(self, row: Row, pair: Pair) -> Artifact:
        loras, adapted = self.loras(row, pair), self.adapted(row, pair)
        merged = self.merge(row, pair) if row.is_method else None
        seeds = self.seeds(pair)
        params = {
            "model": self.model_params(), "method": row.slice(), "generate": asdict(self.generation),
            "prompt": pair.prompt, "seeds": seeds, **scenes_of(pair),
        }  # fmt: skip
        if row.strength:
            params["strength"] = row.strength
        if wordings := self.wordings(row, adapted):
            params["wordings"] = {each: worded(pair.drawn, each) for each in wordings}
        work = units.Generate(
            self.model, self.trainer, row.settings or {}, tuple(self.file(lora) for lora in loras),
            merged and self.path(merged), adapted, tuple(seeds), self.generation, row.strength, self.seed,
        )  # fmt: skip
        return Artifact(
            "generate", f"{row.name} {pair.name}", VERSIONS["generate"], params, work,
            {"loras": loras, **({"merged": [merged]} if merged else {})}, len(seeds),
            2.0 * len(seeds) * self.generation.steps,
        )  # fmt: skip

    def oracle(self, pair: Pair) -> Artifact:
        count = len(self.seeds(pair))
        params = {
            "world": world_version(self.dataset), "content": pair.content_name, "style": pair.style_name,
            "images": count,
        }  # fmt: skip
        work, version = units.Oracle(pair, count), VERSIONS["oracle"]
        return Artifact("generate", f"{ORACLE} {pair.name}", version, params, work, steps=count, cost=count)

    def seeds(self, pair: Pair) -> list[int]:
        """One seed an image, the same for every method."""
        names, images = (pair.content_name, pair.style_name), range(self.generation.images)
        return [seed_of("image", *names, scene.prompt, i, self.seed) for scene in pair.drawn for i in images]

    def score(self, row: Row, pair: Pair) -> Artifact:
        world = world_version(self.dataset)
        scoring = Scoring(self.store, self.scorers, self.trainer, self.scorers_digest, world, self.scoring_batch)
        return scoring.score(f"{row.name} {pair.name}", pair, self.generate(row, pair), self.seeds(pair))

    def wordings(self, row: Row, pair: Pair) -> list[Wording]:
        """The wordings that a row draws with beside the prompt."""
        branches = row.method().guidance(self.generation.guidance, pair.roles) or ()
        return sorted({branch.words for branch in branches if branch.words and branch.words != "prompt"})

    def path(self, artifact: Artifact) -> Path:
        return self.store.path(artifact)

    def file(self, lora: Part) -> Path:
        return self.path(lora.artifact) / f"{lora.name}.safetensors"


def scenes_of(pair: Pair) -> dict[str, Any]:
    """The scenes of a pair as a part of a key; nothing where it has none, so that keys stay what they were."""
    return {"scenes": [[scene.prompt, scene.text] for scene in pair.scenes]} if pair.scenes else {}


def frame_rows(chosen: Row, dataset: DatasetSpec, pairs: Sequence[Pair]) -> list[Row]:
    """The rows that frame the table, then the chosen method's; the oracle where the truth of every pair is known."""
    floors = [Row(name, settings=asdict(methods.load(name)), live=True) for name in FLOORS if name != chosen.name]
    known = isinstance(dataset, MicroworldSpec) and all(pair.is_single for pair in pairs)
    return [*floors, *([Row(ORACLE)] if known else []), chosen]
