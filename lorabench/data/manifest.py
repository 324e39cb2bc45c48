"""The manifest of a user's own images: a YAML file with subjects, styles and their images.

    subjects:
      rex:
        class: dog                    # the class word
        images: photos/rex            # a folder or a list of files, relative to the manifest's folder
        references: [photos/rex9.jpg] # only compared with; default: as dataset.references sets
        prompts: [in the snow, "a wet {}"]   # own scenes, for prompts.contexts=auto
        live: true                    # an animal or person; known for cats and dogs
        repeats: 2                    # weight of each image when training samples images
    styles:
      crayon:
        style: kid crayon drawing style
        shows: bear                   # object in the images
        images:
          - crayon/bear.jpg
          - {file: crayon/house.jpg, shows: house, repeats: 3}
          - {file: crayon/me.jpg, caption: a portrait in szn style}   # complete caption in training

An image without `caption` takes the one in `me.txt` or in the folder's `metadata.jsonl` (data/captions.py).

Every error message has the line of the mistake.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from lorabench.base import UserError
from lorabench.data.captions import caption_of
from lorabench.data.contexts import template
from lorabench.data.images import images_in, report_folders
from lorabench.data.pairs import JOIN
from lorabench.data.text_files import read_text
from lorabench.data.yaml_nodes import NodeReader

ENTRY = {
    "subjects": ("class", "images", "references", "prompts", "live", "repeats"),
    "styles": ("style", "shows", "images", "references", "repeats"),
}
REQUIRED = {"subjects": ("class", "images"), "styles": ("style", "images")}
SHOT = {"subjects": ("file", "caption", "repeats"), "styles": ("file", "shows", "caption", "repeats")}
MOST = 1000  # maximum of `repeats`
RESERVED = ("all", "live", "object")  # names of sets, not allowed for subjects and styles


@dataclass(frozen=True)
class Shot:
    """One image.

    Args:
        path: Its file.
        line: Its place in the manifest, such as "manifest.yaml:7".
        shows: The object in it, as the manifest has it; None if it has none.
        caption: The caption in the manifest, or None.
        repeats: Weight of the image in training.
    """

    path: Path
    line: str
    shows: str | None
    caption: str | None
    repeats: int


@dataclass(frozen=True)
class Entry:
    """A subject or a style.

    Args:
        word: Class word or style phrase.
        images: Images to train on.
        references: Images to compare with; empty: by the dataset's settings.
        prompts: Own scenes.
        live: Whether the subject is a live one; None: by its class word.
    """

    word: str
    images: tuple[Shot, ...]
    references: tuple[Shot, ...]
    prompts: tuple[str, ...]
    live: bool | None


@dataclass(frozen=True)
class Manifest:
    """The subjects and styles of a manifest, by name."""

    subjects: dict[str, Entry]
    styles: dict[str, Entry]


def read(path: Path) -> Manifest:
    """Read and check a manifest. Every image in it exists.

    Raises:
        UserError: With the line of the first mistake.
    """
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "is missing"
        raise UserError(f"{path} {problem}; use dataset.manifest=<your yaml file>, its form is in docs/sdxl.md")
    try:
        root = yaml.compose(read_text(path), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}:{line}: not valid YAML, {error.problem or error.context}; correct the line") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML text ({str(error).splitlines()[0]}); correct it") from error
    if root is None:
        raise UserError(f"{path}:1: the manifest is empty; write subjects: and styles:")
    return Reader(path).manifest(root)


class Reader(NodeReader):
    """Converter from the YAML nodes of a manifest to entries. Errors have the line of a node."""

    def manifest(self, root: Node) -> Manifest:
        """Return the manifest of the root node."""
        blocks = self.mapping(root, tuple(ENTRY), tuple(ENTRY), "the manifest")
        subjects, styles = (self.entries(block, blocks[block]) for block in ENTRY)
        for key, _ in blocks["styles"].value:
            if key.value in subjects:
                self.fail(key, f"{key.value!r} is a subject too; give the style another name")
        return Manifest(subjects, styles)

    def entries(self, block: str, node: Node) -> dict[str, Entry]:
        """Return the entries of a block, by name."""
        named = self.mapping(node, None, (), f"{block}:")
        if not named:
            self.fail(node, f"{block}: names nothing; write a name with {', '.join(REQUIRED[block])} below it")
        for key, _ in node.value:
            if (
                not key.value
                or key.value in RESERVED
                or key.value.startswith(".")
                or set(key.value) & {JOIN, "/", "\\"}
            ):
                self.fail(
                    key,
                    f"{key.value!r} cannot be a name; write one without {JOIN} and /, and not {', '.join(RESERVED)}",
                )
        return {name: self.entry(block, name, value) for name, value in named.items()}

    def entry(self, block: str, name: str, node: Node) -> Entry:
        """Return a subject or a style."""
        keys = self.mapping(node, ENTRY[block], REQUIRED[block], name)
        repeats = self.count(keys["repeats"]) if "repeats" in keys else 1
        shows = self.text(keys["shows"]) if "shows" in keys else None
        images = self.shots(block, keys["images"], shows, repeats)
        references = self.shots(block, keys["references"], shows, 1) if "references" in keys else ()
        trained = {image.path.resolve() for image in images}
        for shot in references:
            if shot.path.resolve() in trained:
                raise UserError(f"{shot.line}: {shot.path} is trained on too; take it out of images or of references")
        return Entry(
            word=self.text(keys["class"]) if block == "subjects" else self.text(keys["style"]).removeprefix("in "),
            images=images,
            references=references,
            prompts=tuple(self.context(item) for item in self.items(keys["prompts"])) if "prompts" in keys else (),
            live=self.flag(keys["live"]) if "live" in keys else None,
        )

    def shots(self, block: str, node: Node, shows: str | None, repeats: int) -> tuple[Shot, ...]:
        """Return the images of a node: a folder, a file, or a list of files with their own settings.

        Args:
            block: "subjects" or "styles".
            node: The node.
            shows: Object in images that do not have their own.
            repeats: Weight of images that do not have their own.
        """
        found: list[Shot] = []
        for item in node.value if isinstance(node, SequenceNode) else [node]:
            if isinstance(item, MappingNode):
                keys = self.mapping(item, SHOT[block], ("file",), "an image")
                known = [self.text(keys[key]) if key in keys else None for key in ("shows", "caption")]
                times = self.count(keys["repeats"]) if "repeats" in keys else repeats
                paths, more = self.files(keys["file"]), (known[0] or shows, known[1], times)
            else:
                paths, more = self.files(item), (shows, None, repeats)
            shown, caption, times = more
            found += [Shot(path, self.line(item), shown, caption or caption_of(path), times) for path in paths]
        if not found:
            self.fail(node, "the list is empty; write the images' files")
        seen: set[Path] = set()
        for shot in found:
            if (file := shot.path.resolve()) in seen:
                raise UserError(f"{shot.line}: {shot.path} is named twice; name it once, with repeats: 2")
            seen.add(file)
        return tuple(found)

    def files(self, node: Node) -> list[Path]:
        """Return the image at a path, or all images of a folder."""
        path = self.path.parent / Path(self.text(node)).expanduser()
        if path.is_dir():
            report_folders(path)
            if not (paths := images_in(path)):
                self.fail(node, f"{path} has no images; put some there or use another folder")
            return paths
        if not path.is_file():
            self.fail(node, f"{path} is missing; put the image there or correct the line")
        return [path]

    def context(self, node: Node) -> str:
        """Return a scene with its place for the subject."""
        text = self.text(node)
        try:
            return template(text)
        except UserError as error:
            self.fail(node, str(error))

    def count(self, node: Node) -> int:
        """Return a number of repeats."""
        if not isinstance(node, ScalarNode) or not node.tag.endswith(":int") or not node.value.isdigit():
            self.fail(node, f"{self.shown(node)} is not a number of repeats; write 1 or more")
        if not 1 <= int(node.value) <= MOST:
            self.fail(node, f"repeats: {node.value} must be between 1 and {MOST}; remove the image to leave it out")
        return int(node.value)
