"""Where the curves, images and table of a run are shown."""

import csv
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from lorabench.config import LoggerSpec
from lorabench.errors import UserError


class View(Protocol):
    def curves(self, stage: str, name: str, curves: dict[str, list[float]]) -> None:
        """The loss terms of one finished fit, a value a step."""

    def finish(self, captions: dict[str, str]) -> None:
        """The run folder is complete; captions by the relative path of an image."""


def open_view(spec: LoggerSpec, folder: Path) -> View:
    """The view that the config asks for, on a run folder."""
    if spec.kind == "wandb":
        return WandbView(spec, folder)
    return CsvView(folder) if spec.kind == "csv" else NoView()


class NoView:
    def curves(self, stage: str, name: str, curves: dict[str, list[float]]) -> None:
        return

    def finish(self, captions: dict[str, str]) -> None:
        return


class CsvView:
    """curves.csv: stage, name, term, step, value."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "curves.csv"
        self.rows: list[tuple[str, str, str, int, float]] = []

    def curves(self, stage: str, name: str, curves: dict[str, list[float]]) -> None:
        for term, values in curves.items():
            self.rows += [(stage, name, term, step, value) for step, value in enumerate(values)]

    def finish(self, captions: dict[str, str]) -> None:
        with self.path.open("w", newline="") as file:
            csv.writer(file).writerows([("stage", "name", "term", "step", "value"), *sorted(self.rows)])


class WandbView:
    """A W&B run named after its folder; offline it needs no account, `wandb sync` uploads it later."""

    def __init__(self, spec: LoggerSpec, folder: Path) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb
        from wandb.errors import Error

        name = f"{folder.parent.name}/{folder.name}"
        self.folder = folder
        self.wandb = wandb
        try:
            self.run = wandb.init(
                project=spec.project,
                name=name,
                id=hashlib.sha256(name.encode()).hexdigest()[:16],  # the same command continues the same run
                resume="allow",
                mode="online" if spec.mode == "online" else "offline",
                dir=folder,
                settings=wandb.Settings(console="off", x_disable_stats=True),
            )
        except Error as error:
            reason = str(error).split("\n")[0]
            raise UserError(f"W&B cannot be reached ({reason}); type wandb login first, or mode=offline") from error
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def curves(self, stage: str, name: str, curves: dict[str, list[float]]) -> None:
        for step in range(max(map(len, curves.values()), default=0)):
            values = {f"{stage}/{name}/{term}": v[step] for term, v in curves.items() if step < len(v)}
            self.run.log({"step": step, **values})

    def finish(self, captions: dict[str, str]) -> None:
        import pandas as pd

        self.run.config.update({"manifest": json.loads((self.folder / "manifest.json").read_text())})
        by_row: dict[str, list[Any]] = {}
        for path, caption in captions.items():
            with Image.open(self.folder / path) as image:
                shown = self.wandb.Image(image.copy(), caption=caption)
            by_row.setdefault(Path(path).parts[1], []).append(shown)
        self.run.log({f"images/{row}": images for row, images in by_row.items()})
        table = pd.read_csv(self.folder / "table.csv")
        self.run.log({"table": self.wandb.Table(dataframe=table)})
        self.run.finish()
