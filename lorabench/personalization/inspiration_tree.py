"""Inspiration Tree (Vinker et al., SIGGRAPH Asia 2023, arXiv 2305.18203), one node: two tokens that split a concept.

    minimize_{v_l, v_r}  E_{x, eps, t ~ p} || e(x_t, t, c("a v_l v_r")) - target ||^2,    p(t) ~ 1 - cos(pi t / T) / 2

Both tokens start as "object". Several seeds are trained for some steps, images of each token are sampled, and the seed
with the best consistency continues:

    score = s_l + s_r + min(s_l, s_r) - s_lr

s_l and s_r are the mean CLIP similarities of the images of one token with each other, and s_lr that of the images of
both tokens. Released code: google/inspiration_tree at c31fd88.

A node has several images. From a single one, one token is learned first; of the images sampled with it, the most
consistent ones become the node ("children" in the released code). Which token is the content is not part of the method:
it follows from the similarity of the sampled images to the original, in content by DINO and in style by CSD.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from lorabench.base import seed_of
from lorabench.config.schemas import LoRASpec
from lorabench.data.concepts import Concept, Reference
from lorabench.lora.adapter import Adapter
from lorabench.lora.files.embeddings import Tokens
from lorabench.models.model import DiffusionModel
from lorabench.models.noise import NOISY
from lorabench.personalization.tokens import LearnedTokens, fit_tokens, words_as_token
from lorabench.personalization.training import Environment
from lorabench.personalization.tree import Tree
from lorabench.sampling.generate import generate
from lorabench.scoring.cosine import cosine_matrix

ROOT, LEFT, RIGHT = "<root>", "<left>", "<right>"
START = "object"


@dataclass(frozen=True)
class Grower:
    """State that the steps of the method share.

    Args:
        concept: The image, with any caption.
        seed: Seed of all random draws.
    """

    model: DiffusionModel
    concept: Concept
    spec: LoRASpec
    tree: Tree
    env: Environment
    seed: int

    def grow(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the embeddings of the content and of the style by text encoder; `notes` gets the choice."""
        start = words_as_token(self.model, START)
        node = self.node(start)
        trial = self.tree.trial_steps(self.spec.steps)
        candidates = []
        for number in range(self.tree.candidates):
            item = seed_of(self.seed, "candidate", number)
            module = LearnedTokens(self.model, {LEFT: start, RIGHT: start}, node, self.spec, item, NOISY)
            fit_tokens(module, self.after(self.spec.steps + number * trial), trial, folder=f"candidate{number}")
            candidates.append(module)
        scores = [self.score(module.learned()) for module in candidates]
        best = int(np.argmax(scores))
        done = self.spec.steps + (self.tree.candidates - 1) * trial
        fit_tokens(candidates[best], self.after(done), self.spec.steps, trial, "best")
        tokens = candidates[best].learned()
        likeness = self.likeness(tokens)
        swapped = is_swapped(likeness)
        self.env.notes.update(consistency=scores, seed=best, likeness=likeness, content="right" if swapped else "left")
        return (tokens[RIGHT], tokens[LEFT]) if swapped else (tokens[LEFT], tokens[RIGHT])

    def node(self, start: dict[str, Tensor]) -> Concept:
        """Return the images that two tokens are to split, under the caption with both."""
        caption = self.tree.caption(LEFT, RIGHT)
        if len(self.concept.images) > 1:
            return replace(self.concept, images=tuple(replace(each, prompt=caption) for each in self.concept.images))
        single = tuple(replace(each, prompt=self.tree.caption(ROOT)) for each in self.concept.images)
        module = LearnedTokens(
            self.model,
            {ROOT: start},
            replace(self.concept, images=single),
            self.spec,
            seed_of(self.seed, "root"),
            NOISY,
        )
        fit_tokens(module, self.env, self.spec.steps, folder="root")
        images = self.sample(module.learned(), ROOT, self.tree.siblings)
        kept = most_central(self.embed("clip", images), self.tree.kept)
        self.env.notes.update(kept=kept)
        return replace(self.concept, images=tuple(sibling(images[index], caption) for index in kept))

    def score(self, tokens: Tokens) -> float:
        """Return the consistency of two tokens."""
        return consistency(*(self.embed("clip", self.sample(tokens, name)) for name in (LEFT, RIGHT)))

    def likeness(self, tokens: Tokens) -> dict[str, dict[str, float]]:
        """Return the mean similarity of each token's images to the original, by token and role."""
        original = np.stack([np.asarray(each.image(self.model.resolution)) for each in self.concept.images])
        found: dict[str, dict[str, float]] = {"left": {}, "right": {}}
        for name, trigger in (("left", LEFT), ("right", RIGHT)):
            images = self.sample(tokens, trigger)
            for role, kind in (("content", "dino"), ("style", "csd")):
                mine, other = self.embed(kind, images, role), self.embed(kind, original, role)
                found[name][role] = float(cosine_matrix(mine, other).mean())
        return found

    def sample(self, tokens: Tokens, trigger: str, count: int | None = None) -> np.ndarray:
        """Return images of a token, uint8 [n, H, W, 3]; all candidates have the same noise."""
        count = count or self.tree.samples
        seeds = [seed_of(self.seed, "sample", index) for index in range(count)]
        adapter = Adapter({}, tokens={trigger: tokens[trigger]})
        spec: Any = self.env.generate
        prompts = [self.tree.caption(trigger)] * count
        return generate(self.model, [adapter], prompts, seeds, spec, self.env.trainer)

    def embed(self, kind: str, images: np.ndarray, role: str = "content") -> Tensor:
        """Return L2-normalized embeddings [n, d] by the scorer of a kind."""
        assert self.env.scorer is not None
        return self.env.scorer(kind).embed(list(images))[role]

    def after(self, done: int) -> Environment:
        """Return the environment of a phase that starts after some optimizer steps."""
        report = self.env.progress
        return self.env if report is None else replace(self.env, progress=lambda steps: report(done + steps))


