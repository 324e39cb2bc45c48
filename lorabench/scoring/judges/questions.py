"""The questions that a judge is asked, by protocol.

    protocol      about        questions                                      answers
    pairwise      two images   subject, style, both: which image is better?   A, B, TIE
    combination   one image    both: does it have the subject and the style?  YES, NO
    rubric        one image    subject, style: how alike?                     0 to 4

`pairwise` asks each question twice, with the images swapped. `combination` is the binary question of the Combination
Score of CRAFT-LoRA (arXiv 2602.18936), whose prompt is not published. `rubric` has the scale and the criteria of
DreamBench++ (arXiv 2406.16855) in our words, without its two turns of preparation; each question shows one reference.

A judge sees images and these texts, no names. Only the judge `truth` reads the names of the true subject and style.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

SUBJECT_REFERENCE, STYLE_REFERENCE = "Subject reference:", "Style reference:"
TASK = (
    "The first image shows a subject. The second image shows a style. A generator was asked for the same subject in "
    "the same style."
)
FORM = "Answer with one JSON object and nothing else: "
FIDELITY = {
    "subject": "the same individual as in the subject reference, by shape, proportions, parts and markings. A change "
    "of colors or lines that the style brings with it is not an error",
    "style": "the style of the style reference, by colors, lines, textures and way of drawing. What the image shows "
    "does not matter",
    "both": "both at the same time: the subject of the subject reference and the style of the style reference. An "
    "image that has only one of them is bad",
}
CRITERIA = {
    "subject": "Compare the subject only. Look at its shape (outline, proportions, arrangement of the parts), its "
    "colors, its texture and details and, for a person or an animal, its face.",
    "style": "Compare the style only. Look at the palette and its tones, at strokes and textures, and at the way of "
    "drawing (lines, abstraction, manner).",
}
SCALE = (
    "0: no resemblance. 1: slight resemblance. 2: moderate resemblance with clear differences. 3: strong resemblance "
    "with small differences. 4: hardly any difference."
)


@dataclass(frozen=True)
class Item:
    """The judged images: two, or one.

    Args:
        images: Files of the images.
        references: Files of a reference of the subject and of the style.
        names: Names of the subject and of the style, which models never see.
    """

    images: tuple[Path, ...]
    references: tuple[Path, Path]
    names: tuple[str, str]


@dataclass(frozen=True)
class Ask:
    """One question about an item.

    Args:
        question: "subject", "style" or "both".
        parts: Texts and images in the order in which a model sees them.
        options: Valid answers.
        images: The judged images; the first is A.
        names: Names of the subject and of the style, as in `Item`.
    """

    question: str
    parts: tuple[str | Path, ...]
    options: tuple[str, ...]
    images: tuple[Path, ...]
    names: tuple[str, str]


def questions(protocol: str) -> tuple[str, ...]:
    """Return the names of a protocol's questions."""
    return {"pairwise": ("subject", "style", "both"), "combination": ("both",), "rubric": ("subject", "style")}[
        protocol
    ]


def asks(protocol: str, item: Item, question: str, votes: int = 1) -> list[Ask]:
    """Return the prompts that together answer one question about an item.

    Args:
        protocol: Name of the protocol.
        item: The images and references.
        question: "subject", "style" or "both".
        votes: Number of prompts about a single image; two images are shown in both orders.
    """
    if protocol == "pairwise":
        return [pairwise(question, item, order) for order in (item.images, item.images[::-1])]
    return [combination(question, item) if protocol == "combination" else rubric(question, item)] * votes


def pairwise(question: str, item: Item, images: tuple[Path, ...]) -> Ask:
    """Ask which of two images is better."""
    text = (
        f'{TASK} Image A and image B are two attempts. Which one better shows {FIDELITY[question]}? {FORM}{{"answer": '
        '"A"}, {"answer": "B"}, or {"answer": "TIE"} if you see no difference.'
    )
    shown = (*references(item), "Image A:", images[0], "Image B:", images[1], text)
    return Ask(question, shown, ("A", "B", "TIE"), images, item.names)


def combination(question: str, item: Item) -> Ask:
    """Ask whether an image has the subject and the style."""
    text = (
        f"{TASK} The third image is an attempt. Does it have {FIDELITY[question]}. "
        f'{FORM}{{"answer": "YES"}} or {{"answer": "NO"}}.'
    )
    shown = (*references(item), "Image:", item.images[0], text)
    return Ask(question, shown, ("YES", "NO"), item.images, item.names)


def rubric(question: str, item: Item) -> Ask:
    """Ask for a degree of resemblance from 0 to 4."""
    text = f'{CRITERIA[question]} Rate the generated image. {SCALE} {FORM}{{"answer": "0"}} to {{"answer": "4"}}.'
    label, reference = references(item)[:2] if question == "subject" else references(item)[2:]
    shown = (label, reference, "Generated image:", item.images[0], text)
    return Ask(question, shown, tuple("01234"), item.images, item.names)


def references(item: Item) -> tuple[str | Path, ...]:
    """Return the references of an item with their captions."""
    subject, style = item.references
    return SUBJECT_REFERENCE, subject, STYLE_REFERENCE, style


def prompt_hash(protocol: str) -> str:
    """Return a short hash of all texts of a protocol."""
    blank = Item((Path("A"), Path("B")), (Path("subject"), Path("style")), ("", ""))
    every = [ask for question in questions(protocol) for ask in asks(protocol, blank, question)]
    texts = [[str(part) for part in ask.parts] + list(ask.options) for ask in every]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:12]
