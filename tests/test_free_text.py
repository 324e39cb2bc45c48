"""Paths and prompts on the command line are used without changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from commands import Commands
from hydra.core.override_parser.overrides_parser import OverridesParser

from lorabench.config.free_text import as_typed, quote
from lorabench.lora.adapter import Adapter

NAMES = [
    "My LoRA (1).safetensors", "日本語.safetensors", "a[b].st", "[x] a.st", "a{b}.st", "{a}.st", "a=b.st", "a!b.st",
    "a#b.st", "a&b.st", "a;b.st", "it's.st", "a,b.st", " lead.st", "~x.st", "~/x.st", "500", "1e3", "true", "nullable",
    "a sks dog, in the snow: 'yes' \\", "x\\'y", "C:\\dir\\a.st", 'a"b', "$x", "100%", "(a)", "-5", "choice(a,b)",
]  # fmt: skip


def value(word: str) -> Any:
    """Return the value that Hydra parses from `key=value`."""
    return OverridesParser.create().parse_override(word).value()


@pytest.mark.parametrize(
    "key",
    [
        "content.lora",
        "style.images",
        "prompt",
        "output",
        "store",
        "model.path",
        "dataset.root",
        "name",
        "prompts.style_token",
    ],
)
@pytest.mark.parametrize("text", NAMES)
def test_free_text_is_what_was_typed(key: str, text: str) -> None:
    [word] = as_typed([f"{key}={text}"])
    assert value(word) == text


@pytest.mark.parametrize(
    "word",
    ["content.lora=null", "content.lora=[a.st,b.st]", "content.lora='a b.st'", "seed=3", "method=direct,ties", "-m",
     "+x.y=[1", "output=merged_${method.name}.st", "content.lora="],
)  # fmt: skip
def test_other_words_are_kept(word: str) -> None:
    assert as_typed([word]) == [word]


@pytest.mark.parametrize("key", ["dataset.subjects", "dataset.styles", "prompts.contexts"])
def test_lists_of_text_are_what_was_typed(key: str) -> None:
    texts = ["café", "dog's", "tea pot (1)", "a=b", "a#b", "日本"]
    [word] = as_typed([f"{key}=[{','.join(texts)}]"])
    assert value(word) == texts
    assert as_typed([f"{key}=[a,b]", f"{key}=all"]) == [f"{key}=[a,b]", f"{key}=all"]


def test_commas_are_sweep_with_switch_only() -> None:
    assert as_typed(["prompt=a,b", "-m"]) == ["prompt=a,b", "-m"]
    assert as_typed(["prompt=a,b"]) == ["prompt='a,b'"]


@pytest.mark.parametrize("text", ["", "'", "\\", "\\'", "a\\\\'b\\"])
def test_quoted_text_is_read_as_itself(text: str) -> None:
    assert value(f"a={quote(text)}") == text


def test_files_with_every_name_are_merged(
    commands: Commands, loras: tuple[Adapter, Adapter], folder: Path, tmp_path: Path
) -> None:
    """Use a folder named 500, a name with brackets, and a Japanese name."""
    (tmp_path / "500").mkdir()
    loras[0].save(tmp_path / "500" / "pytorch_lora_weights.safetensors")
    loras[1].save(tmp_path / "My LoRA (1).safetensors")
    result = commands.run(
        "task=merge", "content=500", "style=My LoRA (1).safetensors", "method=direct", "model=micro",
        f"model.path={folder}", "output=日本語, 2.safetensors", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert Adapter.load(tmp_path / "日本語, 2.safetensors").rank == 5


def test_word_that_hydra_cannot_parse_is_one_line(commands: Commands) -> None:
    result = commands.run("method.rank=[1")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert (
        "method.rank=[1 must be key=value" in result.stderr
        and "\"method.rank='[1'\"" in result.stderr
        and "mismatched" not in result.stderr
    )
