"""W&B view: each run is a W&B run, and each sweep is a group.

    config      the flattened config: method, ablation, dataset, model, seed, lora/rank, ...
    summary     summary/<column of the table>, with _low and _high; costs/<cost>. All runs have the same keys
    images      a table with one row per image and its scores
    scores      the table of the run;  grid: its image
    history     the loss terms of all fits, <stage>/<name>/<term> over `step`

Offline runs need no account. Upload them with `wandb sync <run folder>/wandb/offline-run-*` before moving the folder,
because W&B stores absolute paths of the images in tables. These files are kept in the run folder; W&B's default is the
user's home.

A resumed run keeps its id and logs its finished stages again from the store. The offline files of an interrupted
attempt are therefore deleted, unless they were uploaded; otherwise W&B would append both and show every curve twice.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from lorabench.base import UserError
from lorabench.config.schemas import LoggerSpec
from lorabench.report.contact_sheet import opened
from lorabench.report.loggers.view import View

LARGEST = 512  # largest side of an uploaded image in pixels; the run folder has the original
MANIFEST_KEYS = ("method", "ablation", "dataset", "world", "model", "seed")  # added to the W&B config


class WandbView(View):
    """View of one run, named after the sweep's and the run's folder."""

    def __init__(self, spec: LoggerSpec, folder: Path, key: str, config: dict[str, Any]) -> None:
        for variable in [name for name, value in os.environ.items() if name.startswith("WANDB_") and not value.strip()]:
            del os.environ[variable]  # W&B would refuse an empty mode or address
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb
        from wandb.errors import Error

        sweep = str(config.get("name") or folder.parent.name)
        name = f"{sweep}/{folder.name}"
        own = hashlib.sha256(f"{name} {key}".encode()).hexdigest()[:16]
        self.folder = folder
        self.wandb = wandb
        if spec.mode != "online":
            forget_attempts(folder, own)
            os.environ["WANDB_DATA_DIR"] = str(data_of(folder, own))
        try:
            self.run = wandb.init(
                project=spec.project,
                name=name,
                group=sweep,
                id=own,
                resume="allow",
                config=flat(config),
                mode="online" if spec.mode == "online" else "offline",
                dir=folder,
                reinit="finish_previous",
                settings=wandb.Settings(console="off", x_disable_stats=True),
            )
        except ValueError as error:  # pydantic's: a title, then the name of a setting and the reason
            _, setting, reason, *_ = [*str(error).splitlines(), "", ""]
            reason = reason.strip().partition(" [type=")[0]
            raise UserError(
                f"WANDB_{setting.strip().upper()} must be correct ({reason}); unset it, or use logger=csv"
            ) from None
        except Error as error:
            reason = str(error).split("\n")[0]
            advice = "run wandb login first, or use mode=offline" if spec.mode == "online" else "use logger=csv"
            how = "be reached" if spec.mode == "online" else "start offline"
            raise UserError(f"W&B cannot {how} ({reason}); {advice}") from error
        self.known: dict[str, Any] = dict(self.run.summary)  # last values of an earlier attempt that was online
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def curves(self, stage: str, name: str, curves: dict[str, list[float]]) -> None:
        named = {f"{stage}/{name}/{term}": values for term, values in curves.items()}
        if all(values[-1:] == [self.known.get(key)] for key, values in named.items()):
            return
        half = self.known.keys() >= named.keys()  # the earlier attempt was killed within this curve, at `step`
        start = int(self.known.get("step", -1)) + 1 if half else 0
        for step in range(start, max(map(len, named.values()), default=0)):
            self.run.log({"step": step, **{key: values[step] for key, values in named.items() if step < len(values)}})

    def finish(self) -> None:
        from lorabench.report.folder import RunFolder

        runs = RunFolder.load_all(self.folder)
        shown = {key: value for key, value in runs[0].manifest.items() if key in MANIFEST_KEYS}
        if len(runs) > 1:  # task=compare
            shown |= {"method": [run.label for run in runs], "ablation": None}
        self.run.config.update(shown, allow_val_change=True)
        table = measured(pd.read_csv(self.folder / "table.csv"))
        for run in runs:
            start = "" if len(runs) == 1 else f"{run.label}/"
            self.run.summary.update(
                {f"summary/{start}{key}": value for key, value in scores_of(table, run.label).items()}
            )
            costs = run.manifest.get("costs") or {}
            self.run.summary.update({f"costs/{start}{key}": value for key, value in costs.items()})
        self.run.log({"scores": self.wandb.Table(dataframe=table), "images": self.images(runs)})
        if (grid := self.folder / "grid.png").is_file():
            self.run.log({"grid": self.wandb.Image(str(grid))})

    def images(self, runs: list[Any]) -> Any:
        """Return a table with one row per image: the image, its keys and its scores."""
        from lorabench.report.pooling import join_pictures

        pictures = join_pictures(runs)
        metrics = list(dict.fromkeys(name for picture in pictures for name in picture.values))
        known = ["method", "content", "style", "prompt", "noise", "index"]
        table = self.wandb.Table(columns=["image", *known, *metrics])
        for p in pictures:
            about = [p.label, p.content, p.style, p.prompt, str(p.seed), p.index]
            table.add_data(self.image(p.path), *about, *(p.values.get(metric) for metric in metrics))
        return table

    def image(self, path: Path) -> Any:
        """Return an image for W&B, with sides of at most LARGEST pixels."""
        shown = opened(path)
        large = max(shown.size) > LARGEST
        if large:
            shown.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
        return self.wandb.Image(shown, file_type="jpg" if large else "png")

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


def data_of(folder: Path, own: str) -> Path:
    """Return the folder for table files that wait to be uploaded."""
    return folder.resolve() / "wandb" / f"data-{own}"


def forget_attempts(folder: Path, own: str) -> None:
    """Delete the offline files of earlier attempts at the run, except for uploaded ones."""
    for attempt in (folder / "wandb").glob(f"offline-run-*-{own}"):
        if not any(attempt.glob("*.synced")):
            shutil.rmtree(attempt)
    shutil.rmtree(data_of(folder, own), ignore_errors=True)


def measured(table: pd.DataFrame) -> pd.DataFrame:
    """Return table.csv without the rows of publications."""
    from lorabench.report.text import STANDING

    return table.query(f"`{STANDING}`.isna()").drop(columns=STANDING) if STANDING in table else table


def scores_of(table: pd.DataFrame, label: str) -> dict[str, float]:
    """Return the means and interval ends of one row of table.csv by column, without missing ones."""
    from lorabench.report.table import COSTS
    from lorabench.report.text import SUFFIXES

    left_out = tuple(f"_{suffix}" for suffix in SUFFIXES if suffix not in ("mean", "low", "high"))
    names = [name for name in table if name not in ("method", *COSTS) and not str(name).endswith(left_out)]
    own = table.loc[table["method"] == label, names]
    return {str(name): float(value) for name, value in own.iloc[0].dropna().items()} if len(own) else {}


def flat(config: dict[str, Any], start: str = "") -> dict[str, Any]:
    """Flatten a nested config; a group becomes its name and one entry per setting.

    >>> flat({"seed": 0, "lora": {"name": "default", "rank": 4}})
    {'seed': 0, 'lora': 'default', 'lora/rank': 4}
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        if not isinstance(value, dict):
            found[f"{start}{key}"] = value
            continue
        if "name" in value:
            found[f"{start}{key}"] = value["name"]
        found |= flat({inner: each for inner, each in value.items() if inner != "name"}, f"{start}{key}/")
    return found