def sibling(image: np.ndarray, caption: str) -> Reference:
    """Return a sampled image as a training image."""
    return Reference(START, caption, "", partial(Image.fromarray, image))


def most_central(rows: Tensor, count: int) -> list[int]:
    """Return which rows [n, d] have the largest mean cosine with the others, in their order."""
    similarity = cosine_matrix(rows, rows).fill_diagonal_(0)
    return sorted(similarity.sum(dim=1).topk(min(count, len(rows))).indices.tolist())


def consistency(left: Tensor, right: Tensor) -> float:
    """Return s_l + s_r + min(s_l, s_r) - s_lr for the embeddings [n, d] of two tokens' images."""
    own = []
    for rows in (left, right):
        n = len(rows)
        similarity = cosine_matrix(rows, rows).fill_diagonal_(0)
        own.append(float(similarity.sum()) / (n * (n - 1)))
    return sum(own) + min(own) - float(cosine_matrix(left, right).mean())


def is_swapped(likeness: dict[str, dict[str, float]]) -> bool:
    """Return True if the right token is the content: its images are more like the original in content than in style."""
    left, right = likeness["left"], likeness["right"]
    return right["content"] + left["style"] > left["content"] + right["style"]


def train_tree(
    model: DiffusionModel, concept: Concept, spec: LoRASpec, tree: Tree, triggers: Sequence[str], env: Environment
) -> dict[str, Adapter]:
    """Learn the tokens of an image's content and style.

    Args:
        triggers: Words for content and style in prompts.
        env: Seed, trainer and progress; the progress counts optimizer steps, of `tree.steps(spec.steps)`.
    """
    item = seed_of("inspiration tree", concept.identity(), env.seed)
    found = Grower(model, concept, spec, tree, env, item).grow()
    return {
        role: Adapter({}, tokens={trigger: vectors})
        for role, trigger, vectors in zip(("content", "style"), triggers, found, strict=True)
    }
