"""task=inspect: describe LoRA files, and how a content LoRA and a style LoRA conflict. No model is needed.

    python run.py task=inspect content=dog.safetensors style=crayon.safetensors

Writes `output`.json and `output`.png.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from lorabench.base import UserError, __version__
from lorabench.data.concepts import Role
from lorabench.engine.bar import Bar
from lorabench.engine.output_folder import make_folder
from lorabench.engine.own_files import NAME, PNG_NOTE, check_replaceable
from lorabench.engine.record import write_whole
from lorabench.engine.workers import use_threads
from lorabench.report.plot_style import default_style
from lorabench.tasks.given_loras import user_loras
from lorabench.tasks.recognition import check_comparable, fitting
from lorabench.tasks.user_loras import UserPair

if TYPE_CHECKING:
    from lorabench.lora.adapter import Adapter
    from lorabench.lora.conflict import Meeting

ROLES: tuple[Role, ...] = ("content", "style")
DOMINANT = 2.0  # ratio of norms above which one LoRA dominates
SHARED = 0.1  # mean squared cosine above which two spaces overlap more than by chance
TRAINING = ("ss_base_model_version", "ss_sd_model_name", "ss_output_name", "ss_num_train_images", "ss_steps",
            "ss_learning_rate", "ss_network_dim", "ss_network_alpha", "ss_training_comment", "modelspec.title",
            "modelspec.trigger_phrase", "lorabench.method", "lorabench.inputs", "lorabench.targets")  # fmt: skip
BLOCK = re.compile(r"(.+?_blocks?(?:\.\d+)?(?:\.attentions\.\d+)?)\.")


def run(cfg: DictConfig, folder: Path) -> None:
    """Print the description of the files, and write the figure and the numbers."""
    from lorabench.lora.conflict import meetings
    from lorabench.lora.files.write import check_name

    use_threads(cfg.trainer.threads)
    files = {role: user_loras(cfg, role, needed=False) for role in ROLES}
    if not any(files.values()):
        raise UserError("task=inspect needs a file; use content=a.safetensors style=b.safetensors")
    output = Path(cfg.output).with_suffix("")
    check_name(output.with_suffix(".json"))
    make_folder(output.parent)
    numbers, figure = output.with_name(f"{output.name}.json"), output.with_name(f"{output.name}.png")
    written = [numbers, figure] if all(files.values()) else [numbers]
    for file in written:
        check_replaceable(file, "output=<a new name>")
    adapters: dict[Role, list[Adapter]] = {role: [each.read() for each in files[role]] for role in ROLES}
    check_comparable(UserPair(files["content"], files["style"]), [*adapters["content"], *adapters["style"]])
    with Bar(sum(map(len, files.values())) + 1, "inspect") as bar:
        facts = [
            {"role": role, **described(str(each.path), adapter)}
            for role in ROLES
            for each, adapter in zip(files[role], adapters[role], strict=True)
        ]
        bar.reach(len(facts))
        found = meetings(adapters["content"], adapters["style"])
    report: dict[str, Any] = {NAME: __version__, "files": facts}
    if all(adapters.values()):
        report |= conflict(found, *(" ".join(f"{role}={each.path}" for each in files[role][:1]) for role in ROLES))
        write_whole(figure, partial(draw, found))
        report["layers"] = [{**asdict(each), "shared": each.shared} for each in found]
    write_whole(numbers, lambda draft: draft.write_text(json.dumps(report, indent=1)))
    print("\n".join(lines(report)))
    print(numbers)


def described(path: str, adapter: Adapter) -> dict[str, Any]:
    """Return parts, ranks, scales and training metadata of a file."""
    from lorabench.lora.files.metadata import SDXL, is_sdxl
    from lorabench.lora.files.names import is_transformer

    ranks = sorted({shape[0] for shape in adapter.shapes.values()})
    scales = sorted({round(each.scale, 4) for each in (*adapter.values(), *adapter.text.values())})
    notes = {key: adapter.metadata[key][:200] for key in TRAINING if adapter.metadata.get(key)}
    shown = fitting(adapter, "unknown") if is_transformer(adapter) else SDXL if is_sdxl(adapter.parts) else "unknown"
    return {
        "path": path, "base": notes.get(TRAINING[0], shown), "ranks": ranks,
        "alpha / rank": scales, "denoiser layers": len(adapter), "text layers": len(adapter.text),
        "tokens": {trigger: len(next(iter(each.values()))) for trigger, each in adapter.tokens.items()},
        "blocks": blocks(list(adapter)), "norm": norm(adapter), "metadata": notes,
    }  # fmt: skip


def norm(adapter: Adapter) -> float:
    """Return the Frobenius norm of all updates, taken as one vector."""
    parts = (*adapter.values(), *adapter.text.values())
    squares = (float(((each.up.mT @ each.up) * (each.down @ each.down.mT)).sum()) for each in parts)
    return sum(squares) ** 0.5


def block_of(layer: str) -> str:
    """Return the attention block, or the text encoder, of a layer."""
    if layer.startswith("text_encoder"):
        return layer.partition(".")[0]
    match = BLOCK.match(layer)
    return match[1] if match else layer


def blocks(layers: Sequence[str]) -> list[str]:
    """Return the blocks of layers without repetition, in the order of the forward pass."""
    order = {start: place for place, start in enumerate(("down", "mid", "up", "text", "transformer", "single"))}

    def place(name: str) -> tuple[int, list[Any]]:
        return order.get(name.split("_")[0], len(order)), [int(x) if x.isdigit() else x for x in name.split(".")]

    return sorted({block_of(each) for each in layers}, key=place)


def conflict(found: Sequence[Meeting], content: str, style: str) -> dict[str, Any]:
    """Return how two adapters conflict: norms, overlap, the dominant one, and merge commands to try."""
    both = [each for each in found if each.content and each.style]
    norms = [sum(getattr(each, role) ** 2 for each in found) ** 0.5 for role in ROLES]
    by_block = {}
    for block in blocks([each.layer for each in found]):
        mine = [each for each in found if block_of(each.layer) == block]
        meeting = [each.shared for each in mine if each.content and each.style]
        by_block[block] = {
            **{role: sum(getattr(each, role) ** 2 for each in mine) ** 0.5 for role in ROLES},
            "shared": sum(meeting) / len(meeting) if meeting else 0.0,
        }
    weights = [each.content * each.style for each in both]
    total = sum(weights) or 1.0
    shared = sum(each.shared * weight for each, weight in zip(both, weights, strict=True)) / total
    cosine = sum(each.cosine * weight for each, weight in zip(both, weights, strict=True)) / total
    ratio = norms[0] / norms[1] if norms[1] else float("inf")
    dominant = "content" if ratio > DOMINANT else "style" if ratio < 1 / DOMINANT else None
    only = {role: sum(1 for each in found if getattr(each, role) and not getattr(each, other))
            for role, other in (ROLES, ROLES[::-1])}  # fmt: skip
    return {
        "both": len(both), "only": only, "norms": dict(zip(ROLES, norms, strict=True)), "cosine": cosine,
        "shared": shared, "dominant": dominant, "blocks": by_block,
        "commands": commands(content, style, norms, shared, bool(both), dominant),
    }  # fmt: skip


def commands(
    content: str, style: str, norms: Sequence[float], shared: float, meet: bool, dominant: str | None
) -> dict[str, str]:
    """Return merge commands to try, each with the reason."""
    start = f"python run.py task=merge {content} {style}"
    found = {f"{start} method=direct": "the plain sum" if meet else "the LoRAs share no layer: the sum is exact"}
    if dominant and all(norms):
        weaker = [1.0, 1.0]
        weaker[dominant == "style"] = round(min(norms) / max(norms), 2)
        names = f"method.content={weaker[0]} method.style={weaker[1]}"
        found[f"{start} method=custom_weights {names}"] = f"equal norms: the {dominant} LoRA is much stronger"
    if meet and shared > SHARED:
        found[f"{start} method=np_lora"] = "keeps the content out of the directions that the style reads"
        found[f"{start} method=tsv"] = "makes shared directions orthogonal"
        found[f"{start} method=ties"] = "resolves opposite signs"
    return found


def lines(report: dict[str, Any]) -> list[str]:
    """Return the report as text."""
    found = []
    for each in report["files"]:
        ranks = "-".join(map(str, {each["ranks"][0]: 0, each["ranks"][-1]: 0})) if each["ranks"] else "none"
        tokens = "".join(f", token {trigger} ({count} vectors)" for trigger, count in each["tokens"].items())
        found.append(
            f"{each['role']}: {each['path']}, {each['base']}, rank {ranks}, {each['denoiser layers']} denoiser and "
            f"{each['text layers']} text layers{tokens}, norm {each['norm']:.3g}"
        )
    if "blocks" not in report:
        return found
    only = ", ".join(f"only {role} {count}" for role, count in report["only"].items())
    found.append(f"layers: both {report['both']}, {only}")
    found.append(f"cosine {report['cosine']:.3f}, shared directions {report['shared']:.1%}")
    found.append(f"{report['dominant']} will dominate" if report["dominant"] else "neither is much stronger")
    return [*found, *(f"{command}   # {why}" for command, why in report["commands"].items())]


@default_style()
def draw(found: Sequence[Meeting], path: Path) -> None:
    """Plot the norm of both LoRAs and the share of common directions, by block."""
    from matplotlib.figure import Figure

    names = blocks([each.layer for each in found])
    figure = Figure(figsize=(9, 0.36 * len(names) + 1.8), dpi=130, layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for offset, role, color in ((-0.2, "content", "#3b6ea8"), (0.2, "style", "#c8663a")):
        norms = [sum(getattr(each, role) ** 2 for each in found if block_of(each.layer) == name) ** 0.5
                 for name in names]  # fmt: skip
        left.barh([i + offset for i in range(len(names))], norms, height=0.38, color=color, label=role)
    for index, name in enumerate(names):
        mine = [each for each in found if block_of(each.layer) == name and each.content and each.style]
        right.scatter([each.shared for each in mine], [index] * len(mine), s=9, color="#444444", alpha=0.5)
    left.set_yticks(range(len(names)), names, fontsize=8)
    left.invert_yaxis()
    left.set_xlabel("norm of the update")
    left.legend(frameon=False, fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    right.set_xlim(-0.02, 1.02)
    right.set_xlabel("directions in common, per layer (0 to 1)")
    for panel in (left, right):
        panel.grid(axis="x", color="#dddddd", linewidth=0.6)
        panel.set_axisbelow(True)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    figure.savefig(path, format="png", metadata=PNG_NOTE)
