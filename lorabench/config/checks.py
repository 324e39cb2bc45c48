"""The checks of every value of a configuration, made before anything runs.

Nothing heavy is imported here: `--cfg job` must stay quick.
"""

import math
from collections.abc import Iterable
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from lorabench.base import CONF, UserError
from lorabench.config.choices import choose
from lorabench.config.schemas import LoRASpec

# The least value that makes sense for a key of this name, wherever it stands, and whether it is allowed itself.
LEAST = {
    "rank": (1, True), "alpha": (0, False), "steps": (1, True), "batch": (1, True), "lr": (0, False),
    "betas": (0, True), "weight_decay": (0, True), "warmup": (0, True), "max_grad_norm": (0, False),
    "text_lr": (0, False), "accumulate": (1, True), "cycles": (1, True), "min_snr": (0, False), "crops": (0, True),
    "prior_weight": (0, True), "prior_images": (1, True), "sample_every": (0, True), "checkpoint_every": (1, True),
    "images": (1, True), "resolution": (8, True), "guidance": (1, True), "references": (1, True),
    "count": (1, True), "pairs_seed": (0, True),
    "content_images": (1, True), "style_images": (1, True), "seed": (0, True),
    "workers": (0, True), "devices": (0, True), "nodes": (1, True), "threads": (1, True), "pairs_per_batch": (1, True),
    "draws": (1, True), "ridge": (0, False), "epochs": (1, True),
    "lambda_prior": (0, True), "lambda_cycle": (0, True), "lambda_similarity": (0, True), "prior_hinge": (0, True),
}  # fmt: skip
CHOICES = {
    "lora.optimizer": ("adamw", "adamw8bit", "prodigy"),
    "lora.schedule": ("constant", "linear", "cosine", "cosine_with_restarts", "polynomial"),
    "method.concepts": ("joint", "uniform"),
    "task.format": ("kohya", "diffusers"),
    "task.dtype": ("same", "float32", "float16", "bfloat16"),
    "model.dtype": ("fp32", "bf16", "fp16"),
    "model.vae_dtype": ("fp32", "bf16", "fp16"),
    "model.attention": ("auto", "sdpa", "math", "sliced"),
    "model.offload": ("none", "encoders"),
    "trainer.accelerator": ("cpu", "gpu", "auto"),
    "trainer.precision": ("32-true", "bf16-mixed", "16-mixed"),
    "logger.kind": ("wandb", "csv", "none"),
    "logger.mode": ("offline", "online"),
}


def validate(cfg: DictConfig) -> None:
    """Check every value; raises UserError with what to type."""
    from lorabench.config.recipe import check_recipe

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
            choose(path, str(value), CHOICES[path])
    check_recipe(cast(LoRASpec, OmegaConf.to_object(cfg.lora)))
    check_nodes(values["trainer"])
    check_dataset(values["dataset"])
    check_contexts(values["prompts"]["contexts"])
    check_protocol(values["protocol"], values["scorers"])
    check_reference(values["reference"])
    if values["prompts"]["content_token"] == values["prompts"]["style_token"]:
        raise UserError("prompts.content_token and prompts.style_token must differ")


def check_nodes(trainer: dict[str, Any]) -> None:
    """UserError where several machines could not find each other."""
    nodes, meet = trainer["nodes"], trainer["rendezvous"]
    if nodes > 1 and not trainer["devices"]:
        raise UserError(f"trainer.nodes={nodes} needs ranks on each; type trainer=ddp trainer.devices=<ranks a node>")
    host, _, port = (meet or "").rpartition(":")
    if nodes > 1 and not (host and port.isdigit() and 0 < int(port) < 65536):
        raise UserError(f"trainer.rendezvous={meet} is no place to meet; type trainer.rendezvous=<host>:<port>")


def check_reference(label: str) -> None:
    """UserError unless a method, and the ablation after it, have their yaml."""
    method, _, ablation = label.partition(" ")
    known = {group: sorted(path.stem for path in (CONF / group).glob("*.yaml")) for group in ("method", "ablation")}
    choose("reference", method, known["method"])
    if ablation:
        choose(f"reference={method} with ablation", ablation, known["ablation"])


def check_dataset(dataset: dict[str, Any]) -> None:
    """UserError where names are no lists, or name something twice."""
    for group in ("contents", "subjects", "styles"):
        if (names := dataset[group]) is None and group == "contents":
            continue
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"dataset.{group}={names} is no list of names; type dataset.{group}=[a,b]")
        if not names:
            raise UserError(f"dataset.{group} is empty; type dataset.{group}=[a,b]")
        for together in (names, *(name.split("+") for name in names)):
            if len(set(together)) < len(together):
                raise UserError(f"dataset.{group} names something twice: {', '.join(together)}; name each once")
    references = dataset["references"]
    if references != "same" and (isinstance(references, bool) or not isinstance(references, int)):
        raise UserError(f"dataset.references={references} is neither same nor a number; type dataset.references=same")


def check_contexts(contexts: Any) -> None:
    """UserError unless they are a name, or a list of texts; which names there are is told in data/contexts.py."""
    texts = contexts if isinstance(contexts, list) else [contexts]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(f"prompts.contexts={contexts} is no list of scenes; type prompts.contexts=['in the snow']")


def check_protocol(protocol: dict[str, Any], scorers: dict[str, Any]) -> None:
    """UserError where a column can have no score: no folder of scorers may stand in, and its backbone is not chosen."""
    for column in protocol["columns"]:
        at = f"the column {column['name']} of protocol={protocol['name']}"
        choose(f"{at}: references", column["references"], ("mean", "max", "first"))
        choose(f"{at}: average", column["average"], ("pair", "macro", "micro"))
    needed = dict.fromkeys([*scorers["backbones"], *(column["backbone"] for column in protocol["columns"])])
    if scorers["path"] is None and len(needed) > len(scorers["backbones"]):
        lacking = ", ".join(list(needed)[len(scorers["backbones"]) :])
        raise UserError(f"protocol={protocol['name']} needs {lacking} too; type scorers.backbones=[{','.join(needed)}]")


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
