"""The files of a run folder that come from the store: images, merged LoRAs, references, scores and figures of ranks."""

import json
import shutil
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from lorabench.data.catalogue import world_version
from lorabench.data.concepts import ROLES
from lorabench.data.uses import JOINT
from lorabench.report.labels import label
from lorabench.tasks.plan import Plan
from lorabench.tasks.rows import Row
from lorabench.tasks.run_manifest import chosen_rows, options_of

if TYPE_CHECKING:
    from PIL.Image import Image

USES_FOLDER = "uses"  # images of uses other than joint


def folder_of(plan: Plan, row: Row) -> str:
    """Return the folder name of a row's images (and merges): its method, and its ablation if rows are several."""
    is_only = len(chosen_rows(plan)) == 1 or row.ablation == "none"
    return row.name if is_only else f"{row.name}-{row.ablation}"


def write_files(plan: Plan, folder: Path) -> None:
    """Write the images, merges and scores of a finished plan into an empty folder."""
    for row, pair, use in plan.samples():
        place = folder / ("images" if use == JOINT else f"{USES_FOLDER}/{use}")
        copy_images(plan.path(plan.generate(row, pair, use)), place / folder_of(plan, row) / pair.name)
        if use == JOINT and row.is_method and row.own.is_file:
            merged = folder / "merged" / (folder_of(plan, row) if len(chosen_rows(plan)) > 1 else "")
            merged.mkdir(parents=True, exist_ok=True)
            made = plan.path(plan.merge(row, pair)) / "merged.safetensors"
            write_merged(made, plan.trained.backbone(row, pair), merged / f"{pair.name}.safetensors")
    write_references(plan, folder)
    write_rank_figure(plan, folder)
    write_scores(plan, folder)
    write_overlap(plan, folder)


def write_references(plan: Plan, folder: Path) -> None:
    """Write the references that images were compared with, in the size of the generated images."""
    from PIL import Image

    row, pair = next(plan.cells())
    with Image.open(folder / "images" / folder_of(plan, row) / pair.name / "00.png") as image:
        size = image.width
    shown = {(role, name): pair.of(role) for pair in plan.pairs for role, name in pair.names.items()}
    for (role, name), concepts in shown.items():
        place = folder / "references" / role / name
        place.mkdir(parents=True)
        for index, images in enumerate(zip(*(concept.references for concept in concepts), strict=False)):
            side_by_side([image.image(size) for image in images]).save(place / f"{index}.png")


def write_rank_figure(plan: Plan, folder: Path) -> None:
    """Write the figure of effective ranks by layer, if the run has a single method with merges."""
    from lorabench.models.shapes import layer_map
    from lorabench.report.ranks import write_ranks

    [chosen, *others] = chosen_rows(plan)
    if chosen.is_method and not others:
        merges = {pair.name: plan.path(plan.merge(chosen, pair)) for pair in plan.pairs}
        ranks = {name: json.loads((path / "merge.json").read_text())["ranks"] for name, path in merges.items()}
        roles = {pair.name: plan.trained.adapted(chosen, pair).roles for pair in plan.pairs}
        if any(ranks.values()):  # learned tokens have none
            write_ranks(folder, ranks, roles, layer_map(plan.model))


def write_overlap(plan: Plan, folder: Path) -> None:
    """Write overlap.csv, the overlap of the adapters of both roles, if there are images of each role by itself."""
    if not set(ROLES) <= set(plan.uses):
        return
    import pandas as pd

    from lorabench.lora.adapter import Adapter
    from lorabench.lora.projection import overlap
    from lorabench.report.cross_influence import OVERLAP

    lines = []
    for row, pair in plan.cells():
        if row.method is None:
            continue
        adapters = [Adapter.load(plan.trained.file(lora)) for lora in plan.trained.loras(row, pair)]
        roles = plan.trained.adapted(row, pair).roles
        sides = [[each for each, role in zip(adapters, roles, strict=True) if role == side] for side in ROLES]
        if all(sides):
            known = {"label": label(row.name, row.ablation), "dataset": plan.dataset.name}
            names = {"content": pair.content_name, "style": pair.style_name}
            lines.append({**known, **names, "overlap": overlap(*sides)})
    pd.DataFrame(lines).to_csv(folder / OVERLAP, index=False)


def write_scores(plan: Plan, folder: Path) -> None:
    """Write scores.parquet: the scores of all rows and pairs, with the names of row, dataset and model."""
    import pandas as pd

    parts = []
    for row, pair, use in plan.samples():
        scores = pd.read_parquet(plan.path(plan.score(row, pair, use)) / "scores.parquet")
        whose = {
            "dataset": plan.dataset.name,
            "world": world_version(plan.dataset),
            "method": row.name,
            "ablation": row.ablation,
            **options_of(row),
            "model": plan.model_name,
            "use": use,
        }
        parts.append(scores.assign(**whose)[[*whose, *scores.columns]])
    pd.concat(parts, ignore_index=True).to_parquet(folder / "scores.parquet", index=False)


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


def copy_images(source: Path, target: Path) -> None:
    """Copy images into a new folder."""
    target.mkdir(parents=True)
    for file in sorted(source.glob("*.png")):
        shutil.copyfile(file, target / file.name)
