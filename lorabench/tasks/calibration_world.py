"""The renderings that task=calibration compares, with their true distances, and the values of a metric on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorabench.data.concepts import Concept

TEXT = "text"


@dataclass(frozen=True)
class World:
    """The renderings of all subjects in all styles, with their true distances.

    Args:
        subjects: The subjects.
        styles: The styles.
        content: True distances of subjects, [subjects, subjects].
        style: True distances of styles, [styles, styles].
        classes: Code of each subject's class, [subjects].
        families: Code of each style's family, [styles].
    """

    subjects: tuple[Concept, ...]
    styles: tuple[Concept, ...]
    content: np.ndarray
    style: np.ndarray
    classes: np.ndarray
    families: np.ndarray

    @classmethod
    def of(cls, subjects: Sequence[Concept], styles: Sequence[Concept]) -> World:
        """Return the world of these subjects and styles."""
        from lorabench.data import microworld as mw

        return cls(
            subjects=tuple(subjects),
            styles=tuple(styles),
            content=np.array([[mw.content_distance(a.factors, b.factors) for b in subjects] for a in subjects]),
            style=np.array([[mw.style_distance(a.factors, b.factors) for b in styles] for a in styles]),
            classes=np.unique([subject.factors.cls for subject in subjects], return_inverse=True)[1],
            families=np.unique([style.factors.family for style in styles], return_inverse=True)[1],
        )

    @property
    def text(self) -> np.ndarray:
        """Return the true distance of each sentence to each rendering, [classes x families, subjects, styles]."""
        classes, families = (np.unique(codes)[:, None] != codes for codes in (self.classes, self.families))
        return (classes[:, None, :, None] / 2 + families[None, :, None, :] / 2).reshape(-1, *self.grid)

    @property
    def grid(self) -> tuple[int, int]:
        """Return the numbers of subjects and styles."""
        return len(self.subjects), len(self.styles)

    def anchors(self, measures: str) -> np.ndarray:
        """Return the index of each pair's anchor, [subjects, styles], for a metric that measures this."""
        subjects, styles = np.indices(self.grid)
        sentences = self.classes[:, None] * (self.families.max() + 1) + self.families
        return {"content": subjects, "style": styles, TEXT: sentences}[measures]


@dataclass(frozen=True)
class Metric:
    """The values of a metric on the world.

    Args:
        name: Name of the metric.
        backbone: Name of its backbone.
        measures: "content", "style" or "text".
        renderings: Value of each anchor for each rendering, [anchors, subjects, styles]. Anchors are the subjects, the
            styles, or the sentences, classes first ([classes x families]).
        photographs: Value of each anchor for photographs of each subject, [anchors, subjects, photographs]; None for
            sentences.
    """

    name: str
    backbone: str
    measures: str
    renderings: np.ndarray
    photographs: np.ndarray | None = None
