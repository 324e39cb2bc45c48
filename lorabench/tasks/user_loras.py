"""The user's LoRA files as concepts with images and prompts, and pairs of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from lorabench.base import UserError
from lorabench.config.schemas import ModelSpec
from lorabench.data.concepts import Concept, Reference, Role
from lorabench.data.pairs import JOIN, Pair
from lorabench.data.scenes import Scene
from lorabench.merging.method import Method

if TYPE_CHECKING:
    from lorabench.lora.adapter import Adapter


PRODUCT_RANK = 64  # rank to which LoHa and LoKr files are compressed


@dataclass(frozen=True)
class UserLoRA:
    """A LoRA file, a file of token embeddings, or both.

    Args:
        path: File of the LoRA, or of the embeddings.
        prompt: Prompt that it was trained with ("a sks dog"), for methods that learn.
        images: Images that it was trained on, or their folder; without, they are generated with it.
        embedding: File of the token embeddings that were trained with the LoRA.
        trigger: Word for the embedding in prompts; None: the word in the file.
        weight: Scale of the LoRA, applied before the method.
        blocks: Weights by block, applied before the method, see lora/files/blocks.py.
        role: Role of the LoRA in a pair, for `blocks` that name a preset.
    """

    path: Path | str
    prompt: str | None = None
    images: Path | str | Sequence[Path | str] = ()
    embedding: Path | str | None = None
    trigger: str | None = None
    weight: float = 1.0
    blocks: Any = None
    role: Role = "content"

    @property
    def file(self) -> Path:
        """Return the path, with a leading ~ replaced by the home folder."""
        return Path(self.path) if Path(self.path).exists() else Path(self.path).expanduser()

    def read(self, spec: ModelSpec | None = None) -> Adapter:
        """Return the adapter; its factors are read from the file when they are needed.

        Args:
            spec: Base model, into whose weights a DoRA is folded if they are on this machine.

        Raises:
            UserError: If the file cannot be merged.
        """
        from lorabench.lora.adapter import Adapter
        from lorabench.lora.files.blocks import block_weights
        from lorabench.lora.files.names import DENOISER
        from lorabench.lora.files.read import FOLDED, PRODUCT
        from lorabench.models.base_weights import base_weights

        adapter = Adapter.open(self.file, spec and base_weights(spec))
        if note := adapter.metadata.get(FOLDED):
            print(f"{self.path}: {note}", file=sys.stderr)
        tokens = dict(adapter.tokens)
        if self.embedding is not None:
            tokens |= Adapter.open(self.embedding).tokens
        if self.trigger is not None:
            if len(tokens) != 1:
                raise UserError(f"trigger={self.trigger} needs one embedding and {self.path} has {len(tokens)}")
            tokens = {self.trigger: next(iter(tokens.values()))}
        if kind := adapter.metadata.get(PRODUCT):
            adapter, error = adapter.compressed(PRODUCT_RANK)
            print(f"{self.path}: {kind} cut to rank {PRODUCT_RANK}, {error}", file=sys.stderr)
        if self.blocks is not None:
            layers = [*(f"{DENOISER}.{layer}" for layer in adapter), *adapter.text]
            weight = block_weights(layers, self.blocks, self.role, f"{self.role}.blocks", str(self.path))
            adapter = adapter.weighted(weight)
        return adapter.times(self.weight).with_tokens(tokens)

    @property
    def style_words(self) -> list[str]:
        """Return the words that name a style: the trigger, and the end of a prompt such as "a cat in szn style"."""
        return [*filter(None, [self.trigger]), *(self.prompt or "").rpartition(" in ")[2].split()]

    def references(self) -> tuple[Reference, ...]:
        """Return the given images.

        Raises:
            UserError: If the folder or an image does not exist.
        """
        from lorabench.data.captions import report_unused
        from lorabench.data.images import image_paths, reference

        given = self.images
        if isinstance(given, Path | str):
            if not Path(given).is_dir():
                raise UserError(f"{given} is not a folder; use the folder of images that {self.path} was trained on")
            given = image_paths(Path(given))
        if missing := [path for path in given if not Path(path).is_file()]:
            raise UserError(f"{missing[0]} is missing; use the images that {self.path} was trained on, or no images")
        report_unused(tuple(map(Path, given)))
        return tuple(reference(Path(path), "", self.prompt or "") for path in given)

    def blank(self) -> Reference:
        """Return a black image with the LoRA's prompt, for a merge that uses no images."""
        return Reference("", self.prompt or "", "", partial(Image.new, "RGB", (64, 64)))


