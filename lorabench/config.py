"""Types of the configuration and the checks made before anything runs.

Values live in conf/*.yaml, types here; Hydra refuses an unknown key or a wrong type while it composes. A method's own
type is its dataclass (see lorabench/method.py). Nothing heavy is imported here: `--cfg job` must stay quick.
"""

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from lorabench.errors import UserError

CONF = Path(__file__).parents[1] / "conf"


@dataclass
class LoRASpec:
    """How one LoRA is trained (stage 1). Optimiser: AdamW with a linear warm-up."""

    rank: int = MISSING
    alpha: float = MISSING  # the update is scaled by alpha / rank
    steps: int = MISSING
    batch: int = MISSING  # images a step, drawn with replacement
    lr: float = MISSING
    betas: tuple[float, float] = MISSING
    weight_decay: float = MISSING
    warmup: int = MISSING  # steps
    max_grad_norm: float = MISSING


@dataclass
class GenerateSpec:
    """How the images of a pair are drawn."""

    images: int = MISSING  # a pair and row
    steps: int = MISSING  # of the sampler
    guidance: float = MISSING  # classifier-free guidance scale; 1 is without
    batch: int = MISSING  # images drawn together; part of the floating-point result


@dataclass
class PromptSpec:
    content_token: str = MISSING
    style_token: str = MISSING


@dataclass
class ModelSpec:
    name: str = MISSING
    path: str = MISSING  # "micro" (the packaged one) or a diffusers folder


@dataclass
class ScorerSpec:
    name: str = MISSING
    path: str = MISSING  # folder with dino/ clip/ csd/


@dataclass
class MicroworldSpec:
    name: str = MISSING
    subjects: list[str] = MISSING  # "a+b": both in one picture
    styles: list[str] = MISSING  # "a+b": a blend of both
    contents: list[str] | None = MISSING  # one group of subjects, instead of `subjects`
    content_images: int = MISSING  # photos a subject's LoRA is trained on
    style_images: int = MISSING  # pictures a style's LoRA is trained on
    references: int = MISSING  # other images of each, for scoring


@dataclass
class DreamBoothStyleDropSpec:
    name: str = MISSING
    root: str = MISSING  # holds dreambooth/dataset and styledrop/data
    subjects: list[str] = MISSING  # as in MicroworldSpec, like the next two
    styles: list[str] = MISSING
    contents: list[str] | None = MISSING


@dataclass
class MergeSpec:
    """How merges are computed, whatever the method."""

    pairs_per_batch: int = MISSING  # pairs trained side by side in one batch; changes the speed, not the result


@dataclass
class TrainerSpec:
    """Where and how wide a run is computed; only `precision` changes the numbers."""

    accelerator: str = MISSING
    precision: str = MISSING
    workers: int = MISSING  # processes for independent items; 0 is this process
    threads: int = MISSING  # torch threads in each


@dataclass
class LoggerSpec:
    kind: str = MISSING  # wandb | csv | none
    mode: str = "offline"  # wandb: offline | online
    project: str = "lorabench"


@dataclass
class TaskSpec:
    """What a command does; folder: of its results, under output/name."""

    name: str = MISSING
    folder: str = MISSING


@dataclass
class ParamsTask(TaskSpec):
    ranks: dict[str, int] = MISSING  # of both LoRAs, by model


@dataclass
class LayerProbeTask(TaskSpec):
    scale: float = MISSING  # strength of a LoRA in the layers probed
    by: list[str] = MISSING  # "block", "layer" (a transformer block)


@dataclass
class Config:
    """The root; groups are typed by their own schemas."""

    name: str = MISSING
    seed: int = MISSING
    output: str = MISSING
    store: str = MISSING
    mode: str = MISSING
    prompts: PromptSpec = field(default_factory=PromptSpec)
    merge: MergeSpec = field(default_factory=MergeSpec)
    generate: GenerateSpec = field(default_factory=GenerateSpec)
    model: Any = MISSING
    scorers: Any = MISSING
    dataset: Any = MISSING
    lora: Any = MISSING
    method: Any = MISSING
    trainer: Any = MISSING
    logger: Any = MISSING
    task: Any = MISSING


