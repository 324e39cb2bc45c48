"""What a run consists of: one item for each thing to make, in the order of the stages.

Keys follow from the config, the images and the weights alone, each from the keys of what the item is made of, so the
whole plan is known, and a finished run recognised, before anything heavy is imported.
"""

import ast
import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from lorabench.base import UserError, seed_of
from lorabench.config.schemas import DatasetSpec, GenerateSpec, LoRASpec, MergeSpec, MicroworldSpec, TrainerSpec
from lorabench.data.catalogue import aligned, world_version
from lorabench.data.pairs import ROLES, Concept, Pair, Role, Wording, joined, worded
from lorabench.engine.artifact import sha256
from lorabench.engine.store import Store, canonical, key_of
from lorabench.engine.workers import Progress
from lorabench.merging import method as methods
from lorabench.models.files import ModelFiles
from lorabench.personalization.class_images import ClassImages
from lorabench.personalization.phases import check_aligned, updates
from lorabench.scoring.files import ScorerSet
from lorabench.tasks import jobs as tasks
from lorabench.tasks import units

STAGES = ("personalise", "merge", "generate", "score")
# Raise a stage's number when its results change: what is stored under the old number is then made anew.
VERSIONS = {"personalise": 1, "merge": 2, "generate": 2, "oracle": 1, "score": 3}

FLOORS = ("base", "content_only", "style_only")
ORACLE = "oracle"
SHARED = ("constyle", "hypernetwork", "least_squares", "moments", "priors")  # modules that methods use


@dataclass(frozen=True)
class Item:
    """One artifact of the store.

    work: makes its files in an empty folder, telling the steps done so far, of `steps`.
    cost: the share of the progress bar, in rows of the UNet while sampling; measured on the micro model.
    """

    stage: str
    name: str
    parts: dict[str, Any]
    work: Callable[[Path, Progress], None]
    steps: int
    cost: float

    @property
    def key(self) -> str:
        return key_of(self.stage, self.parts)


Stages = dict[str, list[Item]]


@dataclass(frozen=True)
class Trained:
    """A LoRA of stage 1: the file of this name in its item."""

    item: Item
    name: str = "lora"

    @property
    def key(self) -> str:
        return self.item.key if self.name == "lora" else f"{self.item.key}/{self.name}"


@dataclass(frozen=True)
class Make:
    """The job of a worker: items of a stage into the store; several of them, merges, in one batch."""

    store: Store
    items: tuple[Item, ...]

    @property
    def steps(self) -> int:
        return sum(item.steps for item in self.items)

    @property
    def cost(self) -> float:
        return sum(item.cost for item in self.items)

    def __call__(self, progress: Progress) -> None:
        first = self.items[0]
        if len(self.items) == 1:
            self.store.get_or_make(first.stage, first.parts, lambda folder: first.work(folder, progress))
            return
        merges: dict[str, Any] = {item.key: item.work for item in self.items}

        def make(drafts: dict[str, Path]) -> None:
            tasks.merge([merges[key] for key in drafts], list(drafts.values()), progress)

        self.store.get_or_make_all(first.stage, [item.parts for item in self.items], make)


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
        """What of the method changes a number: its settings, of files what they hold, and its code."""
        assert self.settings is not None
        numbers = {key: value for key, value in self.settings.items() if key != "concepts"}
        numbers |= {key: sha256(file) for key, file in self.method().files().items()}
        return {"settings": numbers, "code": code_of(self.settings["name"])}


@cache
def _method(settings: str) -> methods.Method:
    return methods.build(json.loads(settings))


