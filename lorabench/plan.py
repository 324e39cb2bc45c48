"""What a run consists of: one item for each thing to make, in the order of the stages.

Keys follow from the config, the images and the weights alone, each from the keys of what the item is made of, so the
whole plan is known, and a finished run recognised, before anything heavy is imported.
"""

import ast
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from lorabench import method as methods
from lorabench import tasks
from lorabench.config import DreamBoothStyleDropSpec, GenerateSpec, LoRASpec, MicroworldSpec, TrainerSpec
from lorabench.data.catalogue import world_version
from lorabench.data.pairs import Concept, Pair
from lorabench.seeds import seed_of
from lorabench.store import Store, key_of
from lorabench.workers import Progress

STAGES = ("personalise", "merge", "generate", "score")
# Raise a stage's number when its results change: what is stored under the old number is then made anew.
VERSIONS = {"personalise": 1, "merge": 1, "generate": 1, "oracle": 1, "score": 1}

FLOORS = ("base", "content_only", "style_only")
ORACLE = "oracle"


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


@dataclass(frozen=True)
class Make:
    """The job of a worker: an item into the store."""

    store: Store
    item: Item

    def __call__(self, progress: Progress) -> None:
        self.store.get_or_make(self.item.stage, self.item.parts, lambda folder: self.item.work(folder, progress))


@dataclass(frozen=True)
class Row:
    """A row of the table: the chosen method, a frame row, or the oracle, which has no method."""

    name: str
    ablation: str = "none"
    settings: dict[str, Any] | None = None

    @property
    def is_method(self) -> bool:
        return self.name not in (*FLOORS, ORACLE)

    def slice(self) -> dict[str, Any]:
        """What of the method changes a number: its settings and its code."""
        assert self.settings is not None
        numbers = {key: value for key, value in self.settings.items() if key != "paper"}
        return {"settings": numbers, "code": code_of(self.settings["name"])}


@cache
def code_of(method: str) -> str:
    """Hash of the method's own modules without their comments, so that an edited method is run anew."""
    modules = {cls.__module__ for cls in methods.methods()[method].__mro__}
    own = sorted(name for name in modules if name.startswith("lorabench.methods."))
    code = [ast.unparse(ast.parse(inspect.getsource(sys.modules[name]))) for name in own]
    return hashlib.sha256("\n".join(code).encode()).hexdigest()


