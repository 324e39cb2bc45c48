"""Checks of all prompts against the text encoders, before anything is trained.

An encoder reads a fixed number of tokens. The words of the style come last, so a prompt that is too long would silently
lose its style. Scenes of a packaged or public list that are too long are left out and printed; any other prompt that is
too long is an error.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace

from lorabench.base import UserError
from lorabench.data.concepts import ROLES
from lorabench.data.pairs import Pair
from lorabench.data.prompt_length import TextReader, check_prompts, clip_reader, cut, model_readers
from lorabench.data.scenes import Prompts, Scene
from lorabench.data.uses import pair_for
from lorabench.models.files import ModelFiles
from lorabench.scoring.files import ScorerSet, read_config


def readers_of(model: ModelFiles, name: str) -> list[TextReader]:
    """Return the text encoders of a model and the limit of each. `name` is the model's name in messages."""
    return model_readers(model.config, f"model={name}")


def scorer_readers(scorers: ScorerSet) -> list[TextReader]:
    """Return the text encoders of CLIP-T."""
    known = [(files, read_config(files.config)) for files in scorers.scorers]
    clips = [(files, config) for files, config in known if config["kind"] == "clip"]
    return [clip_reader(config["name"], config["architecture"], files.config.parent) for files, config in clips]


def fitting(
    pairs: Sequence[Pair], prompts: Prompts, model: Sequence[TextReader], scorers: Sequence[TextReader]
) -> tuple[list[Pair], dict[str, str]]:
    """Return the pairs without listed scenes that are too long, and these scenes with the reason; print them.

    Args:
        pairs: Pairs with all scenes.
        prompts: Settings of prompts; `contexts` is the name of a list, or the user's scenes.
        model: Text encoders that read prompts and captions.
        scorers: Text encoders of CLIP-T, which read prompts and descriptions of scenes.

    Raises:
        UserError: If another prompt or caption is too long.
    """
    own = {scene for pair in pairs if any(content.contexts for content in pair.contents) for scene in pair.scenes}
    listed = isinstance(prompts.contexts, str)
    lost: dict[str, str] = {}
    for pair in pairs if listed else ():
        for scene in pair.scenes:
            if scene not in own and (problem := problem_of(scene, model, scorers)):
                lost.setdefault(scene.context, problem)
    left = [replace(pair, scenes=tuple(each for each in pair.scenes if each.context not in lost)) for pair in pairs]
    if any(pair.scenes and not rest.scenes for pair, rest in zip(pairs, left, strict=True)):
        raise UserError(f"no scene of prompts.contexts={prompts.contexts} can be read: {next(iter(lost.values()))}")
    if lost:
        print(f"{len(lost)} scenes are left out: {'; '.join(lost.values())}", file=sys.stderr)
    for pair in left:
        check_prompts(captions(pair), model)
        for scene in pair.drawn:
            if problem := problem_of(scene, model, scorers):
                raise UserError(problem)
    return left, lost


def problem_of(scene: Scene, model: Sequence[TextReader], scorers: Sequence[TextReader]) -> str | None:
    """Return a message if a scene is too long for the model or the scorers, else None."""
    return cut(scene.prompt, [*model, *scorers]) or cut(scene.text, scorers)


def captions(pair: Pair) -> Iterable[str]:
    """Yield all prompts of a pair: its captions in training, its prompt, and those of either concept by itself."""
    yield pair.prompt
    for use in ROLES:
        yield from (scene.prompt for scene in pair_for(pair, use).drawn)
    for concept in pair.concepts:
        yield from (image.prompt for image in (*concept.images, *concept.styled))


def check_style_kept(prompt: str, style_words: Iterable[str], readers: Iterable[TextReader]) -> None:
    """Check a prompt of the user: warn if it is cut.

    Args:
        prompt: The prompt.
        style_words: Words of the style, which must not be cut.
        readers: Text encoders of the model.

    Raises:
        UserError: If a word of the style is cut, or a character cannot be encoded.
    """
    for reader in readers:
        if problem := cut(prompt, [reader]):
            lost = whole_words(prompt, reader.lost(prompt)).lower().split()
            if not lost or {*lost} & {*map(str.lower, style_words)}:
                raise UserError(problem)
            print(f"warning: {problem}", file=sys.stderr)
            return


def whole_words(prompt: str, end: str) -> str:
    """Return the end of a prompt from the start of the word in which it begins.

    >>> whole_words("a dog in szn style", "n style"), whole_words("a dog in szn style", "style")
    ('szn style', 'style')
    """
    before = prompt.rstrip().removesuffix(end)
    begun = before.split()[-1] if before and not before[-1].isspace() else ""
    return begun + end if end else ""
