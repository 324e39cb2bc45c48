"""`python run.py --help`: main commands, groups and examples, instead of Hydra's own page."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from lorabench.base import CONF, CONF_ROOT, __version__

WORDS = ("--help", "-h")
SCHEMA = "schema"
COMMANDS = {
    "task=benchmark": "train, merge, generate, score and report (default)",
    "task=compare": "several methods in one table",
    "task=merge": "merge LoRA files into one: content=a.safetensors style=b.safetensors output=merged.safetensors",
    "task=generate": "images of a prompt with LoRA files, by any method",
    "task=unzip": "a content and a style LoRA from one image: image=cat.png",
    "task=tune": "the weights of two LoRA files that score best",
    "task=inspect": "print the contents of LoRA files and their conflicts",
    "experiments=<name>": "the tables of publications and our own comparisons",
}
GROUPS = ("task", "method", "method/training", "method/merge", "method/sampling", "ablation", "dataset", "model",
          "scorers", "protocol", "lora", "prior", "judge", "trainer", "logger")  # fmt: skip
EXAMPLES = """\
python run.py method=duolora                                   # LoRAs, merges, images, scores and a report
python run.py method=duolora ablation=no_cycle seed=1
python run.py -m method=direct,ziplora,klora                   # a run of each, and one joint table
python run.py method=direct method/sampling=klora              # exchange one component
python run.py task=merge content=dog.safetensors style=crayon.safetensors method=ties output=merged.safetensors
python run.py task=inspect content=dog.safetensors style=crayon.safetensors
python run.py --cfg job method=duolora                         # print all settings
"""
WIDTH = 100


def wanted(words: Iterable[str]) -> bool:
    """Return whether a command line asks for help."""
    return any(word in WORDS for word in words)


def text(tasks: Iterable[str]) -> str:
    """Return the page; `tasks` are the names that exist."""
    lines = [f"lorabench {__version__}: compose subject and style LoRAs, and measure the results", "",
             "usage: python run.py [-m] [key=value ...]", "", "commands"]  # fmt: skip
    lines += [
        f"  {name:<20} {about}"
        for name, about in COMMANDS.items()
        if not name.startswith("task=") or name.removeprefix("task=") in tasks
    ]
    lines += ["", "groups, one option each"]
    for group in GROUPS:
        lines += _listed(group, options(group))
    lines += _listed("experiments", sorted(path.stem for path in (CONF_ROOT / "experiments").glob("*.yaml")))
    lines += ["", "examples", *(f"  {line}" for line in EXAMPLES.splitlines()), ""]
    lines += ["--cfg job: print every setting; -m: run each value of a list; --hydra-help: Hydra's own flags"]
    return "\n".join(lines)


def options(group: str) -> list[str]:
    """Return the options of a group, without schemas."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if path.stem != SCHEMA)


def _listed(group: str, names: Iterable[str]) -> list[str]:
    indent = " " * 23
    return textwrap.wrap(f"  {group + '=':<20} {' '.join(names)}", WIDTH, subsequent_indent=indent,
                         break_on_hyphens=False)  # fmt: skip