@dataclass(frozen=True)
class Plan:
    """All items of one run.

    weights: digest of the model's files; scorers_digest: of the scorers'.
    """

    store: Store
    pairs: list[Pair]
    rows: list[Row]
    dataset: MicroworldSpec | DreamBoothStyleDropSpec
    model: Path
    model_name: str
    scorers: Path
    weights: str
    scorers_digest: str
    lora: LoRASpec
    generation: GenerateSpec
    trainer: TrainerSpec
    seed: int

    def items(self, stage: str) -> list[Item]:
        """The items of a stage, each once."""
        if stage == "personalise":
            made = [self.personalise(concept) for concept in self.concepts()]
        elif stage == "merge":
            made = [self.merge(row, pair) for row, pair in self.cells() if row.is_method]
        else:
            make = {"generate": self.generate, "score": self.score}[stage]
            made = [make(row, pair) for row, pair in self.cells()]
        return list({item.key: item for item in made}.values())

    def cells(self) -> Iterator[tuple[Row, Pair]]:
        return ((row, pair) for row in self.rows for pair in self.pairs)

    def concepts(self) -> list[Concept]:
        """Every subject and style once, subjects first."""
        contents = {pair.content.name: pair.content for pair in self.pairs}
        styles = {pair.style.name: pair.style for pair in self.pairs}
        return [*contents.values(), *styles.values()]

    def key(self) -> str:
        """What the run is, in one hash: equal keys give equal scores."""
        return key_of("run", {"scores": [self.score(row, pair).key for row, pair in self.cells()]})

    def base_parts(self) -> dict[str, Any]:
        return {"weights": self.weights, "precision": self.trainer.precision}

    def personalise(self, concept: Concept) -> Item:
        parts = {
            "version": VERSIONS["personalise"], "model": self.base_parts(), "lora": asdict(self.lora),
            "concept": concept.identity(), "seed": self.seed,
        }  # fmt: skip
        work = partial(tasks.personalise, self.model, self.trainer, concept, self.lora, self.seed)
        return Item("personalise", concept.name, parts, work, self.lora.steps, 2.0 * self.lora.steps * self.lora.batch)

    def merge(self, row: Row, pair: Pair) -> Item:
        content, style = self.personalise(pair.content), self.personalise(pair.style)
        parts = {
            "version": VERSIONS["merge"], "model": self.base_parts(), "method": row.slice(),
            "content": content.key, "style": style.key, "prompt": pair.prompt, "seed": self.seed,
        }  # fmt: skip
        assert row.settings is not None
        work = partial(
            tasks.merge, self.model, self.trainer, row.settings, self.path(content), self.path(style), pair, self.seed
        )
        fit = row.settings["fit"] or {"steps": 0, "batch": 0}
        return Item("merge", pair.name, parts, work, fit["steps"], 20.0 * fit["steps"] * fit["batch"])

    def generate(self, row: Row, pair: Pair) -> Item:
        return self.oracle(pair) if row.name == ORACLE else self.sample(row, pair)

    def sample(self, row: Row, pair: Pair) -> Item:
        content, style = self.personalise(pair.content), self.personalise(pair.style)
        merged = self.merge(row, pair) if row.is_method else None
        parts = {
            "version": VERSIONS["generate"], "model": self.base_parts(), "method": row.slice(),
            "content": content.key, "style": style.key, "merged": merged and merged.key,
            "generate": asdict(self.generation), "prompt": pair.prompt, "seeds": self.seeds(pair),
        }  # fmt: skip
        assert row.settings is not None
        work = partial(
            tasks.generate, self.model, self.trainer, row.settings, self.path(content), self.path(style),
            merged and self.path(merged), pair.prompt, self.seeds(pair), self.generation,
        )  # fmt: skip
        count = self.generation.images
        return Item("generate", f"{row.name} {pair.name}", parts, work, count, 2.0 * count * self.generation.steps)

    def oracle(self, pair: Pair) -> Item:
        count = self.generation.images
        parts = {
            "version": VERSIONS["oracle"], "world": world_version(self.dataset), "content": pair.content.name,
            "style": pair.style.name, "images": count,
        }  # fmt: skip
        return Item("generate", f"{ORACLE} {pair.name}", parts, partial(tasks.oracle, pair, count), count, count)

    def seeds(self, pair: Pair) -> list[int]:
        """One seed an image, the same for every method."""
        names = (pair.content.name, pair.style.name, pair.prompt)
        return [seed_of("image", *names, index, self.seed) for index in range(self.generation.images)]

    def score(self, row: Row, pair: Pair) -> Item:
        images = self.generate(row, pair)
        references = [[image.sha256 for image in concept.references] for concept in (pair.content, pair.style)]
        parts = {
            "version": VERSIONS["score"], "scorers": self.scorers_digest, "images": images.key, "text": pair.text,
            "prompt": pair.prompt, "seeds": self.seeds(pair), "names": [pair.content.name, pair.style.name],
            "references": references, "world": world_version(self.dataset),
        }  # fmt: skip
        work = partial(tasks.score, self.scorers, self.trainer, pair, self.path(images), self.seeds(pair))
        return Item("score", f"{row.name} {pair.name}", parts, work, 1, 4.0 * self.generation.images)

    def path(self, item: Item) -> Path:
        return self.store.path(item.stage, item.parts)


def frame_rows(chosen: Row, dataset: MicroworldSpec | DreamBoothStyleDropSpec) -> list[Row]:
    """The rows that frame the table, then the chosen method's."""
    floors = [Row(name, settings=asdict(methods.load(name))) for name in FLOORS if name != chosen.name]
    ceiling = [Row(ORACLE)] if isinstance(dataset, MicroworldSpec) else []
    return [*floors, *ceiling, chosen]
