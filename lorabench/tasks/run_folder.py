"""The run folder: everything of a run copied together from the store, so that it can be read, moved and shown alone.

A run has one method between the frame rows, or several rows of methods (task=compare), whose merges, losses and costs
are then kept apart by row. The manifest is written last; its key and its list of files are what makes a run done.
"""

import json
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lorabench.base import __version__
from lorabench.config.schemas import LoggerSpec
from lorabench.data.catalogue import world_version
from lorabench.data.uses import JOINT
from lorabench.engine.artifact import Artifact
from lorabench.engine.costs import COMPUTED_ON, COST_FILE, joined_costs
from lorabench.engine.failures import FORBIDDEN
from lorabench.engine.output_folder import MANIFEST, OutputFolder
from lorabench.engine.record import key_of
from lorabench.merging.presets import GROUPS
from lorabench.personalization.training import is_per_pair
from lorabench.report.labels import label
from lorabench.tasks.jobs import CURVES_FILE
from lorabench.tasks.plan import STAGES, Plan
from lorabench.tasks.rows import FLOORS, ORACLE, Row

if TYPE_CHECKING:
    from PIL.Image import Image

PACKAGES = (
    "torch", "diffusers", "transformers", "peft", "pytorch-lightning", "hydra-core", "open_clip_torch",
    "timm", "numpy", "pillow",
)  # fmt: skip
USES_FOLDER = "uses"  # images of other uses than joint


