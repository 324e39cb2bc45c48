"""Learned token embeddings on a pipeline's text encoders and tokenizers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from lorabench.base import UserError

TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}


@contextmanager
def learned_tokens(pipeline: Any, tokens: Mapping[str, Mapping[str, Tensor]]) -> Iterator[None]:
    """Replace triggers in prompts by learned embeddings within the block.

    Tokenizers and embedding layers are exchanged for the block; nothing is changed in place. Embeddings that require
    gradients get them when prompts are encoded with gradients.

    Args:
        pipeline: A diffusers pipeline with two text encoders.
        tokens: Vectors [n, width] by trigger and text encoder.

    Raises:
        UserError: If an embedding has another width than its text encoder.
    """
    with ExitStack() as stack:
        for encoder, tokenizer in TOKENIZERS.items():
            mine = {trigger: by_encoder[encoder] for trigger, by_encoder in tokens.items() if encoder in by_encoder}
            if mine:
                stack.enter_context(_extended(pipeline, encoder, tokenizer, mine))
        yield


@contextmanager
def _extended(pipeline: Any, encoder: str, tokenizer: str, tokens: Mapping[str, Tensor]) -> Iterator[None]:
    model, words = getattr(pipeline, encoder), getattr(pipeline, tokenizer)
    layer = model.get_input_embeddings()
    check_widths(encoder, layer.embedding_dim, tokens)
    names = {trigger: [f"<|{encoder}:{i}:{k}|>" for k in range(len(each))] for i, (trigger, each) in
             enumerate(tokens.items())}  # fmt: skip
    longer = deepcopy(words)
    longer.add_tokens([name for several in names.values() for name in several])
    setattr(pipeline, tokenizer, _Tokenizer(longer, names))
    model.set_input_embeddings(_Embedding(layer, list(tokens.values())))
    try:
        yield
    finally:
        setattr(pipeline, tokenizer, words)
        model.set_input_embeddings(layer)


def check_widths(encoder: str, width: int, tokens: Mapping[str, Tensor]) -> None:
    """Check that embeddings have the width of their text encoder.

    Raises:
        UserError: If one has not.
    """
    for trigger, vectors in tokens.items():
        if vectors.shape[-1] != width:
            raise UserError(
                f"the embedding of {trigger!r} has {vectors.shape[-1]} numbers and {encoder} {width}; "
                "give one trained for this model"
            )


def word_embeddings(pipeline: Any, text: str) -> dict[str, Tensor]:
    """Return the input embeddings of a text's tokens by text encoder, [tokens, width] in fp32."""
    found = {}
    for encoder, tokenizer in TOKENIZERS.items():
        layer = getattr(pipeline, encoder).get_input_embeddings()
        ids = getattr(pipeline, tokenizer)(text, add_special_tokens=False, return_tensors="pt").input_ids[0]
        found[encoder] = layer(ids.to(layer.weight.device)).detach().float()
    return found


class _Embedding(nn.Module):
    """An embedding layer whose ids after its own stand for learned vectors."""

    def __init__(self, layer: nn.Embedding, vectors: Sequence[Tensor]):
        super().__init__()
        self.layer, self.vectors = layer, vectors

    @property
    def weight(self) -> Tensor:
        return self.layer.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors of token ids, [..., width]."""
        count = self.layer.num_embeddings
        known = self.layer(ids.clamp(max=count - 1))
        learned = torch.cat([each.to(known) for each in self.vectors])
        return torch.where((ids >= count)[..., None], learned[(ids - count).clamp(min=0)], known)


class _Tokenizer:
    """A tokenizer that replaces each trigger by its learned tokens, the longest trigger first."""

    def __init__(self, tokenizer: Any, names: Mapping[str, list[str]]):
        self.tokenizer, self.names = tokenizer, names
        longest_first = sorted(names, key=len, reverse=True)
        self.pattern = re.compile("|".join(rf"(?<!\w){re.escape(each)}(?!\w)" for each in longest_first))

    def __call__(self, text: Any, *args: Any, **options: Any) -> Any:
        texts = [self._replaced(each) for each in text] if isinstance(text, list) else self._replaced(text)
        return self.tokenizer(texts, *args, **options)

    def _replaced(self, text: str) -> str:
        return self.pattern.sub(lambda match: " ".join(self.names[match[0]]), text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)
