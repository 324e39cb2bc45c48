"""Cosine scores as pure functions of embeddings: no model, no image, no state.

Embeddings are rows of a matrix [n, d]; a score matrix is [images, references].
The mean over a whole matrix is the "average pairwise cosine similarity" of DreamBooth (arXiv 2208.12242, sec. 4.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def normalise(x: torch.Tensor, eps: float = 1e-12) -> torch.Tensor:
    """Rows of x [n, d] scaled to unit length, in float32; an all-zero row stays zero instead of turning into NaN."""
    x = x.float()
    return x / x.norm(dim=-1, keepdim=True).clamp_min(eps)


def cosine_matrix(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Cosine of every row of a [n, d] with every row of b [m, d] -> [n, m] in [-1, 1]."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"need two matrices of equal width, got {tuple(a.shape)} and {tuple(b.shape)}")
    return (normalise(a) @ normalise(b).T).clamp(-1.0, 1.0)


def nearest(queries: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
    """Index [n] of the gallery row [m, d] that has the largest cosine with each query [n, d]."""
    return cosine_matrix(queries, gallery).argmax(dim=1)


def leave_group_out_r1(embeddings: torch.Tensor, labels: torch.Tensor, groups: torch.Tensor) -> float:
    """Retrieval at 1 within one set [n, d], where a query may not match rows of its own `group`.

    For subjects, group = style of the row: the match has to come from another style, so style cannot help.
    Rows that have no row of their label outside their group are skipped; ValueError when all are.
    """
    similarity = cosine_matrix(embeddings, embeddings)
    same_group = groups[:, None] == groups[None, :]
    possible = ((labels[:, None] == labels[None, :]) & ~same_group).any(dim=1)
    if not bool(possible.any()):
        raise ValueError("no row has a match of its label outside its group")
    best = similarity.masked_fill(same_group, -2.0).argmax(dim=1)
    return float((labels[best] == labels)[possible].float().mean())