@dataclass(frozen=True)
class Outcome:
    """What becomes of a plan: config is the resolved yaml."""

    path: Path
    plan: Plan
    config: str

    @property
    def chosen(self) -> list[Row]:
        """The rows that are no frame: one of a benchmark, which may be a frame row itself, or several."""
        frames = (*FLOORS, ORACLE)
        return [row for row in self.plan.rows if row.name not in frames] or self.plan.rows[-1:]

    @property
    def frames(self) -> list[Row]:
        return [row for row in self.plan.rows if row not in self.chosen]

    def folder_of(self, row: Row) -> str:
        """Where the row's images lie, and its merges if there are several rows: by method, and ablation if need be."""
        alone = len(self.chosen) == 1 or row.ablation == "none"
        return row.name if alone else f"{row.name}-{row.ablation}"

    @property
    def output(self) -> OutputFolder:
        return OutputFolder(self.path)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While no other process, which may run the same command, fills or seals the folder.

        The lock is of the store, whose file system has some; one that may only be read has none.
        """
        with ExitStack() as held:
            try:
                held.enter_context(self.plan.store.lock(key_of("folder", {"path": str(self.path.resolve())})))
            except OSError as error:
                if error.errno not in FORBIDDEN:
                    raise
            yield

    def is_done(self, logger: LoggerSpec) -> bool:
        """Whether the folder holds this very run, whole and shown by this logger."""
        try:
            manifest = json.loads((self.path / MANIFEST).read_text())
            same = manifest["key"] == self.plan.key() and manifest["logger"] == [logger.kind, logger.mode]
            same = same and manifest["protocol"] == self.protocol
            same = same and manifest.get("reference", "direct") == self.reference
            files: dict[str, int] = manifest["files"]
            return same and all((self.path / file).stat().st_size == size for file, size in files.items())
        except (OSError, ValueError, KeyError):
            return False

    def assemble(self, seconds: float) -> None:
        """Replace the files of an earlier run by those of this one, which is not done before it is sealed.

        Args:
            seconds: What the missing items took just now.
        """
        with self.output.filled() as draft:
            replace(self, path=draft).write(seconds)

    def write(self, seconds: float) -> None:
        """Write everything into an empty folder; see `assemble`."""
        from lorabench.report import write_report

        (self.path / "config.yaml").write_text(self.config)
        for row, pair, use in self.plan.samples():
            place = self.path / ("images" if use == JOINT else f"{USES_FOLDER}/{use}")
            copy(self.plan.path(self.plan.generate(row, pair, use)), place / self.folder_of(row) / pair.name, "*.png")
            if use == JOINT and row.is_method and row.own.is_file:
                merged = self.path / "merged" / (self.folder_of(row) if len(self.chosen) > 1 else "")
                merged.mkdir(parents=True, exist_ok=True)
                made = self.plan.path(self.plan.merge(row, pair)) / "merged.safetensors"
                shutil.copyfile(made, merged / f"{pair.name}.safetensors")
        self.write_references()
        self.write_ranks()
        self.write_scores()
        self.output.write_manifest(self.manifest(seconds), {})
        write_report(self.path)

    def seal(self, logger: LoggerSpec) -> None:
        """Declare the run done: its key, its files, and the logger that has shown it."""
        files = {file: (self.path / file).stat().st_size for file in self.output.files()}
        how = {"key": self.plan.key(), "logger": [logger.kind, logger.mode], "protocol": self.protocol}
        how["reference"] = self.reference
        self.output.write_manifest(self.output.manifest() | how, files)

    @property
    def protocol(self) -> dict[str, Any]:
        """What the table shows of the scores; another one is another report of the same run."""
        return yaml.safe_load(self.config).get("protocol") or {}

    @property
    def reference(self) -> str:
        """The row that the table's differences are to."""
        return yaml.safe_load(self.config).get("reference", "direct")

    def write_references(self) -> None:
        """The references that were scored against, in the size of the generated images."""
        from PIL import Image

        row, pair = next(self.plan.cells())
        with Image.open(self.path / "images" / self.folder_of(row) / pair.name / "00.png") as image:
            size = image.width
        shown = {(role, name): pair.of(role) for pair in self.plan.pairs for role, name in pair.names.items()}
        for (role, name), concepts in shown.items():
            folder = self.path / "references" / role / name
            folder.mkdir(parents=True)
            for index, images in enumerate(zip(*(concept.references for concept in concepts), strict=False)):
                side_by_side([image.image(size) for image in images]).save(folder / f"{index}.png")

    def write_ranks(self) -> None:
        """The figure of effective ranks along the network, of the merges of a run's only method."""
        from lorabench.models.shapes import layer_map
        from lorabench.report.ranks import write_ranks

        [chosen, *others] = self.chosen
        if chosen.is_method and not others:
            merges = {pair.name: self.plan.path(self.plan.merge(chosen, pair)) for pair in self.plan.pairs}
            ranks = {name: json.loads((path / "merge.json").read_text())["ranks"] for name, path in merges.items()}
            roles = {pair.name: self.plan.adapted(chosen, pair).roles for pair in self.plan.pairs}
            write_ranks(self.path, ranks, roles, layer_map(self.plan.model))

    def options(self, row: Row) -> dict[str, str]:
        """Return the training, the merge and the sampling of a row; empty names for the oracle."""
        return dict(row.method.options) if row.method else dict.fromkeys(GROUPS, "")

    def write_scores(self) -> None:
        """scores.parquet: the stored rows of every row and pair, with what they belong to."""
        import pandas as pd

        parts = []
        for row, pair, use in self.plan.samples():
            scores = pd.read_parquet(self.plan.path(self.plan.score(row, pair, use)) / "scores.parquet")
            whose = {
                "dataset": self.plan.dataset.name,
                "world": world_version(self.plan.dataset),
                "method": row.name,
                "ablation": row.ablation,
                **self.options(row),
                "model": self.plan.model_name,
                "use": use,
            }
            parts.append(scores.assign(**whose)[[*whose, *scores.columns]])
        pd.concat(parts, ignore_index=True).to_parquet(self.path / "scores.parquet", index=False)

    def manifest(self, seconds: float) -> dict[str, Any]:
        """Timings are seconds of computing, summed over the items, whichever run made them.

        A run of several methods has `rows` with what else is said of the one, and apart the keys of the frame rows.
        """
        stages = {stage: self.plan.artifacts(stage) for stage in STAGES}
        rows = [self.of_row(row) for row in self.chosen]
        return {
            **(rows[0] if len(rows) == 1 else {"rows": rows, "keys": self.keys(self.frames)}),
            "dataset": self.plan.dataset.name,
            "world": world_version(self.plan.dataset),
            "model": self.plan.model_name,
            "seed": self.plan.seed,
            "timings": {stage: sum(self.cost(item).get("seconds", 0.0) for item in stages[stage]) for stage in STAGES},
            "wall_seconds": seconds,
            "inputs": self.inputs(),
            "computed_on": self.computed_on(stages),
            "versions": versions(),
        }

    def inputs(self) -> dict[str, str]:
        """Return digests of what the config only names: runs with others cannot be compared (report/pooling.py)."""
        concepts = {concept.name: concept for pair in self.plan.pairs for concept in pair.concepts}
        images = {f"the images of {name}": key_of("images", each.identity()) for name, each in concepts.items()}
        return {"the weights of the model": self.plan.weights, **images}

    def computed_on(self, stages: Mapping[str, Sequence[Artifact]]) -> list[str]:
        """Return the devices and numbers of threads that computed the artifacts: they change last digits."""
        costs = [self.cost(each) for artifacts in stages.values() for each in artifacts]
        return sorted({place for cost in costs for place in cost.get(COMPUTED_ON, "").split("; ") if place})

    def of_row(self, row: Row) -> dict[str, Any]:
        """What the manifest says of one method; where it is the only one, with the keys of the frame rows."""
        several = len(self.chosen) > 1
        plan = replace(self.plan, rows=[row]) if several else self.plan
        return {
            **({"settings": row.own.settings, "label": label(row.name, row.ablation)} if several else {}),
            "method": row.name,
            "ablation": row.ablation,
            **self.options(row),
            "costs": self.costs(row),
            "losses": {item.name: self.curves(item) for item in plan.artifacts("merge") if self.curves(item)},
            **({"trained_on": seen} if (seen := self.seen(row)) else {}),
            "keys": self.keys(plan.rows),
        }

    def seen(self, row: Row) -> list[str]:
        """Return the subjects and styles of the run that files of the row's merge were trained on."""
        names = {concept.name for pair in self.plan.pairs for concept in pair.concepts}
        return sorted(names & row.own.merge.trained_on()) if row.method else []

    def keys(self, rows: Sequence[Row]) -> dict[str, dict[str, str]]:
        """Stage -> item -> key of these rows: what the store must keep for them."""
        plan = replace(self.plan, rows=list(rows))
        return {stage: {item.name: item.key for item in plan.artifacts(stage)} for stage in STAGES}

    def costs(self, row: Row) -> dict[str, float]:
        """What a LoRA, a merge and an image of the row take, means over LoRAs and pairs; a peak is the greatest.

        Of the LoRAs those that the row's merges share with other rows too: they are no cost of the merge. A training
        for one pair is.
        """
        trained = [
            {lora.artifact.key: self.cost(lora.artifact) for lora in self.plan.loras(row, p)} for p in self.plan.pairs
        ]
        loras = {key: cost for of_pair in trained for key, cost in of_pair.items()}
        drawn = [self.cost(self.plan.generate(row, pair)) for pair in self.plan.pairs]
        images = sum(len(self.plan.seeds(pair)) for pair in self.plan.pairs)
        costs = {
            **mean_cost("lora_seconds", "seconds", list(loras.values())),
            **mean_cost("seconds_per_image", "seconds", drawn, images),
            **mean_cost("denoiser_passes_per_image", "denoiser_passes", drawn, images),
        }
        if row.is_method:
            merged = [self.cost(self.plan.merge(row, pair)) for pair in self.plan.pairs]
            if is_per_pair(row.own.training.outputs(self.plan.pairs[0], self.plan.lora)):
                parts = zip(merged, trained, strict=True)
                merged = [joined_costs([merge, *of_pair.values()]) for merge, of_pair in parts]
                costs.pop("lora_seconds", None)
            costs["learned_parameters"] = merged[0]["learned_parameters"]
            costs |= mean_cost("merge_seconds", "seconds", merged)
            costs |= mean_cost("merge_denoiser_passes", "denoiser_passes", merged)
            for peak in ("peak_bytes", "peak_gpu_bytes"):
                if all(peak in each for each in merged):
                    costs[f"merge_{peak}"] = max(each[peak] for each in merged)
        return costs

    def cost(self, artifact: Artifact) -> dict[str, Any]:
        file = self.plan.path(artifact) / COST_FILE
        return json.loads(file.read_text()) if file.is_file() else {}

    def curves(self, artifact: Artifact) -> dict[str, list[float]]:
        """term -> a value a step; empty for an item without a fit."""
        file = self.plan.path(artifact) / CURVES_FILE
        return json.loads(file.read_text()) if file.is_file() else {}

    def table(self) -> str:
        return (self.path / "table.md").read_text()


def mean_cost(name: str, what: str, costs: Sequence[dict[str, Any]], count: int | None = None) -> dict[str, float]:
    """The sum of one cost by `count`, the items unless given; nothing where an item was not measured."""
    known = costs and all(what in cost for cost in costs)
    return {name: sum(cost[what] for cost in costs) / (count or len(costs))} if known else {}


def versions() -> dict[str, str]:
    ours = {"lorabench": __version__, "python": platform.python_version()}
    return ours | {package: metadata.version(package) for package in PACKAGES}


def side_by_side(images: "Sequence[Image]") -> "Image":
    """One picture of the same size: the image itself, or several in a square grid."""
    from PIL import Image

    edge, width = ceil(len(images) ** 0.5), images[0].width
    if edge == 1:
        return images[0]
    sheet, cell = Image.new("RGB", images[0].size, "white"), width // edge
    for index, image in enumerate(images):
        sheet.paste(image.resize((cell, cell), Image.Resampling.LANCZOS), (index % edge * cell, index // edge * cell))
    return sheet


def copy(source: Path, target: Path, pattern: str) -> None:
    target.mkdir(parents=True)
    for file in sorted(source.glob(pattern)):
        shutil.copyfile(file, target / file.name)