SCHEMAS = {
    "model": {"diffusers": ModelSpec},
    "scorers": {"folder": ScorerSpec},
    "dataset": {"microworld": MicroworldSpec, "dreambooth_styledrop": DreamBoothStyleDropSpec},
    "lora": {"lora": LoRASpec},
    "trainer": {"trainer": TrainerSpec},
    "logger": {"logger": LoggerSpec},
    "task": {"task": TaskSpec, "theorem1": TaskSpec, "params": ParamsTask, "layer_probe": LayerProbeTask},
}


def register() -> None:
    """Put every schema where the yaml files find it: `defaults: [schema/<name>, _self_]`."""
    from lorabench import method

    OmegaConf.register_new_resolver("count", lambda names: len(names or [None]), replace=True)
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for group, schemas in SCHEMAS.items():
        for name, node in schemas.items():
            store.store(group=f"{group}/schema", name=name, node=node, package=group)
    method.register()


# The least value that makes sense for a key of this name, wherever it stands, and whether it is allowed itself.
LEAST = {
    "rank": (1, True), "alpha": (0, False), "steps": (1, True), "batch": (1, True), "lr": (0, False),
    "betas": (0, True), "weight_decay": (0, True), "warmup": (0, True), "max_grad_norm": (0, False),
    "images": (1, True), "guidance": (1, True), "references": (1, True),
    "content_images": (1, True), "style_images": (1, True), "seed": (0, True),
    "workers": (0, True), "threads": (1, True), "pairs_per_batch": (1, True), "draws": (1, True), "ridge": (0, False),
    "lambda_prior": (0, True), "lambda_cycle": (0, True), "lambda_similarity": (0, True), "prior_hinge": (0, True),
}  # fmt: skip
CHOICES = {
    "method.concepts": ("joint", "uniform"),
    "trainer.accelerator": ("cpu", "gpu", "auto"),
    "trainer.precision": ("32-true", "bf16-mixed", "16-mixed"),
    "logger.kind": ("wandb", "csv", "none"),
    "logger.mode": ("offline", "online"),
}


def validate(cfg: DictConfig) -> None:
    """Check every value; raises UserError with what to type."""
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError(f"{missing[0]} has no value; type {missing[0]}=...")
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    for path, value in leaves(values):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{path}={value} must be a finite number")
        bounds = LEAST.get(path.rsplit(".", 1)[-1])
        if bounds and isinstance(value, int | float) and not isinstance(value, bool):
            least, allowed = bounds
            if value < least or (value == least and not allowed):
                limit = f"at least {least}" if allowed else f"greater than {least}"
                raise UserError(f"{path}={value} must be {limit}")
        if path in CHOICES:
            choose(path, value, CHOICES[path])
    for group in ("contents", "subjects", "styles"):
        if (names := values["dataset"][group]) is None:
            continue
        if not names:
            raise UserError(f"dataset.{group} is empty; type dataset.{group}=[a,b]")
        for together in (names, *(name.split("+") for name in names)):
            if len(set(together)) < len(together):
                raise UserError(f"dataset.{group} names something twice: {', '.join(together)}; name each once")
    if values["prompts"]["content_token"] == values["prompts"]["style_token"]:
        raise UserError("prompts.content_token and prompts.style_token must differ")


def leaves(value: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    """(dotted path, leaf) of nested dicts and lists; list items carry their list's path."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from leaves(child, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for child in value:
            yield from leaves(child, path)
    else:
        yield path, value


def choose(key: str, value: str, options: Iterable[str]) -> None:
    """UserError unless the value of a key is one of the options."""
    if value not in (options := list(options)):
        raise UserError(unknown(key, value, options))


def unknown(key: str, value: str, options: Iterable[str]) -> str:
    """One line on a name that does not exist: the nearest one, and all of them.

    >>> unknown("method", "duolra", ["direct", "duolora"])
    'method=duolra is unknown, did you mean duolora? Type method=<direct|duolora>'
    """
    options = list(options)
    if not options:
        return f"{key}={value} is unknown; there is no {key} to choose, leave it out"
    near = difflib.get_close_matches(value, options, n=1)
    hint = f", did you mean {near[0]}?" if near else ";"
    return f"{key}={value} is unknown{hint} {'Type' if near else 'type'} {key}=<{'|'.join(options)}>"
