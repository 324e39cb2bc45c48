"""The perceptual term of CRAFT-LoRA's backbone: features of VGG-19 on the clean estimate.

    L_perc = sum_{j=1..5} 1 / N_j || phi_j(x0_hat) - phi_j(x0) ||^2       (phi_j: relu1_1, ..., relu5_1)

x0_hat is the estimate of the clean latents from the prediction, decoded. Rows with t above `until` of the noisiest
level are left out, because their estimate shows nothing; the paper does not mention this.

The features are those of torchvision, whose weights are not part of this package. Nothing is downloaded: without the
file in torch's cache the term is off.

Source: arXiv 2602.18936, appendix A.2 (equation 16; its formula is inferred from the sentence about it).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lorabench.models.model import DiffusionModel
    from lorabench.personalization.views import Batch

FILE = "vgg19-dcbb9e9d.pth"  # VGG19_Weights.IMAGENET1K_V1 of torchvision
RELUS = (1, 6, 11, 20, 29)  # relu1_1, relu2_1, relu3_1, relu4_1, relu5_1 in vgg19().features
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def weights_file() -> Path | None:
    """Return torchvision's weights of VGG-19 in torch's cache, or None. Imports no torch."""
    home = os.environ.get("TORCH_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch")
    path = Path(home).expanduser() / "hub" / "checkpoints" / FILE
    return path if path.is_file() else None


@dataclass
class Perceptual:
    """The term.

    Args:
        features: Layers of VGG-19 up to relu5_1, with frozen weights.
        weight: Factor of the term.
        until: Share of the noise levels up to which rows count.
    """

    features: nn.Sequential
    weight: float
    until: float = 0.4

    @classmethod
    def load(cls, path: Path, weight: float, device: Any) -> Perceptual:
        import torch
        import torchvision

        network: Any = torchvision.models.vgg19()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return cls(network.features[: RELUS[-1] + 1].requires_grad_(False).eval().to(device), weight)

    def __call__(self, model: DiffusionModel, batch: Batch, prediction: Tensor) -> Tensor:
        """Return the weighted term, a mean over all rows of the batch."""
        import torch

        rows = (batch.t < self.until * model.process.noisiest).nonzero().flatten()
        if not len(rows):
            return prediction.new_zeros(())
        t, latents = batch.t[rows], batch.latents[rows]
        noised = model.process.add_noise(latents, batch.noise[rows], t)
        estimate = model.decode(model.process.clean(noised, t, prediction[rows]))
        with torch.no_grad():
            known = self.maps(model.decode(latents))
        distances = [(a - b).square().mean() for a, b in zip(self.maps(estimate), known, strict=True)]
        return self.weight * torch.stack(distances).sum() * len(rows) / len(batch.t)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the five feature maps of images [n, 3, h, w] in [0, 1]."""
        x = (images - images.new_tensor(MEAN).view(1, 3, 1, 1)) / images.new_tensor(STD).view(1, 3, 1, 1)
        found = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in RELUS:
                found.append(x)
                x = x.clone()  # the next layers work in place
        return found
