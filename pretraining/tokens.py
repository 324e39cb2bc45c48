"""The micro model's CLIP tokenizer: one token for each word of the world, single letters for other words."""

from __future__ import annotations

import string
from collections import Counter
from itertools import pairwise

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from lorabench.data import microworld as mw

MAX_LENGTH = 32
# Identifiers for personalization: single tokens that occur in no caption of the world ("sks" is rare for SDXL).
IDENTIFIERS = ("sks", "szn", "tok", "sbu")


def build_tokenizer() -> CLIPTokenizer:
    """Return a byte-pair tokenizer whose merges are exactly those for words of the world and identifiers."""
    letters = list(string.ascii_lowercase + string.digits + ",.-'")
    vocab = letters + [letter + "</w>" for letter in letters]
    words = [[*word[:-1], word[-1] + "</w>"] for word in [*mw.vocabulary(), *IDENTIFIERS]]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for word in words for pair in pairwise(word)):
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        vocab.append("".join(best))
        words = [_merge(word, best) for word in words]
    ids = {token: i for i, token in enumerate(dict.fromkeys(vocab))}
    for special in ("<|startoftext|>", "<|endoftext|>"):
        ids[special] = len(ids)
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=MAX_LENGTH)  # pyright: ignore[reportArgumentType]


def tokenize(captions: list[str]) -> Tensor:
    """Return token ids, int16 [n, 32]."""
    known: dict[str, list[int]] = {}
    tokenizer = build_tokenizer()
    for text in captions:
        if text not in known:
            known[text] = tokenizer(text, padding="max_length", max_length=MAX_LENGTH, truncation=True).input_ids
    return torch.tensor([known[text] for text in captions], dtype=torch.int16)


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    """Join every occurrence of a pair, from left to right."""
    out: list[str] = []
    for symbol in word:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return out