@dataclass(frozen=True)
class UserPair:
    """Content LoRAs and style LoRAs of the user.

    Args:
        contents: Content LoRAs.
        styles: Style LoRAs.
        prompt: Prompt with the identifiers of all: "a sks dog in szn style".
    """

    contents: tuple[UserLoRA, ...]
    styles: tuple[UserLoRA, ...]
    prompt: str | None = None

    @property
    def files(self) -> tuple[UserLoRA, ...]:
        """Return contents, then styles: the order of the adapters."""
        return self.contents + self.styles

    @property
    def roles(self) -> tuple[Role, ...]:
        """Return the role of each file."""
        return ("content",) * len(self.contents) + ("style",) * len(self.styles)

    def weighted(self, weights: Sequence[float] | None) -> UserPair:
        """Return the pair with a scale for each LoRA, contents first.

        Raises:
            UserError: If the number of scales is wrong.
        """
        if weights is None:
            return self
        if len(weights) != len(self.files):
            raise UserError(f"weights={list(weights)} must have {len(self.files)} numbers; use weights=[0.8,0.6]")
        files = [replace(each, weight=float(weight)) for each, weight in zip(self.files, weights, strict=True)]
        count = len(self.contents)
        return UserPair(tuple(files[:count]), tuple(files[count:]), self.prompt)

    def check(self, method: Method) -> None:
        """Check that a method can merge this pair.

        Raises:
            UserError: If a role has no LoRA, or if the method needs a prompt that is missing.
        """
        if not self.contents or not self.styles:
            raise UserError(
                "a merge needs a content LoRA and a style LoRA; use content=a.safetensors style=b.safetensors"
            )
        if getattr(method.merge, "concepts", "joint") == "uniform" and len(self.files) > 2:
            raise UserError("method.concepts=uniform needs a prompt for each couple; use method.concepts=joint")
        if not method.merge.needs_model:
            return
        for role, owns in (("content", self.contents), ("style", self.styles)):
            if lacking := [own for own in owns if not own.prompt]:
                example = "a sks dog" if role == "content" else "a cat in szn style"
                raise UserError(
                    f"{method.name} learns from the prompt that {lacking[0].path} was trained with; "
                    f"use {role}.prompt='{example}'"
                )
        if not self.prompt:
            raise UserError(f"{method.name} learns from the prompt of both; use prompt='a sks dog in szn style'")

    def check_parts(self, adapters: Sequence[Adapter], method: Method) -> None:
        """Check that a method can merge these adapters.

        Raises:
            UserError: If they were trained on different backbones, or if one has only token embeddings and the method
                learns.
        """
        from lorabench.lora.adapter import common_backbone
        from lorabench.lora.files.names import kernel

        if backbone := common_backbone(adapters):
            raise UserError(
                f"the LoRAs were trained on changed base weights ({backbone}), which no file format for other programs "
                "has; use the files in merged/ of their run, which contain the change"
            )
        for own, adapter in zip(self.files, adapters, strict=True):
            if method.merge.needs_model and (found := next(filter(kernel, adapter), None)):
                raise UserError(
                    f"{own.path} adapts convolutions ({found}), which {method.name} does not run; use method=direct"
                )
        if all(adapter or adapter.text for adapter in adapters):
            return
        only = next(
            own.path for own, adapter in zip(self.files, adapters, strict=True) if not (adapter or adapter.text)
        )
        if method.merge.needs_model:
            raise UserError(
                f"{only} has token embeddings only, which {method.name} cannot learn from; use method=direct"
            )

    def pair(self, images: Sequence[tuple[Reference, ...]] = ()) -> Pair:
        """Return the pair for the merge. `images` are the training images of each file, if the merge uses any."""
        shown = images or [()] * len(self.files)
        concepts = [
            Concept(Path(own.path).stem, role, "", each, ())
            for own, role, each in zip(self.files, self.roles, shown, strict=True)
        ]
        split = len(self.contents)
        prompt = self.prompt or JOIN.join(concept.name for concept in concepts)
        return Pair(tuple(concepts[:split]), tuple(concepts[split:]), Scene.of(prompt))
