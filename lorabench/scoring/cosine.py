"""Cosine scores of embeddings.

Embeddings are rows of a matrix [n, d]; a score matrix is [images, references]. The mean of a score matrix is the
"average pairwise cosine similarity" of DreamBooth (arXiv 2208.12242, sec. 4.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def normalize(x: torch.Tensor, eps: float = 1e-12) -> torch.Tensor:
    """Scale the rows of x [n, d] to unit length, in float32; all-zero rows stay zero instead of becoming NaN."""
    x = x.float()
    return x / x.norm(dim=-1, keepdim=True).clamp_min(eps)


def cosine_matrix(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Compute the cosine of each row of a [n, d] with each row of b [m, d] -> [n, m] in [-1, 1]."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"need two matrices of equal width, got {tuple(a.shape)} and {tuple(b.shape)}")
    return (normalize(a) @ normalize(b).T).clamp(-1.0, 1.0)


def nearest(queries: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
    """Return the index [n] of the gallery row [m, d] with the largest cosine to each query [n, d]."""
    return cosine_matrix(queries, gallery).argmax(dim=1)


def leave_group_out_r1(embeddings: torch.Tensor, labels: torch.Tensor, groups: torch.Tensor) -> float:
    """Compute recall at 1 within one set; a query must not match rows of its own group.

    For subjects, the group is the style of a row: the match must have another style, so style cannot help.

    Args:
        embeddings: Rows [n, d].
        labels: Label of each row [n].
        groups: Group of each row [n].

    Returns:
        Share of correct matches among the rows that have a row of their label outside their group.

    Raises:
        ValueError: If there are no such rows.
    """
    similarity = cosine_matrix(embeddings, embeddings)
    same_group = groups[:, None] == groups[None, :]
    possible = ((labels[:, None] == labels[None, :]) & ~same_group).any(dim=1)
    if not bool(possible.any()):
        raise ValueError("no row has a match of its label outside its group")
    best = similarity.masked_fill(same_group, -2.0).argmax(dim=1)
    return float((labels[best] == labels)[possible].float().mean())
