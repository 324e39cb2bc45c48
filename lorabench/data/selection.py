"""Which subjects are paired with which styles: all, matched, a seeded sample, or the pairs of a publication.

Only names are read here. Matched pairs use each subject and each style once, so that the pairs are independent
observations. Matched pairs and samples depend only on the names and the seed, not on their order, and a larger count
contains the pairs of a smaller one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product, zip_longest
from typing import Any
from unicodedata import normalize

from lorabench.base import UserError, seed_of
from lorabench.config.choices import choose
from lorabench.config.dataset_schemas import PhotoSpec
from lorabench.data.packaged import packaged
from lorabench.data.pairs import JOIN

Names = tuple[str, ...]  # subjects or styles in one image


def select(spec: PhotoSpec, subjects: dict[str, bool], styles: Sequence[str]) -> list[tuple[Names, Names]]:
    """Return the names (subjects, styles) of every pair; except for matched pairs, sorted by subject.

    Args:
        spec: Settings of the dataset.
        subjects: Whether each subject of the dataset is a live one, by name.
        styles: Names of all styles.

    Raises:
        UserError: If a pair list needs a name that is missing, or more names than there are.
    """
    lists = packaged("pair_lists")
    choose("dataset.pairs", spec.pairs, ("all", "matched", "random", *lists))
    kinds = {kind: [name for name, live in subjects.items() if live == (kind == "live")] for kind in ("live", "object")}
    contents = groups("subjects", spec.contents or spec.subjects, {"all": subjects, **kinds}, spec.contents is not None)
    looks = groups("styles", spec.styles, {"all": styles})
    if spec.pairs == "all":
        return list(product(contents, looks))
    if spec.pairs == "matched":
        return matched(contents, looks, spec.count, spec.pairs_seed)
    if spec.pairs == "random":
        return sample(contents, looks, spec.count, spec.pairs_seed)
    every = [(name,) for name in subjects], [(name,) for name in styles]
    chosen = lists[spec.pairs]
    if "random" in chosen:
        return sample(*every, chosen["random"], spec.pairs_seed)
    if isinstance(chosen["subjects"], int):
        return list(
            product(
                draw("subjects", every[0], chosen["subjects"], spec.pairs_seed),
                draw("styles", every[1], chosen["styles"], spec.pairs_seed),
            )
        )
    if lacking := [name for name in chosen["subjects"] if name not in subjects]:
        raise UserError(
            f"dataset.pairs={spec.pairs} needs the subject {lacking[0]}, which is not here; put it there, or use "
            "dataset.pairs=all and name subjects and styles"
        )
    named = [published(spec.pairs, style, image, styles) for style, image in chosen["styles"].items()]
    return [((subject,), (style,)) for subject in chosen["subjects"] for style in named]


def groups(key: str, names: Any, sets: Mapping[str, Iterable[str]], together: bool = False) -> list[Names]:
    """Return the groups for a list of names or for the name of a set.

    Args:
        key: "subjects" or "styles".
        names: Names, groups "a+b", or the name of a set.
        sets: Members of each set.
        together: Return all names as one group.
    """
    if isinstance(names, str):
        if names in sets:
            if not (members := list(sets[names])):
                raise UserError(f"dataset.{key}={names} is a set without members here; use names of {key}")
            return [(name,) for name in members]
        names = [names]
    names = [normalize("NFC", name) for name in names]  # as names of files are normalized
    return [tuple(names)] if together else [tuple(name.split(JOIN)) for name in names]


def matched(
    contents: list[Names], styles: list[Names], count: int, seed: int, kind: Callable[[Names], str] | None = None
) -> list[tuple[Names, Names]]:
    """Return the first `count` pairs of two seeded orders: the k-th group of subjects meets the k-th of styles.

    Args:
        contents: Groups of subjects.
        styles: Groups of styles.
        count: Number of pairs.
        seed: Seed of the orders.
        kind: Returns the class or family of a group; an order takes one group of each kind per round. None: all groups
            are of one kind.

    Raises:
        UserError: If there are too few groups.
    """
    if count > (most := min(len(contents), len(styles))):
        raise UserError(
            f"dataset.count={count} must be at most {most}, because matched pairs use each name once; "
            f"use dataset.count={most}, or dataset.subjects=all dataset.styles=all"
        )
    ordered = (in_turn(names, seed, kind) for names in (contents, styles))
    return list(zip(*ordered, strict=False))[:count]


def in_turn(names: Sequence[Names], seed: int, kind: Callable[[Names], str] | None) -> list[Names]:
    """Order groups at random, one of each kind per round."""
    kinds: dict[str, list[Names]] = {}
    for group in sorted(names, key=lambda group: seed_of("matched", *group, seed)):
        kinds.setdefault(kind(group) if kind else "", []).append(group)
    rounds = zip_longest(*kinds.values())
    return [
        group
        for number, each in enumerate(rounds)
        for group in sorted((g for g in each if g), key=lambda group: seed_of("round", number, *group, seed))
    ]


def sample(contents: list[Names], styles: list[Names], count: int, seed: int) -> list[tuple[Names, Names]]:
    """Return a sample of `count` pairs."""
    pairs = list(product(contents, styles))
    if count > len(pairs):
        raise UserError(
            f"{count} pairs cannot be sampled from {len(contents)} subjects and {len(styles)} styles; name more "
            f"in dataset.subjects and dataset.styles, or use dataset.pairs=random dataset.count={len(pairs)}"
        )
    ranked = sorted(pairs, key=lambda pair: seed_of("pair", JOIN.join(pair[0]), JOIN.join(pair[1]), seed))
    return [pair for pair in pairs if pair in set(ranked[:count])]


def draw(kind: str, names: list[Names], count: int, seed: int) -> list[Names]:
    """Return a sample of `count` subjects or styles."""
    if count > len(names):
        raise UserError(
            f"{count} {kind} cannot be sampled from the {len(names)} that are here; add more, or use "
            "dataset.pairs=all and name them"
        )
    ranked = sorted(names, key=lambda name: seed_of("draw", kind, *name, seed))
    return [name for name in names if name in set(ranked[:count])]


def published(pairs: str, style: str, image: str, known: Sequence[str]) -> str:
    """Return the local name of a publication's style: the same name, or the name of its image.

    Args:
        pairs: Name of the list of pairs, for the message.
        style: Name of the style in the publication.
        image: Name of its image.
        known: Names of the local styles.
    """
    for name in (style, image):
        if name in known:
            return name
    raise UserError(
        f"dataset.pairs={pairs} needs the style {style} ({image}), which is not here; put its image, named {style}, "
        "among the style images, or use dataset.pairs=all and name subjects and styles"
    )
