"""Division of a concept's images into images to train on and references to compare with.

Most papers train on all images of a subject and compare with the same images. Then a model that copies its training
images scores best. So some images can be held out. Near-duplicates (a flipped or shifted copy, or the same source) stay
on the same side: otherwise the references would contain a copy of a training image.
"""

from collections.abc import Sequence

from lorabench.base import UserError, seed_of
from lorabench.data.concepts import Reference, distinct

References = tuple[Reference, ...]


def split(
    name: str, images: Sequence[tuple[str, Reference]], held_out: int, near: Sequence[Sequence[str]] = ()
) -> tuple[References, References]:
    """Return (images to train on, references). With held_out=0, both are all images.

    The choice depends only on the names.

    Args:
        name: Name of the concept.
        images: (name, image) of each image.
        held_out: Number of images that are references only.
        near: Names of images that are near-duplicates. Files with equal bytes are recognized without it.

    Raises:
        UserError: If no groups of near-duplicates have exactly `held_out` images together.
    """
    everything = tuple(image for _, image in images)
    if not held_out:
        return everything, distinct(everything)
    groups = clusters(images, near)
    ranked = sorted(groups, key=lambda group: seed_of("held out", name, *group))
    ways: dict[int, frozenset[str]] = {0: frozenset()}  # number of images -> first choice with that number
    for group in ranked:
        for count, chosen in list(ways.items()):
            ways.setdefault(count + len(group), chosen | set(group))
    if held_out not in ways or held_out >= len(images):
        sizes = "+".join(str(size) for size in sorted(map(len, groups)))
        possible = [str(count) for count in sorted(ways) if 0 < count < len(images)] or ["same"]
        raise UserError(
            f"dataset.references={held_out} does not go with the images of {name} (near-duplicates together: {sizes}), "
            f"of which some must be left to train on; use dataset.references=<{'|'.join(possible)}>"
        )
    kept = ways[held_out]
    return (
        tuple(image for stem, image in images if stem not in kept),
        distinct(image for stem, image in images if stem in kept),
    )


def clusters(images: Sequence[tuple[str, Reference]], near: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the names of the images in groups of near-duplicates."""
    group = {stem: {stem} for stem, _ in images}
    same_bytes: dict[str, list[str]] = {}
    for stem, image in images:
        same_bytes.setdefault(image.sha256, []).append(stem)
    for together in [*near, *same_bytes.values()]:
        present = [stem for stem in together if stem in group]
        joined = set().union(*(group[stem] for stem in present))
        for stem in joined:
            group[stem] = joined
    return sorted({tuple(sorted(stems)): sorted(stems) for stems in group.values()}.values())
