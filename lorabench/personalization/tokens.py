"""Textual inversion (Gal et al., ICLR 2023, arXiv 2208.01618): only the embeddings of new tokens are learned.

    minimize_v  E_{image, eps, t} || e(x_t, t, c(prompt with v)) - target(x_0, eps, t) ||^2

Denoiser and text encoders are frozen. A token has one vector v in each text encoder of the model, and the gradient
passes through both encoders.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lorabench.base import UserError, seed_of
from lorabench.config.schemas import LoRASpec
from lorabench.data.concepts import Concept
from lorabench.lora.adapter import Adapter
from lorabench.lora.files.embeddings import Tokens
from lorabench.models.model import DiffusionModel
from lorabench.personalization.dreambooth import denoised, weighted_mse
from lorabench.personalization.optimizers import optimiser, schedule
from lorabench.personalization.resumable import fit_resumable
from lorabench.personalization.training import Environment
from lorabench.personalization.views import views


class LearnedTokens(pl.LightningModule):
    """Trains the embeddings of triggers in the captions of a concept.

    A second `fit` continues with the optimizer of the first.

    Args:
        tokens: Embeddings [1, width] at the start, by trigger and text encoder.
        law: Distribution of the timesteps, see `NoiseProcess.timesteps`; None is that of the recipe.
    """

    def __init__(
        self,
        model: DiffusionModel,
        tokens: Tokens,
        concept: Concept,
        spec: LoRASpec,
        seed: int,
        law: str | None = None,
    ):
        super().__init__()
        self.model, self.spec, self.seed = model, spec, seed
        self.images = views(model, concept.images, spec.flips, spec.crops, seed, law or spec.timesteps)
        self.tokens: Tokens = {
            trigger: {encoder: nn.Parameter(vectors.clone()) for encoder, vectors in encoders.items()}
            for trigger, encoders in tokens.items()
        }
        self.factors = nn.ParameterList([each for encoders in self.tokens.values() for each in encoders.values()])
        self.optimizer = optimiser(spec, [{"params": list(self.factors), "lr": spec.lr}])
        self.scheduler = schedule(self.optimizer, spec)

    def training_step(self, forward: int) -> Tensor:
        draw = torch.Generator().manual_seed(seed_of(self.seed, forward))
        batch = self.images.draw(self.model, self.spec.batch, draw)
        prediction, target = denoised(self.model, batch, self.model.encode_prompts(batch.prompts, grad=True))
        loss = weighted_mse(prediction, target, self.model.process.loss_weight(batch.t, self.spec))
        self.log("loss", loss, batch_size=1)
        return loss

    def configure_optimizers(self) -> Any:
        return {"optimizer": self.optimizer, "lr_scheduler": {"scheduler": self.scheduler, "interval": "step"}}

    def learned(self) -> Tokens:
        """Return the current embeddings, on the CPU."""
        return {
            trigger: {encoder: vectors.detach().float().cpu().clone() for encoder, vectors in encoders.items()}
            for trigger, encoders in self.tokens.items()
        }


def fit_tokens(module: LearnedTokens, env: Environment, steps: int, start: int = 0, folder: str = "") -> None:
    """Run optimizer steps `start` to `steps` of a training of tokens.

    Args:
        env: Seed, trainer and progress; the progress counts optimizer steps.
        folder: Folder of the checkpoint, in the scratch folder.
    """
    model = module.model
    with model.present(*model.text.values()), model.fresh_prompts(), model.learned_tokens(module.tokens):
        fit_resumable(module, module.spec, env, steps, start=start, folder=folder)


def words_as_token(model: DiffusionModel, words: str) -> dict[str, Tensor]:
    """Return the mean input embedding of words by text encoder, [1, width]: a start for a token.

    Raises:
        UserError: If there are no words.
    """
    if not words.strip():
        raise UserError("a learned token starts from words, and there are none; use words for the object in the images")
    return {encoder: each.mean(dim=0, keepdim=True).cpu() for encoder, each in model.word_embeddings(words).items()}


def invert(model: DiffusionModel, concept: Concept, spec: LoRASpec, env: Environment) -> Adapter:
    """Learn the token of a concept from its images and captions; it starts from the words of the concept.

    Args:
        env: Seed, trainer and progress; the progress counts optimizer steps, of `spec.steps`.

    Raises:
        UserError: If the concept has no token, or its captions do not contain it.
    """
    if not concept.token or any(concept.token not in image.prompt for image in concept.images):
        raise UserError(f"the captions of {concept.name} do not contain the token {concept.token!r} to be learned")
    item = seed_of("textual inversion", concept.identity(), env.seed)
    start = {concept.token: words_as_token(model, concept.word)}
    module = LearnedTokens(model, start, concept, spec, item)
    fit_tokens(module, env, spec.steps)
    return Adapter({}, tokens=module.learned())
