"""Count how often the judge `truth` is right on images whose answer is known; see docs/judging.md.

python -m benchmarks.truth_judge --pairs 36

An image of the true subject in the true style is compared with one that has another subject (for the question
`subject`) or another style (`style`, `both`): any other, or one of the same class or family. It is also compared with
itself in another pose, which should be a tie.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.measure import markdown
from lorabench.base import seed_of
from lorabench.config.judging import TruthJudgeSpec
from lorabench.data import microworld as mw
from lorabench.data.microworld.registry import HELDOUT_STYLES, HELDOUT_SUBJECTS
from lorabench.data.microworld_pairs import render
from lorabench.scoring.judges.answers import both_orders
from lorabench.scoring.judges.build import build
from lorabench.scoring.judges.comparison import Comparison
from lorabench.scoring.judges.questions import Item, asks, questions

AGAINST = ("any other", "same class or family", "itself in another pose")


def count(judge: Comparison, pairs: int, folder: Path) -> dict[tuple[str, str], Counter[str]]:
    """Return the numbers of "right", "tie" and "wrong" by kind of the other image and by question."""
    found = {(against, question): Counter() for against in AGAINST for question in questions("pairwise")}
    for number in range(pairs):
        rng = np.random.default_rng(seed_of("truth judge", number))
        names = str(rng.choice(HELDOUT_SUBJECTS)), str(rng.choice(HELDOUT_STYLES))
        subject, style = mw.subject(names[0]), mw.style(names[1])
        others = {
            "any other": (mw.sample_subject(rng), mw.sample_style(rng)),
            "same class or family": (mw.sample_subject(rng, subject.cls), mw.sample_style(rng, style.family)),
            "itself in another pose": (subject, style),
        }
        best = folder / f"{number}.png"
        render(subject, style, seed_of("truth judge", number, "best")).save(best)
        for (against, question), counts in found.items():
            other_subject, other_style = others[against]
            shown = (other_subject, style) if question == "subject" else (subject, other_style)
            worse = folder / f"{number} {against} {question}.png"
            render(*shown, seed_of("truth judge", number, against)).save(worse)
            item = Item((best, worse), (best, worse), names)
            answer = both_orders(*(judge.answer(ask) for ask in asks("pairwise", item, question)))
            counts[{"a": "right", "b": "wrong"}.get(answer, answer)] += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=36)
    parser.add_argument("--renders", type=int, default=8)
    parser.add_argument("--margin", type=float, default=0.05)
    given = parser.parse_args()
    judge = build(TruthJudgeSpec(kind="truth", renders=given.renders, margin=given.margin), "cpu")
    with TemporaryDirectory() as folder:
        found = count(judge, given.pairs, Path(folder))
    rows = [[*case, *(str(counts[each]) for each in ("right", "tie", "wrong"))] for case, counts in found.items()]
    print(markdown(["against", "question", "right", "tie", "wrong"], rows))


if __name__ == "__main__":
    main()
