"""The run folder: copies of a run's files from the store and its report, so that it can be moved and read by itself.

A run has one method with the baseline and oracle rows, or several methods (task=compare), whose merges, losses and
costs are then kept by row. The manifest is written last; its key and its list of files mark a finished run.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lorabench.config.schemas import LoggerSpec
from lorabench.data.catalogue import world_version
from lorabench.data.concepts import ROLES
from lorabench.data.uses import JOINT
from lorabench.engine.artifact import Artifact
from lorabench.engine.failures import FORBIDDEN
from lorabench.engine.output_folder import MANIFEST, OutputFolder
from lorabench.engine.record import key_of, sha256
from lorabench.report import FILES as REPORT_FILES
from lorabench.report.imported import CHECKSUMS
from lorabench.report.labels import label
from lorabench.tasks.plan import Plan
from lorabench.tasks.rows import Row
from lorabench.tasks.run_manifest import chosen_rows, curves_of, manifest_of, options_of

if TYPE_CHECKING:
    from PIL.Image import Image

USES_FOLDER = "uses"  # images of uses other than joint


@dataclass(frozen=True)
class RunWriter:
    """Writer of a run folder.

    Args:
        path: The folder.
        plan: The plan of the run.
        config: The resolved configuration as YAML.
    """

    path: Path
    plan: Plan
    config: str

    def folder_of(self, row: Row) -> str:
        """Return the folder name of a row's images (and merges): its method, and its ablation if rows are several."""
        is_only = len(chosen_rows(self.plan)) == 1 or row.ablation == "none"
        return row.name if is_only else f"{row.name}-{row.ablation}"

    @property
    def output(self) -> OutputFolder:
        """Return the folder with the list of our files in it."""
        return OutputFolder(self.path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold a lock, so that no other process with the same command writes the folder.

        The lock is in the store, whose file system is known to have locks. A read-only store has none.
        """
        with ExitStack() as held:
            try:
                held.enter_context(self.plan.store.lock(key_of("folder", {"path": str(self.path.resolve())})))
            except OSError as error:
                if error.errno not in FORBIDDEN:
                    raise
            yield

    def is_done(self, logger: LoggerSpec) -> bool:
        """Return whether the folder has this run, complete and shown by this logger."""
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
        """Replace the files of an earlier run. The run counts as done only after `seal`.

        Args:
            seconds: Time that this run took to compute missing artifacts.
        """
        with self.output.filled() as draft:
            replace(self, path=draft).write(seconds)

    def write(self, seconds: float) -> None:
        """Write all files into an empty folder; see `assemble`."""
        from lorabench.report import write_report

        (self.path / "config.yaml").write_text(self.config, encoding="utf-8")
        for row, pair, use in self.plan.samples():
            place = self.path / ("images" if use == JOINT else f"{USES_FOLDER}/{use}")
            copy(self.plan.path(self.plan.generate(row, pair, use)), place / self.folder_of(row) / pair.name, "*.png")
            if use == JOINT and row.is_method and row.own.is_file:
                merged = self.path / "merged" / (self.folder_of(row) if len(chosen_rows(self.plan)) > 1 else "")
                merged.mkdir(parents=True, exist_ok=True)
                made = self.plan.path(self.plan.merge(row, pair)) / "merged.safetensors"
                write_merged(made, self.plan.trained.backbone(row, pair), merged / f"{pair.name}.safetensors")
        self.write_references()
        self.write_ranks()
        self.write_scores()
        self.write_overlap()
        self.output.write_manifest(manifest_of(self.plan, seconds), {})
        write_report(self.path)

    def seal(self, logger: LoggerSpec) -> None:
        """Mark the run as done: write its key, its files with checksums, and its logger into the manifest."""
        files = {file: (self.path / file).stat().st_size for file in self.output.files()}
        how = {"key": self.plan.key(), "logger": [logger.kind, logger.mode], "protocol": self.protocol}
        how["reference"] = self.reference
        how[CHECKSUMS] = {file: sha256(self.path / file) for file in sorted(files) if file not in REPORT_FILES}
        self.output.write_manifest(self.output.manifest() | how, files)

    @property
    def protocol(self) -> dict[str, Any]:
        """Return the protocol of the table. Another protocol needs another report of the same run."""
        return yaml.safe_load(self.config).get("protocol") or {}

    @property
    def reference(self) -> str:
        """Return the row with which the table compares the others."""
        return yaml.safe_load(self.config).get("reference", "direct")

    def write_references(self) -> None:
        """Write the references that images were compared with, in the size of the generated images."""
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
        """Write the figure of effective ranks by layer, if the run has a single method with merges."""
        from lorabench.models.shapes import layer_map
        from lorabench.report.ranks import write_ranks

        [chosen, *others] = chosen_rows(self.plan)
        if chosen.is_method and not others:
            merges = {pair.name: self.plan.path(self.plan.merge(chosen, pair)) for pair in self.plan.pairs}
            ranks = {name: json.loads((path / "merge.json").read_text())["ranks"] for name, path in merges.items()}
            roles = {pair.name: self.plan.trained.adapted(chosen, pair).roles for pair in self.plan.pairs}
            if any(ranks.values()):  # learned tokens have none
                write_ranks(self.path, ranks, roles, layer_map(self.plan.model))

    def write_overlap(self) -> None:
        """Write overlap.csv, the overlap of the adapters of both roles, if there are images of each role by itself."""
        if not set(ROLES) <= set(self.plan.uses):
            return
        import pandas as pd

        from lorabench.lora.adapter import Adapter
        from lorabench.lora.projection import overlap
        from lorabench.report.cross_influence import OVERLAP

        lines = []
        for row, pair in self.plan.cells():
            if row.method is None:
                continue
            adapters = [Adapter.load(self.plan.trained.file(lora)) for lora in self.plan.trained.loras(row, pair)]
            roles = self.plan.trained.adapted(row, pair).roles
            sides = [[each for each, role in zip(adapters, roles, strict=True) if role == side] for side in ROLES]
            if all(sides):
                known = {"label": label(row.name, row.ablation), "dataset": self.plan.dataset.name}
                names = {"content": pair.content_name, "style": pair.style_name}
                lines.append({**known, **names, "overlap": overlap(*sides)})
        pd.DataFrame(lines).to_csv(self.path / OVERLAP, index=False)

    def write_scores(self) -> None:
        """Write scores.parquet: the scores of all rows and pairs, with the names of row, dataset and model."""
        import pandas as pd

        parts = []
        for row, pair, use in self.plan.samples():
            scores = pd.read_parquet(self.plan.path(self.plan.score(row, pair, use)) / "scores.parquet")
            whose = {
                "dataset": self.plan.dataset.name,
                "world": world_version(self.plan.dataset),
                "method": row.name,
                "ablation": row.ablation,
                **options_of(row),
                "model": self.plan.model_name,
                "use": use,
            }
            parts.append(scores.assign(**whose)[[*whose, *scores.columns]])
        pd.concat(parts, ignore_index=True).to_parquet(self.path / "scores.parquet", index=False)

    def curves(self, artifact: Artifact) -> dict[str, list[float]]:
        """Return each loss term's value per step; empty for an artifact that was not trained."""
        return curves_of(self.plan, artifact)

    def table(self) -> str:
        """Return the table as Markdown."""
        return (self.path / "table.md").read_text(encoding="utf-8")


def write_merged(made: Path, backbone: Path | None, target: Path) -> None:
    """Write a merged LoRA for the plain model: with the change of the base weights, if it was merged on one."""
    if backbone is None:
        copy_adapter(made, target)
        return
    from lorabench.lora.adapter import Adapter
    from lorabench.lora.export import export

    parts = [Adapter.load(file) for file in (backbone, made)]
    for part in parts:
        part.backbone = None
    export(parts).save(target, format="store")


def side_by_side(images: "Sequence[Image]") -> "Image":
    """Return one image of the size of the first: the image itself, or several in a square grid."""
    from PIL import Image

    edge, width = ceil(len(images) ** 0.5), images[0].width
    if edge == 1:
        return images[0]
    sheet, cell = Image.new("RGB", images[0].size, "white"), width // edge
    for index, image in enumerate(images):
        sheet.paste(image.resize((cell, cell), Image.Resampling.LANCZOS), (index % edge * cell, index // edge * cell))
    return sheet


def copy_adapter(made: Path, path: Path) -> None:
    """Copy an adapter of the store; its token embeddings become files next to it, so that diffusers loads them."""
    from safetensors import safe_open

    from lorabench.lora.adapter import Adapter
    from lorabench.lora.files.embeddings import bundled

    with safe_open(made, "pt") as file:
        has_tokens = bool(bundled(file.keys()))
    if has_tokens:
        Adapter.load(made).save(path, format="diffusers")
    else:
        shutil.copyfile(made, path)


def copy(source: Path, target: Path, pattern: str) -> None:
    """Copy the files that match a pattern into a new folder."""
    target.mkdir(parents=True)
    for file in sorted(source.glob(pattern)):
        shutil.copyfile(file, target / file.name)
