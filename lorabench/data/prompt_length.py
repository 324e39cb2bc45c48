"""The number of tokens of a prompt and the limit of each text encoder. Libraries silently cut longer prompts.

Only tokenizers are read, so that prompts are checked before torch is imported. Both kinds are CLIP's byte-pair
encoding: that of a diffusers folder (`tokenizer.json`, or `vocab.json` and `merges.txt`) and that of open_clip.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabench.base import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL = 2  # tokens at the start and the end
END = "<|endoftext|>"
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
OPEN_CLIP_MERGES = 49152 - 256 - 2  # merges that open_clip reads from its file


@dataclass(frozen=True)
class TextReader:
    """A text encoder's tokenizer and limit.

    Args:
        name: Name in messages, such as "model=micro".
        limit: Maximum number of tokens, with the start and end tokens.
        load: Function that returns the tokenizer, which adds no special tokens.
    """

    name: str
    limit: int
    load: Callable[[], Tokenizer]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer without truncation and padding."""
        found = self.load()
        found.no_truncation()
        found.no_padding()
        return found

    def count(self, text: str) -> int:
        """Return the number of tokens of a text, with the start and end tokens."""
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids) + SPECIAL

    def lost(self, text: str) -> str:
        """Return the end of a text that the encoder does not read; empty if it reads all."""
        if len(text.encode()) + SPECIAL <= self.limit:  # a token has at least one byte
            return ""
        found = self.tokenizer.encode(text, add_special_tokens=False)
        if len(found.ids) + SPECIAL <= self.limit:
            return ""
        start, _ = found.offsets[self.limit - SPECIAL]
        return text[start:].strip()

    def unknown(self, text: str) -> str:
        """Return the first character that is not in the vocabulary and would end the text; "" if none."""
        found = self.tokenizer.encode(text, add_special_tokens=False)
        at = next((span for token, span in zip(found.tokens, found.offsets, strict=True) if token == END), None)
        return text[slice(*at)] if at else ""


def model_readers(folder: Path, name: str) -> list[TextReader]:
    """Return the text encoders of a diffusers folder, one per tokenizer.

    Args:
        folder: The folder with `tokenizer*` and `text_encoder*`.
        name: Name in messages.
    """
    readers = []
    for tokenizer in sorted(folder.glob("tokenizer*")):
        if (tokenizer / "tokenizer.json").is_file() or (tokenizer / "vocab.json").is_file():
            encoder = folder / tokenizer.name.replace("tokenizer", "text_encoder") / "config.json"
            lengths = [read(tokenizer / "tokenizer_config.json").get("model_max_length")]
            lengths.append(read(encoder).get("max_position_embeddings"))
            if known := [int(length) for length in lengths if length]:
                readers.append(TextReader(name, min(known), lambda at=tokenizer: folder_tokenizer(at)))
    return readers


def clip_reader(name: str, architecture: Mapping[str, Any], folder: Path) -> TextReader:
    """Return the text encoder of a CLIP scorer.

    Args:
        name: The scorer's name.
        architecture: The architecture in its description.
        folder: Folder of its own merges file, if it has one.
    """
    config = architecture.get("config") or {}
    limit = config.get("text_cfg", {}).get("context_length", 77)  # 77 for every model that open_clip has by name
    merges = folder / architecture["merges"] if architecture.get("merges") else None
    return TextReader(name, limit, lambda: merges_tokenizer(merges))


def read(file: Path) -> dict[str, Any]:
    """Return the content of a JSON file; empty if there is no file."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


@cache
def folder_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of a diffusers folder."""
    from tokenizers import Tokenizer

    if (folder / "tokenizer.json").is_file():
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split()) for line in lines if not line.startswith("#version") and line.strip()]
    return byte_pair(read(folder / "vocab.json"), merges)


@cache
def merges_tokenizer(file: Path | None) -> Tokenizer:
    """Return the tokenizer for a merges file; None: for open_clip's own merges."""
    from tokenizers.pre_tokenizers import ByteLevel

    if file is None:
        spec = find_spec("open_clip")
        assert spec is not None and spec.origin is not None
        file = Path(spec.origin).with_name("bpe_simple_vocab_16e6.txt.gz")
    lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")[1 : OPEN_CLIP_MERGES + 1]
    merges = [tuple(line.split()) for line in lines if line.strip()]
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges), END]
    return byte_pair({token: number for number, token in enumerate(dict.fromkeys(tokens))}, merges)


def byte_pair(vocabulary: dict[str, int], merges: list[Any]) -> Tokenizer:
    """Return CLIP's tokenizer for a vocabulary and its merges."""
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    model: Any = BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>", unk_token=END)
    tokenizer: Any = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return tokenizer


def check_prompts(prompts: Iterable[str], readers: Iterable[TextReader]) -> None:
    """Check that no prompt is cut.

    Raises:
        UserError: For the first prompt that is too long, with its length and the limit.
    """
    readers = list(readers)
    for prompt in dict.fromkeys(prompts):
        if problem := cut(prompt, readers):
            raise UserError(problem)


def cut(prompt: str, readers: Iterable[TextReader]) -> str | None:
    """Return a message if a text encoder would cut a prompt, with the lost words; else None."""
    for reader in readers:
        if lost := reader.lost(prompt):
            return (
                f"the prompt {prompt!r} has {reader.count(prompt)} tokens, but {reader.name} reads {reader.limit}: "
                f"{lost!r} is lost; shorten it"
            )
        if unknown := reader.unknown(prompt):
            return f"the prompt {prompt!r} has {unknown!r}, which {reader.name} cannot read; leave it out"
    return None
