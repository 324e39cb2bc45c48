"""Training of the expert encoder (lorabench/sampling/encoder.py). The paper does not describe it; both ways are ours.

    regress    min E || gamma - g ||^2 + 0.01 |gamma|,   g_k = m_k sigmoid((cos(E(words), E(trained)) - mu) / tau)
    denoise    min E || eps - eps_theta(x_t; W + gamma_c dW_c + gamma_s dW_s) ||^2 + beta || gamma - m ||^2

`regress` runs no denoiser. Words are paraphrases of the trained ones, other things and styles, or absent; mu is the
middle of the median cosines of paraphrases and of others, and tau an eighth of their distance. An adapter is used as
far as the marked words mean what it was trained on, so a new content lowers the scale of the content adapter.

`denoise` uses the images of the pair with their captions. Denoiser and adapters are frozen, and the gradient flows
through the two scales only; each mark is dropped with probability 0.25.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorabench.base import UserError, seed_of
from lorabench.data.concepts import ROLES, Role
from lorabench.data.pairs import Pair
from lorabench.data.scenes import Scene
from lorabench.personalization.training import Environment, Job, Output

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lorabench.lora.adapter import Adapter
    from lorabench.models.model import DiffusionModel
    from lorabench.sampling.encoder import ExpertEncoder

STEPS = {"regress": 2000, "denoise": 200}
BATCH = {"regress": 64, "denoise": 8}
RATE, SPARSE, BETA, DROPPED = 1e-3, 0.01, 0.1, 0.25
PARAPHRASES = ("{}", "a {}", "the {}", "one {}", "my {}", "a photo of a {}", "a picture of the {}", "a nice {}")
OTHERS: dict[Role, tuple[str, ...]] = {
    "content": (
        "mug", "teapot", "vase", "lamp", "house", "car", "boat", "fish", "duck", "cat", "mushroom", "rocket", "dog",
        "bicycle", "person", "tree", "chair", "robot",
    ),
    "style": tuple(
        f"{name} style"
        for name in (
            "ink", "pencil", "watercolor", "crayon", "neon", "halftone", "pixel", "glass", "poster", "woodcut", "clay",
            "sketch", "oil painting", "cyberpunk", "photo",
        )
    ),
}  # fmt: skip


@dataclass(frozen=True)
class RoutingJob(Job):
    """The training of the encoder of one pair.

    Args:
        mode: "regress" or "denoise".
        words: Marked words that the adapters were trained with, by role.
        outputs: Adapters of the pair, for "denoise".
        images: Pair with the images of the concepts, for "denoise".
    """

    stage = "encoder"

    mode: str = "regress"
    words: tuple[str, str] = ("", "")
    outputs: tuple[Output, ...] = ()
    images: Pair | None = None

    @property
    def params(self) -> dict[str, Any]:
        return {"training": type(self).__name__, "version": self.version, "mode": self.mode, "words": list(self.words)}

    @property
    def needs(self) -> tuple[Job, ...]:
        return tuple(output.job for output in self.outputs)

    @property
    def backbone(self) -> Job | None:
        return self.outputs[0].job.backbone if self.outputs else None

    @property
    def steps(self) -> int:
        return STEPS[self.mode]

    def run(self, model: DiffusionModel, env: Environment) -> dict[str, Adapter]:
        import torch

        from lorabench.sampling.encoder import ExpertEncoder

        assert env.folder is not None
        torch.manual_seed(seed_of("encoder", self.words, env.seed))
        encoder = ExpertEncoder(model.text_features([""]).shape[1])
        losses = self.regress(encoder, model, env) if self.mode == "regress" else self.denoise(encoder, model, env)
        fit(encoder, losses, env)
        encoder.save(env.folder)
        return {}

    def learned(self, lora: Adapter) -> int:
        return 0

    def regress(self, encoder: ExpertEncoder, model: DiffusionModel, env: Environment) -> Iterator[Tensor]:
        """Yield the loss of each step."""
        import torch

        pools = [self.pool(model, role) for role in ROLES]
        for step in range(self.steps):
            draw = torch.Generator().manual_seed(seed_of("encoder", self.words, env.seed, step))
            picks = [torch.randint(len(words), (BATCH["regress"],), generator=draw) for words, _ in pools]
            marked = (torch.rand(BATCH["regress"], len(ROLES), generator=draw) >= DROPPED).float()
            words = torch.stack([pool[0][pick] for pool, pick in zip(pools, picks, strict=True)], 1)
            target = marked * torch.stack([pool[1][pick] for pool, pick in zip(pools, picks, strict=True)], 1)
            gamma = encoder(words, marked)
            yield (gamma - target).square().mean() + SPARSE * gamma.mean()

    def pool(self, model: DiffusionModel, role: Role) -> tuple[Tensor, Tensor]:
        """Return embeddings [n, width] of paraphrases and of other words, as many of each, and targets [n]."""
        import torch
        from torch.nn.functional import cosine_similarity

        trained = self.words[ROLES.index(role)]
        last = trained.split()[0 if role == "style" else -1]
        paraphrases = [each.format(trained) for each in PARAPHRASES]
        others = [each for each in OTHERS[role] if last not in each.split()]
        near, far, anchor = (model.text_features(each).float().cpu() for each in (paraphrases, others, [trained]))
        cosines = [cosine_similarity(each, anchor) for each in (near, far)]
        high, low = (float(each.median()) for each in cosines)
        mu, tau = (high + low) / 2, max((high - low) / 8, 1e-4)
        repeats = max(1, round(len(others) / len(paraphrases)))
        words = torch.cat([near.repeat(repeats, 1), far])
        return words, torch.sigmoid((cosine_similarity(words, anchor) - mu) / tau)

    def denoise(self, encoder: ExpertEncoder, model: DiffusionModel, env: Environment) -> Iterator[Tensor]:
        """Yield the loss of each step."""
        import torch

        from lorabench.lora.adapter import Adapter
        from lorabench.personalization.dreambooth import denoised
        from lorabench.personalization.views import views
        from lorabench.sampling.encoder import embedded

        assert self.images is not None
        adapters = [
            Adapter.load(folder / f"{output.name}.safetensors")
            for folder, output in zip(env.needed, self.outputs, strict=True)
        ]
        roles = [output.shown.role for output in self.outputs]
        sources = [views(model, concept.images, False, 0, env.seed) for concept in self.images.concepts]
        scenes = [Scene("", "", **{role: self.words[k]}) for k, role in enumerate(ROLES)]
        words, marked = embedded(model, scenes)
        half = BATCH["denoise"] // 2
        with model.attach(adapters, dtype=torch.float32) as attached:
            for step in range(self.steps):
                draw = torch.Generator().manual_seed(seed_of("encoder", self.words, env.seed, step))
                batch = sources[0].draw(model, half, draw).join(sources[-1].draw(model, half, draw))
                rows = torch.arange(2).repeat_interleave(half)
                kept = marked[rows] * (torch.rand(2 * half, 2, generator=draw) >= DROPPED)
                gamma = encoder(words[rows], kept)
                attached.rows(gamma[:, [ROLES.index(role) for role in roles]])
                prediction, target = denoised(model, batch, model.encode_prompts(batch.prompts))
                yield (prediction - target).square().mean() + BETA * (gamma - kept).square().mean()


def fit(encoder: torch.nn.Module, losses: Iterator[Tensor], env: Environment) -> None:
    """Minimize the losses with Adam, one step for each."""
    import torch

    optimizer = torch.optim.Adam(encoder.parameters(), lr=RATE)
    for step, loss in enumerate(losses, start=1):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if env.progress:
            env.progress(step)


def routing_job(mode: str, pair: Pair, outputs: Sequence[Output]) -> RoutingJob:
    """Return the job of the encoder of a pair.

    Args:
        mode: "regress" or "denoise".
        pair: The pair; its scene knows which words are marked.
        outputs: Its adapters.

    Raises:
        UserError: If the pair has several subjects or styles, or marks no words.
    """
    words = tuple(pair.alone.marked(role) for role in ROLES)
    if not pair.is_single or not all(words):
        raise UserError(
            f"method.routing={mode} needs one subject and one style whose words are marked, not {pair.name}; use "
            "method.routing=marker"
        )
    concept = pair.contents[0]
    used = tuple(outputs) if mode == "denoise" else ()
    recipe = outputs[0].job.recipe
    name = f"encoder of {pair.name}"
    return RoutingJob(concept, recipe, name, mode, (words[0], words[1]), used, pair if used else None)
