"""The user's own LoRA files as the stages see them: concepts with images and prompts, and a pair of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from lorabench.base import UserError
from lorabench.data.pairs import JOIN, Concept, Pair, Reference, Role, Scene
from lorabench.merging.method import Method

if TYPE_CHECKING:
    from lorabench.lora.adapter import LoRA


@dataclass(frozen=True)
class OwnLoRA:
    """A LoRA file.

    prompt: that it was trained with ("a sks dog"), for methods that learn.
    images: that it was trained on, or the folder of them; none: they are drawn with it.
    """

    path: Path | str
    prompt: str | None = None
    images: Path | str | Sequence[Path | str] = ()

    def read(self) -> LoRA:
        """The file in whatever format; UserError where it is none that can be merged."""
        from lorabench.lora.adapter import LoRA

        return LoRA.load(self.path)

    def references(self) -> tuple[Reference, ...]:
        """The given images; UserError where there is no such folder or image."""
        from lorabench.data.images import image_paths, reference

        given = self.images
        if isinstance(given, Path | str):
            if not Path(given).is_dir():
                raise UserError(f"{given} is no folder; give that of the images that {self.path} was trained on")
            given = image_paths(Path(given))
        if missing := [path for path in given if not Path(path).is_file()]:
            raise UserError(f"{missing[0]} is missing; give the images that {self.path} was trained on, or none")
        return tuple(reference(Path(path), "", self.prompt or "") for path in given)

    def blank(self) -> Reference:
        """A picture of nothing under the LoRA's prompt, for a merge that looks at no image."""
        return Reference("", self.prompt or "", "", partial(Image.new, "RGB", (64, 64)))


@dataclass(frozen=True)
class OwnPair:
    """Content LoRAs and style LoRAs of the user's; prompt: with the identifiers of all, "a sks dog in szn style"."""

    contents: tuple[OwnLoRA, ...]
    styles: tuple[OwnLoRA, ...]
    prompt: str | None = None

    @property
    def files(self) -> tuple[OwnLoRA, ...]:
        """Contents, then styles: the order of the adapters."""
        return self.contents + self.styles

    @property
    def roles(self) -> tuple[Role, ...]:
        return ("content",) * len(self.contents) + ("style",) * len(self.styles)

    def check(self, method: Method) -> None:
        """UserError unless the method has what it needs: what it learns with, and one merge of all."""
        if not self.contents or not self.styles:
            raise UserError(
                "a merge needs a content LoRA and a style LoRA; type content=a.safetensors style=b.safetensors"
            )
        if getattr(method.merge, "concepts", "joint") == "uniform" and len(self.files) > 2:
            raise UserError("method.concepts=uniform needs a prompt for each couple; type method.concepts=joint")
        if not method.merge.needs_model:
            return
        for role, owns in (("content", self.contents), ("style", self.styles)):
            if lacking := [own for own in owns if not own.prompt]:
                example = "a sks dog" if role == "content" else "a cat in szn style"
                raise UserError(
                    f"{method.name} learns from the prompt that {lacking[0].path} was trained with; "
                    f"type {role}.prompt='{example}'"
                )
        if not self.prompt:
            raise UserError(f"{method.name} learns from the prompt of both; type prompt='a sks dog in szn style'")

    def pair(self, images: Sequence[tuple[Reference, ...]] = ()) -> Pair:
        """The pair with these training images of each file; without, for a merge that looks at no image."""
        shown = images or [()] * len(self.files)
        concepts = [
            Concept(Path(own.path).stem, role, "", each, ())
            for own, role, each in zip(self.files, self.roles, shown, strict=True)
        ]
        split = len(self.contents)
        prompt = self.prompt or JOIN.join(concept.name for concept in concepts)
        return Pair(tuple(concepts[:split]), tuple(concepts[split:]), Scene(prompt, prompt))
