"""Answers of a judge as artifacts, and the tables that are read from them.

An artifact holds the raw answers to one question about one item: two images in both orders, or one image. Its key has
the hashes of the images and references, the judge's identity and the hash of the questions. Raw answers are kept, so
another rule of reading them asks nothing again. While an item is not complete, each answer is kept by itself, so a
killed run pays for none twice.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from statistics import fmean

import pandas as pd

from lorabench.engine.artifact import Artifact
from lorabench.engine.record import key_of, sha256, write_whole
from lorabench.engine.store import Store
from lorabench.engine.work import BatchWork, Progress
from lorabench.report.verdicts import COLUMNS
from lorabench.scoring.judges.answers import INVALID, TIE, both_orders, ratings
from lorabench.scoring.judges.comparison import Comparison
from lorabench.scoring.judges.questions import Ask, Item, asks, prompt_hash
from lorabench.tasks.contests import Contest

STAGE, VERSION = "judge", 1
FILE = "answers.json"
PAIRWISE = "pairwise"
Value = float | None  # value of one vote; None if invalid


@dataclass(frozen=True)
class AnswerItem(BatchWork):
    """answers.json: the raw answers to one question about one item, in the order of `asks`.

    Args:
        scratch: Folder that keeps answers until all are there.
        batch_size: Items whose questions are asked at the same time.
    """

    judge: Comparison
    asks: tuple[Ask, ...]
    scratch: Path
    batch_size: int = 1

    @classmethod
    def run(cls, works: Sequence[AnswerItem], folders: Sequence[Path], progress: Progress) -> None:
        with ThreadPoolExecutor(works[0].judge.parallel) as pool:
            asked = [[pool.submit(work.answer, number) for number in range(len(work.asks))] for work in works]
            every = [future for futures in asked for future in futures]
            try:
                for done, future in enumerate(as_completed(every), 1):
                    future.result()
                    progress(done)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        for futures, folder in zip(asked, folders, strict=True):
            (folder / FILE).write_text(json.dumps([future.result() for future in futures], indent=1))

    def answer(self, number: int) -> str:
        """Return the answer to one question, from the scratch folder if it is there."""
        kept = self.scratch / f"{number}.txt"
        if not kept.is_file():
            text = self.judge.answer(self.asks[number])
            write_whole(kept, lambda draft: draft.write_text(text, encoding="utf-8"))
        return kept.read_text(encoding="utf-8")


@dataclass(frozen=True)
class Judging:
    """A judge at work on comparisons."""

    store: Store
    judge: Comparison
    protocol: str
    votes: int = 1

    @cached_property
    def prompt_hash(self) -> str:
        """Return the hash of the protocol's texts."""
        return prompt_hash(self.protocol)

    def artifacts(self, contests: Sequence[Contest]) -> list[Artifact]:
        """Return all questions about comparisons as artifacts, each once."""
        asked = [(item, name) for each in contests for name in each.questions for item in self.items(each)]
        return list({each.key: each for each in itertools.starmap(self.artifact, asked)}.values())

    def items(self, contest: Contest) -> list[Item]:
        """Return the items of a comparison: both images together, or each by itself."""
        item = contest.item
        if self.protocol == PAIRWISE:
            return [replace(item, images=tuple(sorted(item.images, key=digest)))]
        return [replace(item, images=(image,)) for image in item.images]

    def artifact(self, item: Item, question: str) -> Artifact:
        """Return the answers to a question about an item."""
        every, identity = tuple(asks(self.protocol, item, question, self.votes)), self.judge.identity()
        params = {
            "judge": identity, "protocol": self.protocol, "prompt": self.prompt_hash, "question": question,
            "votes": self.votes, "images": [digest(path) for path in item.images],
            "references": [digest(path) for path in item.references],
            **({"names": list(item.names)} if identity["kind"] == "truth" else {}),
        }  # fmt: skip
        parallel, name = self.judge.parallel, f"{question} of {' in '.join(item.names)}"
        batch_key = key_of("batch", {"judge": identity}) if parallel > 1 else None
        work = AnswerItem(self.judge, every, Path(), parallel)
        found = Artifact(STAGE, name, VERSION, params, work, {}, len(every), len(every), batch_key)
        return replace(found, work=replace(work, scratch=self.store.scratch(found)))

    def raw(self, item: Item, question: str) -> list[str]:
        """Return the stored answers to a question."""
        return json.loads((self.store.path(self.artifact(item, question)) / FILE).read_text())

    def verdicts(self, contests: Sequence[Contest]) -> pd.DataFrame:
        """Return the rows of `lorabench.report.verdicts`, one per comparison and question."""
        decide, rows = self.compared if self.protocol == PAIRWISE else self.rated, []
        for contest in contests:
            for question in contest.questions:
                answer, raw = decide(contest, question)
                rows.append(
                    {
                        **contest.keys, "question": question, "a": contest.a, "b": contest.b, "kind": contest.kind,
                        "expected": contest.expected, "answer": answer, "source": "judge", "rater": self.judge.name,
                        "prompt_hash": self.prompt_hash, "raw": json.dumps(raw),
                    }
                )  # fmt: skip
        return pd.DataFrame(rows, columns=COLUMNS)

    def compared(self, contest: Contest, question: str) -> tuple[str, dict[str, str]]:
        """Return the verdict, and the raw answers with the image of row a first ("ab") and last ("ba")."""
        [item] = self.items(contest)
        raw = self.raw(item, question)
        ab, ba = raw if item.images == contest.item.images else reversed(raw)
        return both_orders(ab, ba), {"ab": ab, "ba": ba}

    def rated(self, contest: Contest, question: str) -> tuple[str, dict[str, list[Value]]]:
        """Return the verdict by the mean ratings of the two images, and the votes."""
        a, b = (ratings(self.protocol, self.raw(item, question)) for item in self.items(contest))
        return higher(a, b), {"a": a, "b": b}

    def ratings(self, contests: Sequence[Contest]) -> pd.DataFrame:
        """Return one row per rated image and question: the keys, label, question, value (NaN if invalid), votes."""
        rows = []
        for contest in contests:
            for label, item in zip((contest.a, contest.b), self.items(contest), strict=True):
                for question in contest.questions:
                    votes = ratings(self.protocol, self.raw(item, question))
                    valid = [vote for vote in votes if vote is not None]
                    value = fmean(valid) if valid else float("nan")
                    about = {**contest.keys, "label": label, "question": question, "value": value}
                    rows.append({**about, "votes": len(votes), "invalid": len(votes) - len(valid)})
        return pd.DataFrame(rows).drop_duplicates(ignore_index=True)


def higher(a: Sequence[Value], b: Sequence[Value]) -> str:
    """Return the verdict that follows from the votes on two images."""
    means = [[vote for vote in votes if vote is not None] for votes in (a, b)]
    if not all(means):
        return INVALID
    one, two = map(fmean, means)
    return TIE if one == two else "a" if one > two else "b"


@cache
def digest(path: Path) -> str:
    """Return the hash of an image file, which does not change while a command runs."""
    return sha256(path)