@cache
def code_of(method: str) -> str:
    """Hash of the method's own modules, and of those that methods share and it imports, without their comments.

    So an edited method is run anew; what all methods go through is in VERSIONS.
    """
    modules = {cls.__module__ for cls in methods.methods()[method].__mro__}
    own = sorted(name for name in modules if name.startswith("lorabench.merging.methods."))
    trees = [ast.parse(inspect.getsource(sys.modules[name])) for name in own]
    imported = {node.module for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    shared = [
        Path(__file__).parents[1] / "merging" / f"{name}.py"
        for name in SHARED
        if f"lorabench.merging.{name}" in imported
    ]
    code = [ast.unparse(tree) for tree in [*trees, *(ast.parse(file.read_text()) for file in shared)]]
    return hashlib.sha256("\n".join(code).encode()).hexdigest()


@dataclass(frozen=True)
class Plan:
    """All items of one run.

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

    def items(self, stage: str) -> list[Item]:
        """The items of a stage, each once."""
        if stage == "personalise":
            made = self.trainings()
        elif stage == "merge":
            made = [self.merge(row, pair) for row, pair in self.cells() if row.is_method]
        else:
            make = {"generate": self.generate, "score": self.score}[stage]
            made = [make(row, pair) for row, pair in self.cells()]
        return list({item.key: item for item in made}.values())

    def trainings(self) -> list[Item]:
        """What stage 1 makes, concept by concept, subjects first."""
        of: dict[tuple[int, str], list[Item]] = {}
        for row, pair in self.cells():
            if row.settings is not None:
                for concept, lora in zip(self.adapted(row, pair).concepts, self.loras(row, pair), strict=True):
                    of.setdefault((ROLES.index(concept.role), concept.name), []).append(lora.item)
        return [item for key in sorted(of, key=lambda key: key[0]) for item in of[key]]

    def cells(self) -> Iterator[tuple[Row, Pair]]:
        return ((row, pair) for row in self.rows for pair in self.pairs)

    def key(self) -> str:
        """What the run is, in one hash: equal keys give equal scores."""
        return key_of("run", {"scores": [self.score(row, pair).key for row, pair in self.cells()]})

    def base_parts(self) -> dict[str, Any]:
        return {"weights": self.weights, "precision": self.trainer.precision, **self.model.numbers()}

    def personalise(self, row: Row, concept: Concept, times: int = 1) -> Item:
        """The LoRA of a concept as a method wants it trained; most want the same one.  times: as many steps."""
        method = row.method()
        spec, training = method.lora(concept.role, self.lora), method.training
        spec, shown = replace(spec, steps=spec.steps * times), method.trained_on(concept)
        parts = {
            "version": VERSIONS["personalise"], "model": self.base_parts(), "lora": asdict(spec),
            "concept": shown.identity(), "seed": self.seed,
        }  # fmt: skip
        if training == "core":
            parts["training"] = training
        steps, cost = spec.steps, 2.0 * spec.steps * spec.batch * spec.accumulate
        prior = None
        if spec.prior_weight:
            base, count = self.base_parts(), spec.prior_images
            prior = ClassImages.of(shown, count, self.store, base, self.generation, self.seed)
            parts["class_images"] = prior.key
            steps, cost = steps + count, 2.0 * cost + 2.0 * count * self.generation.steps
        if spec.sample_every:
            parts["generate"] = {"steps": self.generation.steps, "guidance": self.generation.guidance}
        scratch = self.store.scratch("personalise", parts)
        work = partial(
            tasks.personalise, self.model, self.trainer, shown, spec, self.seed, self.generation, prior,
            scratch, in_core=training == "core",
        )  # fmt: skip
        shared = (spec, shown, training) == (self.lora, concept, "each")
        name = concept.name if shared else f"{concept.name} as {row.name} wants it"
        return Item("personalise", name, parts, work, steps, cost)

    def aligned(self, row: Row, couple: Pair) -> Item:
        """Both LoRAs of a single pair, trained on pictures of the subject before and after styling."""
        [content], [style] = couple.contents, couple.styles
        if not isinstance(self.dataset, MicroworldSpec):
            raise UserError(
                f"{row.name} is trained on a picture before and after styling, which {self.dataset.name} does not "
                "have; type dataset=microworld, or another method"
            )
        spec = row.method().lora("style", self.lora)
        check_aligned(spec)
        concept = aligned(content, style, couple.prompt)
        parts = {
            "version": VERSIONS["personalise"], "model": self.base_parts(), "lora": asdict(spec),
            "concept": concept.identity(), "seed": self.seed, "training": "aligned",
        }  # fmt: skip
        scratch = self.store.scratch("personalise", parts)
        work = partial(tasks.personalise_aligned, self.model, self.trainer, concept, spec, self.seed, scratch)
        steps = updates(spec.steps)
        return Item("personalise", concept.name, parts, work, steps, 2.0 * steps * spec.batch * spec.accumulate)

    def loras(self, row: Row, pair: Pair) -> list[Trained]:
        """What a row merges or draws with, one for each concept of `adapted`."""
        training = row.method().training
        if training == "one":
            return [Trained(self.personalise(row, joined(pair), len(pair.concepts)))]
        if training == "aligned":
            items = {couple.concepts: self.aligned(row, couple) for couple in pair.couples or (pair,)}
            contents = [Trained(items[content, pair.styles[0]], "content") for content in pair.contents]
            return contents + [Trained(items[pair.contents[0], style], "style") for style in pair.styles]
        return [Trained(self.personalise(row, concept)) for concept in pair.concepts]

    def adapted(self, row: Row, pair: Pair) -> Pair:
        """The pair with the concepts that the row's LoRAs are of."""
        if row.method().training != "one":
            return pair
        return replace(pair, contents=(joined(pair),), styles=(), couples=())

    def merge(self, row: Row, pair: Pair) -> Item:
        loras = self.loras(row, pair)
        parts = {
            "version": VERSIONS["merge"], "model": self.base_parts(), "method": row.slice(),
            "loras": [lora.key for lora in loras], "prompt": pair.prompt, "seed": self.seed,
        }  # fmt: skip
        uniform = not pair.is_single and row.method().concepts == "uniform"
        if uniform:  # of a single pair it says nothing
            parts["concepts"] = "uniform"
        fit = row.method().fit
        if fit and self.merging.pairs_per_batch != 1:  # changes the last digits; 1 is left out, so that keys stay
            parts["pairs_per_batch"] = self.merging.pairs_per_batch
        files = tuple(self.file(lora) for lora in loras)
        adapted = self.adapted(row, pair)
        work = tasks.Merge(self.model, self.trainer, row.settings or {}, files, adapted, self.seed)
        steps = fit.steps * (len(pair.couples) if uniform else 1) if fit else 0
        rows = fit.batch * (2 if uniform else len(pair.concepts)) if fit else 0
        return Item("merge", pair.name, parts, work, steps, 10.0 * steps * rows)

    def jobs(self, stage: str, items: Sequence[Item]) -> list[Make]:
        """The items as jobs of the workers; merges that can share a batch go together."""
        size = self.merging.pairs_per_batch if stage == "merge" else 1
        return [Make(self.store, tuple(items[start : start + size])) for start in range(0, len(items), size)]

    def generate(self, row: Row, pair: Pair) -> Item:
        return self.oracle(pair) if row.name == ORACLE else self.sample(row, pair)

    def sample(self, row: Row, pair: Pair) -> Item:
        loras = self.loras(row, pair)
        merged = self.merge(row, pair) if row.is_method else None
        parts = {
            "version": VERSIONS["generate"], "model": self.base_parts(), "method": row.slice(),
            "loras": [lora.key for lora in loras], "merged": merged and merged.key,
            "generate": asdict(self.generation), "prompt": pair.prompt, "seeds": self.seeds(pair),
            **scenes_of(pair), **({"strength": row.strength} if row.strength else {}),
        }  # fmt: skip
        files = tuple(self.file(lora) for lora in loras)
        adapted = self.adapted(row, pair)
        if wordings := self.wordings(row, adapted):
            parts["wordings"] = {each: worded(pair.drawn, each) for each in wordings}
        work = units.Generate(
            self.model, self.trainer, row.settings or {}, files, merged and self.path(merged), adapted,
            tuple(self.seeds(pair)), self.generation, row.strength, self.seed,
        )  # fmt: skip
        count = len(self.seeds(pair))
        return Item("generate", f"{row.name} {pair.name}", parts, work, count, 2.0 * count * self.generation.steps)

    def oracle(self, pair: Pair) -> Item:
        count = len(self.seeds(pair))
        parts = {
            "version": VERSIONS["oracle"], "world": world_version(self.dataset), "content": pair.content_name,
            "style": pair.style_name, "images": count,
        }  # fmt: skip
        return Item("generate", f"{ORACLE} {pair.name}", parts, units.Oracle(pair, count), count, count)

    def seeds(self, pair: Pair) -> list[int]:
        """One seed an image, the same for every method."""
        names, images = (pair.content_name, pair.style_name), range(self.generation.images)
        return [seed_of("image", *names, scene.prompt, i, self.seed) for scene in pair.drawn for i in images]

    def score(self, row: Row, pair: Pair) -> Item:
        images = self.generate(row, pair)
        references = [[image.sha256 for image in concept.references] for concept in pair.concepts]
        parts = {
            "version": VERSIONS["score"], "scorers": self.scorers_digest, "images": images.key, "text": pair.text,
            "prompt": pair.prompt, "seeds": self.seeds(pair), "names": [pair.content_name, pair.style_name],
            "references": references, "world": world_version(self.dataset), "batch": self.scoring_batch,
            **scenes_of(pair),
        }  # fmt: skip
        work = units.Score(
            self.scorers, self.trainer, self.store.root / "embeddings", pair, self.path(images),
            tuple(self.seeds(pair)), self.scoring_batch,
        )  # fmt: skip
        count = len(self.seeds(pair))
        return Item("score", f"{row.name} {pair.name}", parts, work, count, 4.0 * count)

    def wordings(self, row: Row, pair: Pair) -> list[Wording]:
        """The wordings that a row draws with beside the prompt."""
        branches = row.method().guidance(self.generation.guidance, pair.roles) or ()
        return sorted({branch.words for branch in branches if branch.words and branch.words != "prompt"})

    def path(self, item: Item) -> Path:
        return self.store.path(item.stage, item.parts)

    def file(self, lora: Trained) -> Path:
        return self.path(lora.item) / f"{lora.name}.safetensors"


def scenes_of(pair: Pair) -> dict[str, Any]:
    """The scenes of a pair as a part of a key; nothing where it has none, so that keys stay what they were."""
    return {"scenes": [[scene.prompt, scene.text] for scene in pair.scenes]} if pair.scenes else {}


def frame_rows(chosen: Row, dataset: DatasetSpec, pairs: Sequence[Pair]) -> list[Row]:
    """The rows that frame the table, then the chosen method's; the oracle where the truth of every pair is known."""
    floors = [Row(name, settings=asdict(methods.load(name)), live=True) for name in FLOORS if name != chosen.name]
    known = isinstance(dataset, MicroworldSpec) and all(pair.is_single for pair in pairs)
    return [*floors, *([Row(ORACLE)] if known else []), chosen]
