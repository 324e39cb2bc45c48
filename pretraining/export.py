"""Export of checkpoints as pipelines of diffusers in half precision."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from lorabench.base import UserError
from lorabench.engine.record import write_whole
from pretraining import card
from pretraining.architecture import build_vae
from pretraining.course import COURSE, course_of, exported_samples
from pretraining.models import MICRO_SDXL, MicroModel

INDEX = "model_index.json"


def averaged(checkpoint: Path, kind: MicroModel = MICRO_SDXL) -> Any:
    """Return the denoiser and text encoders with the moving average of their weights, from a checkpoint.

    Raises:
        UserError: If there is no checkpoint, or it is of another model.
    """
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint} does not exist; use --name of a training, or run its decay (denoiser --anneal)")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    prefix, model = "ema.module.", kind.module()
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not any(key.startswith(f"{kind.part}.") for key in own):
        raise UserError(f"{checkpoint} is a checkpoint of another model; use another --model")
    model.load_state_dict(own)
    return model.eval()


def assemble(checkpoint: Path, vae: Path, kind: MicroModel = MICRO_SDXL) -> Any:
    """Return the complete pipeline in fp32."""
    model, autoencoder = averaged(checkpoint, kind), build_vae()
    autoencoder.load_state_dict(AutoencoderKL.from_pretrained(vae).state_dict())  # without its path in the config
    return kind.pipeline(
        **{kind.part: getattr(model, kind.part)},
        vae=autoencoder,
        text_encoders=(model.text_encoder, model.text_encoder_2),
    )


def check_target(folder: Path, names: Sequence[str]) -> None:
    """Check that files may be written into the parent of a folder: there are none, or the folder is an export's.

    Args:
        folder: The folder of a pipeline; an export has training.json next to it.
        names: Of the files, relative to the parent.

    Raises:
        UserError: If one of them exists and no export wrote the folder.
    """
    is_export = exported_samples(folder) is not None
    taken = [path for name in names if os.path.lexists(path := folder.parent / name)]
    if is_export:  # an interrupted first export leaves only this file
        taken = [path for path in taken if path.name != COURSE]
    if taken and not (is_export and (folder / INDEX).is_file()):
        raise UserError(f"{taken[0]} was not written by an export and is left as it is; use another folder")


def export(checkpoint: Path, vae: Path, folder: Path, kind: MicroModel = MICRO_SDXL) -> int:
    """Write the pipeline to `folder` in float16, with training.json and the model card next to it.

    The files are written to another folder and moved, so that an interrupted export can be repeated.

    Returns:
        The size of the pipeline in bytes.

    Raises:
        UserError: If a file is there that no export wrote.
    """
    check_target(folder, [COURSE, *(f"{folder.name}/{path.name}" for path in folder.glob("*"))])
    pipeline, samples = assemble(checkpoint, vae, kind), course_of(checkpoint)["samples"]
    if samples != exported_samples(folder):
        card.forget_readout(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".export-", dir=folder.parent) as name:
        pipeline.to(torch.float16).save_pretrained(draft := Path(name), safe_serialization=True)
        text = json.dumps({"samples": samples}) + "\n"
        write_whole(folder.parent / COURSE, lambda path: path.write_text(text))
        written = [path.relative_to(draft) for path in draft.rglob("*") if path.is_file()]
        for path in sorted(written, key=lambda path: path != Path(INDEX)):  # it marks the folder as an export's
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (draft / path).replace(folder / path)
    curve = checkpoint.with_name("curve.csv")
    card.write(kind.card, folder, card.parts(pipeline), card.heldout(curve, samples))
    return sum((folder / path).stat().st_size for path in written)
