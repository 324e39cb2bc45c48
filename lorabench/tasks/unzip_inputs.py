"""The images and words of task=unzip, and the errors in them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import Any

from lorabench.base import UserError
from lorabench.config.schemas import ScorerSpec
from lorabench.data.concepts import Reference
from lorabench.data.images import image_paths
from lorabench.scoring.description import read_config
from lorabench.scoring.files import scorer_set
from lorabench.tasks.jobs import load_scorer
from lorabench.tasks.unzip_words import Words, shown, suggestions


def image_sets(given: Any) -> list[tuple[str, list[Path]]]:
    """Return the training sets of `image`, each with a name: one per file of a folder or pattern, one per list.

    Raises:
        UserError: If there is no image, or two files of a folder would have the same output folder.
    """
    if given is None:
        raise UserError("task=unzip needs an image; use image=cat.png")
    if not isinstance(given, str):
        paths = [Path(str(each)).expanduser() for each in given]
        for path in paths:
            check_file(path)
        return [(paths[0].stem, paths)]
    path = Path(given).expanduser()
    if path.is_dir():
        found = image_paths(path)
    elif path.is_file():
        found = [path]
    else:
        found = sorted(Path(each) for each in glob(str(path)) if Path(each).is_file())
    if not found:
        check_file(path)
    names = [each.stem for each in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"image={given} has two images named {twice}, which need an output folder each; rename one")
    return [(name, [each]) for name, each in zip(names, found, strict=True)]


def check_file(path: Path) -> None:
    """Raise UserError if a path is not a file."""
    if not path.is_file():
        raise UserError(f"image={path} is not a file; use image=cat.png, a folder of images, or 'pictures/*.png'")


def check_sizes(images: Sequence[Reference]) -> None:
    """Check that the images of a set can be read and have one size.

    Raises:
        UserError: If they are not.
    """
    sizes = [each.load().size for each in images]
    if other := next((index for index, size in enumerate(sizes) if size != sizes[0]), None):
        raise UserError(
            f"image {other + 1} of the set has {sizes[other][0]} x {sizes[other][1]} pixels and the first "
            f"{sizes[0][0]} x {sizes[0][1]}; crop the images of a set to one size"
        )


def words_for(
    images: Sequence[Reference],
    given: Mapping[str, Any],
    use: str,
    token: str,
    spec: ScorerSpec,
    device: str,
    world: bool,
) -> Words:
    """Return the words of a set of images, as given or as suggested.

    Args:
        images: Images of one subject in one style.
        given: Prompts of the command line by role.
        use: "given" or "suggest", to use suggestions.
        token: Identifier of the content.
        spec: Scorers of the run.
        device: Device of the CLIP scorer.
        world: Choose among the words of the microworld.

    Raises:
        UserError: If words are left out, with the suggestions, unless these are to be used.
    """
    if isinstance(given["content"], list) or isinstance(given["style"], list):
        raise UserError("task=unzip needs one content.prompt and one style.prompt; use content.prompt='a sks cat'")
    missing = [role for role in ("content", "style") if not given[role]]
    if not missing:
        return Words(given["content"], token, given["style"])
    clip = next((each for each in scorer_set(spec).scorers if read_config(each.config)["kind"] == "clip"), None)
    if clip is None:
        raise UserError(f"{missing[0]}.prompt is missing and no CLIP scorer can suggest one; use scorers=real")
    scorer: Any = load_scorer(clip, device)
    found = suggestions(scorer, [each.load() for each in images], world)
    suggested = {"content": f"a {token} {found['content'][0][0]}", "style": found["style"][0][0]}
    if use != "suggest":
        alike = "; ".join(f"{role}: {shown(found[role])}" for role in missing)
        options = " ".join(f"{role}.prompt='{suggested[role]}'" for role in missing)
        raise UserError(
            f"{' and '.join(f'{role}.prompt' for role in missing)} must be given (most similar {alike}); "
            f"use {options}, or words=suggest"
        )
    for role in missing:
        print(f"{role}: {shown(found[role])}", file=sys.stderr)
    chosen = {**suggested, **{role: text for role, text in given.items() if text}}
    return Words(chosen["content"], token, chosen["style"])
