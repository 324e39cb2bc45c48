"""Folders of weights: is this one what it should be? Answered from its files, before anything heavy is imported."""

import json
from pathlib import Path

from lorabench.errors import UserError

ASSETS = Path(__file__).parent / "assets"
SCORERS = ("dino", "clip", "csd")
PREDICTION_TYPES = ("epsilon", "v_prediction")
HINT = "type model.path=<folder saved by StableDiffusionXLPipeline.save_pretrained>, or model=micro"


def sdxl_folder(path: str | Path) -> Path:
    """The folder of "micro", the packaged model, or of a path.

    Raises UserError unless it holds an SDXL pipeline with a noise schedule that can be trained on.
    """
    folder = ASSETS / "micro_sdxl" if str(path) == "micro" else Path(path)
    try:
        kind = json.loads((folder / "model_index.json").read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder} is not a diffusers model folder; {HINT}") from None
    if not kind.startswith("StableDiffusionXL"):
        raise UserError(f"{folder} holds a {kind}, not an SDXL model; {HINT}")
    try:
        schedule = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        complete = all((folder / part / "config.json").is_file() for part in ("unet", "vae", "text_encoder_2"))
    except (OSError, ValueError):
        complete, schedule = False, {}
    if not complete:
        raise UserError(f"{folder} is an incomplete SDXL folder; {HINT}")
    if schedule.get("prediction_type", "epsilon") not in PREDICTION_TYPES:
        raise UserError(f"{folder} predicts {schedule['prediction_type']}, not one of {PREDICTION_TYPES}; {HINT}")
    return folder


def scorer_folder(path: str | Path) -> Path:
    """The folder of "micro", the packaged scorers, or of a path.  Raises UserError unless it holds all three."""
    folder = ASSETS / "micro_scorers" if str(path) == "micro" else Path(path)
    missing = [name for name in SCORERS if not (folder / name / "config.json").is_file()]
    if missing:
        raise UserError(f"{folder} has no {missing[0]}/config.json; type scorers=micro")
    return folder
