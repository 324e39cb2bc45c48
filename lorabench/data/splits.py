"""Which images of a concept are trained on and which are kept back to score with.

The field trains on all images of a subject and scores against the same ones. A model that copies its training images
then scores best, so some images can be held out. Images that are nearly the same (a flipped or shifted copy, one
source) go to the same side: otherwise the copy of a training image would be among the references.
"""

from collections.abc import Sequence

from lorabench.base import UserError, seed_of
from lorabench.data.pairs import Reference, distinct

Images = tuple[Reference, ...]


def split(
    name: str, images: Sequence[tuple[str, Reference]], held_out: int, near: Sequence[Sequence[str]] = ()
) -> tuple[Images, Images]:
    """(trained on, references) of a concept's images [(name of the image, image)]; both are all for held_out=0.

    near: names of images that belong together; files of equal bytes do by themselves. Which images are held out
    follows from the names alone. UserError where no groups of near-duplicates make up exactly `held_out` images.
    """
    everything = tuple(image for _, image in images)
    if not held_out:
        return everything, distinct(everything)
    groups = clusters(images, near)
    ranked = sorted(groups, key=lambda group: seed_of("held out", name, *group))
    ways: dict[int, frozenset[str]] = {0: frozenset()}  # number of images -> the first way to have so many
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
    """The images' names in groups that belong together."""
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
