"""Checks of a configuration, made before anything runs.

Conditions on single values are declared with their fields; conditions on several values are here. A method is checked
when it is built, see lorabench.merging.method. No heavy package is imported, because `--cfg job` must be fast.
"""

import math
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any, cast

from omegaconf import DictConfig, ListConfig, OmegaConf

from lorabench.base import CONF, UserError
from lorabench.config.choices import choose
from lorabench.config.schemas import LoRASpec
from lorabench.config.settings import LIMITS, items


def validate(cfg: DictConfig) -> None:
    """Check all values of a configuration.

    Raises:
        UserError: With the wrong setting and a valid one.
    """
    from lorabench.config.recipe import check_recipe

    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError(f"{missing[0]} has no value; use {missing[0]}=...")
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    for path, value in leaves(values):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{path}={value} must be a finite number")
    check_limits(cfg)
    check_recipe(cast(LoRASpec, OmegaConf.to_object(cfg.lora)))
    check_negative(values["generate"])
    check_nodes(values["trainer"])
    check_dataset(values["dataset"])
    check_contexts(values["prompts"]["contexts"])
    check_protocol(values["protocol"], values["scorers"])
    check_reference(values["reference"])
    check_logger(values["logger"])
    if values["prompts"]["content_token"] == values["prompts"]["style_token"]:
        raise UserError("prompts.content_token and prompts.style_token must differ")


def check_limits(node: DictConfig, path: str = "") -> None:
    """Check each value against the condition of its field, see `lorabench.config.settings`.

    Raises:
        UserError: If a value is not allowed.
    """
    kind = OmegaConf.get_type(node)
    limits = {each.name: each.metadata.get(LIMITS) for each in fields(kind)} if is_dataclass(kind) else {}
    for key in node:
        own = f"{path}.{key}" if path else str(key)
        value = node[key]
        if isinstance(value, DictConfig):
            check_limits(value, own)
        elif limit := limits.get(str(key)):
            for item in items(OmegaConf.to_container(value) if isinstance(value, ListConfig) else value):
                limit.check(own, item)


def check_negative(generate: dict[str, Any]) -> None:
    """Check that a negative prompt has an effect.

    Raises:
        UserError: If it has none, because there is no guidance.
    """
    if generate["negative"] and generate["guidance"] <= 1:
        raise UserError(f"negative='{generate['negative']}' has no effect without guidance; use generate.guidance=5")


def check_nodes(trainer: dict[str, Any]) -> None:
    """Check that several machines can find each other.

    Raises:
        UserError: If they have no ranks or no rendezvous.
    """
    nodes, meet = trainer["nodes"], trainer["rendezvous"]
    if nodes > 1 and not trainer["devices"]:
        raise UserError(f"trainer.nodes={nodes} needs ranks on each; use trainer=ddp trainer.devices=<ranks per node>")
    host, _, port = (meet or "").rpartition(":")
    if nodes > 1 and not (host and port.isdigit() and 0 < int(port) < 65536):
        raise UserError(f"trainer.rendezvous={meet} must have the form <host>:<port>")


def check_reference(label: str) -> None:
    """Check that the reference row is a method with an optional ablation.

    Raises:
        UserError: If one of them does not exist.
    """
    method, _, ablation = label.partition(" ")
    known = {group: sorted(path.stem for path in (CONF / group).glob("*.yaml")) for group in ("method", "ablation")}
    choose("reference", method.partition("+")[0], known["method"])
    if ablation:
        choose(f"reference={method} with ablation", ablation, known["ablation"])


def check_logger(logger: dict[str, Any]) -> None:
    """Check the name of a W&B project, which W&B itself would report as a failed connection.

    Raises:
        UserError: If the name is too long or has a character that W&B does not accept.
    """
    project = logger.get("project", "")
    if logger["kind"] == "wandb" and (set(project) & set(r"/\#?%:") or not 0 < len(project) <= 128):
        raise UserError(
            f"logger.project={project} must have 1 to 128 characters and none of /\\#?%:; use logger.project=lorabench"
        )


def check_dataset(dataset: dict[str, Any]) -> None:
    """Check the names of subjects and styles, and the number of references.

    Raises:
        UserError: If names are not a list, or a name occurs twice.
    """
    for group in ("contents", "subjects", "styles"):
        if (names := dataset[group]) is None and group == "contents":
            continue
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            example = ",".join(f"'{name}'" for name in names) if isinstance(names, list) and names else "a,b"
            raise UserError(f'dataset.{group}={names} must be a list of names; use "dataset.{group}=[{example}]"')
        if not names:
            raise UserError(f"dataset.{group} is empty; use dataset.{group}=[a,b]")
        for together in (names, *(name.split("+") for name in names)):
            if len(set(together)) < len(together):
                raise UserError(f"dataset.{group} names something twice: {', '.join(together)}; name each once")
    references = dataset["references"]
    if references != "same" and (isinstance(references, bool) or not isinstance(references, int)):
        raise UserError(f"dataset.references={references} must be same or a number; use dataset.references=same")


def check_contexts(contexts: Any) -> None:
    """Check that the contexts are a name or a list of texts. data/contexts.py checks the name.

    Raises:
        UserError: If they are neither.
    """
    texts = contexts if isinstance(contexts, list) else [contexts]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(f"prompts.contexts={contexts} is not a list of scenes; use prompts.contexts=['in the snow']")


def check_protocol(protocol: dict[str, Any], scorers: dict[str, Any]) -> None:
    """Check that the protocol's columns are valid and that the chosen scorers include their backbones.

    Raises:
        UserError: If they do not, and no folder of scorers is given that could have the backbone.
    """
    for column in protocol["columns"]:
        at = f"the column {column['name']} of protocol={protocol['name']}"
        choose(f"{at}: references", column["references"], ("mean", "max", "first"))
        choose(f"{at}: average", column["average"], ("pair", "macro", "micro"))
        choose(f"{at}: use", column["use"], ("joint", "content", "style", "cross"))
    needed = dict.fromkeys([*scorers["backbones"], *(column["backbone"] for column in protocol["columns"])])
    if scorers["path"] is None and len(needed) > len(scorers["backbones"]):
        lacking = ", ".join(list(needed)[len(scorers["backbones"]) :])
        raise UserError(f"protocol={protocol['name']} needs {lacking} too; use scorers.backbones=[{','.join(needed)}]")


def leaves(value: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    """Yield (dotted path, leaf) of nested dicts and lists. An item of a list has the path of the list."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from leaves(child, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for child in value:
            yield from leaves(child, path)
    else:
        yield path, value
