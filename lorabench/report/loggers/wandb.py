"""W&B: a run of ours is a run there, a sweep is a group.

    config      the resolved config, flat: method, ablation, dataset, model, seed, lora/rank, ...
    summary     summary/<column of the table>, with _low and _high; costs/<cost>: the same keys in every run
    images      a table, a row an image, with its scores
    scores      the table of the run;  grid: its picture
    history     the loss terms of every fit, <stage>/<name>/<term> over `step`

Offline needs no account; `wandb sync <run folder>/wandb/offline-run-*` uploads it later, before the folder is moved:
W&B remembers the images of a table by absolute paths, which would else lie in its folder in the user's home. A run that
is resumed keeps its id. What an interrupted attempt logged is logged again from the store, so its own files, unless
they were uploaded, make way for those of the next: W&B would append the two, and every curve would be there twice.
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
from lorabench.report.loggers.view import View

LARGEST = 512  # pixels of an image there; the run folder has the original
SAID = ("method", "ablation", "dataset", "world", "model", "seed")  # of the manifest


class WandbView(View):
    """See the module; the run is named after its folder and the sweep's."""

    def __init__(self, spec: LoggerSpec, folder: Path, key: str, config: dict[str, Any]) -> None:
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
        except Error as error:
            reason = str(error).split("\n")[0]
            raise UserError(f"W&B cannot be reached ({reason}); type wandb login first, or mode=offline") from error
        self.known: dict[str, Any] = dict(self.run.summary)  # the last values of an attempt that is online already
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def curves(self, stage: str, name: str, curves: dict[str, list[float]]) -> None:
        named = {f"{stage}/{name}/{term}": values for term, values in curves.items()}
        if all(values[-1:] == [self.known.get(key)] for key, values in named.items()):
            return
        half = self.known.keys() >= named.keys()  # the attempt was killed in the middle of it: `step` is of this curve
        start = int(self.known.get("step", -1)) + 1 if half else 0
        for step in range(start, max(map(len, named.values()), default=0)):
            self.run.log({"step": step, **{key: values[step] for key, values in named.items() if step < len(values)}})

    def finish(self) -> None:
        from lorabench.report.folder import RunFolder

        runs = RunFolder.load_all(self.folder)
        said = {key: value for key, value in runs[0].manifest.items() if key in SAID}
        if len(runs) > 1:  # task=compare
            said |= {"method": [run.label for run in runs], "ablation": None}
        self.run.config.update(said, allow_val_change=True)
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
        """A row an image, frame rows too: what it shows, what it is of, and its scores."""
        from lorabench.report.folder import join_pictures

        pictures = join_pictures(runs)
        metrics = list(dict.fromkeys(name for picture in pictures for name in picture.values))
        known = ["method", "content", "style", "prompt", "noise", "index"]
        table = self.wandb.Table(columns=["image", *known, *metrics])
        for p in pictures:
            about = [p.label, p.content, p.style, p.prompt, str(p.seed), p.index]
            table.add_data(self.image(p.path), *about, *(p.values.get(metric) for metric in metrics))
        return table

    def image(self, path: Path) -> Any:
        with Image.open(path) as image:
            shown = image.convert("RGB")
        large = max(shown.size) > LARGEST
        if large:
            shown.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
        return self.wandb.Image(shown, file_type="jpg" if large else "png")

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


def data_of(folder: Path, own: str) -> Path:
    """Where the files of a run's tables wait to be uploaded."""
    return folder.resolve() / "wandb" / f"data-{own}"


def forget_attempts(folder: Path, own: str) -> None:
    """Remove the offline files of earlier attempts at the run, but for the records that were uploaded."""
    for attempt in (folder / "wandb").glob(f"offline-run-*-{own}"):
        if not any(attempt.glob("*.synced")):
            shutil.rmtree(attempt)
    shutil.rmtree(data_of(folder, own), ignore_errors=True)


def measured(table: pd.DataFrame) -> pd.DataFrame:
    """table.csv without what publications report."""
    from lorabench.report.text import STANDING

    return table.query(f"`{STANDING}`.isna()").drop(columns=STANDING) if STANDING in table else table


def scores_of(table: pd.DataFrame, label: str) -> dict[str, float]:
    """Of a row of table.csv the means and their intervals by column, as far as it has them."""
    from lorabench.report.table import COSTS
    from lorabench.report.text import SUFFIXES

    left_out = tuple(f"_{suffix}" for suffix in SUFFIXES if suffix not in ("mean", "low", "high"))
    names = [name for name in table if name not in ("method", *COSTS) and not str(name).endswith(left_out)]
    own = table.loc[table["method"] == label, names]
    return {str(name): float(value) for name, value in own.iloc[0].dropna().items()} if len(own) else {}


def flat(config: dict[str, Any], start: str = "") -> dict[str, Any]:
    """A nested config as one level; a group is its name, and what is in it.

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
