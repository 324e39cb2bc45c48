"""The files in docs/results/: small copies of results, each with its command, commit and base model.

    docs/results/<name>/made.json      {command, commit, base, date}
    docs/results/<name>/*.csv          tables; scores.csv has one line per row and metric of a report
    docs/results/<name>/*.md           texts of studies
    docs/results/<name>/<part>.*       the same of one of several tables, such as 2_subjects.scores.csv

`python docs/generate.py --from outputs/<name>` copies them.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from lorabench.base import ASSETS
from lorabench.report.comparing import ALPHA

FOLDER = Path(__file__).parent / "results"
MADE, SCORES, REPORT = "made.json", "scores.csv", "table.csv"
COLUMNS = ("row", "metric", "mean", "low", "high", "pairs", "difference", "p_holm", "separated")
MOST = 300_000  # bytes of a file; docs have tables and no raw scores


def copy(folder: Path, command: str | None = None, target: Path | None = None) -> Path:
    """Copy the tables of a finished experiment and return their new folder.

    Args:
        folder: The folder of the experiment, "outputs/<name>".
        command: The command that made it. None: `python run.py experiments=<name>`.
        target: New folder. None: docs/results/<name>.

    Raises:
        SystemExit: If the folder has no tables.
    """
    name = folder.resolve().name
    found = parts(folder)
    if not found:
        raise SystemExit(f"error: {folder} has no table.csv and no study; use --from outputs/<name>")
    target = target or FOLDER / name
    target.mkdir(parents=True, exist_ok=True)
    for old in target.iterdir():
        old.unlink()
    for part, source in found.items():
        start = f"{part}." if part else ""
        files = [*source.glob("*.csv"), *source.glob("*.md")]
        if (source / REPORT).is_file():
            lines_of(pd.read_csv(source / REPORT)).to_csv(target / f"{start}{SCORES}", index=False, float_format="%.4g")
            files = [file for file in files if file.stem != "table" and file.with_suffix(".md").is_file()]
        for file in files:
            if file.stat().st_size <= MOST:
                (target / f"{start}{file.name}").write_bytes(file.read_bytes())
    made = {
        "command": command or f"python run.py experiments={name}",
        "commit": commit(),
        "base": base_of(next(iter(found.values()))),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    (target / MADE).write_text(json.dumps(made, indent=1) + "\n")
    return target


def parts(folder: Path) -> dict[str, Path]:
    """Return the folders with tables: the folder itself, or by name those in it, "" if there is a single one."""
    if (folder / REPORT).is_file():
        return {"": folder}
    below = [each for each in sorted(folder.iterdir()) if each.is_dir() and any(each.glob("*.csv"))]
    return {each.name if len(below) > 1 else "": each for each in below}


def lines_of(wide: pd.DataFrame) -> pd.DataFrame:
    """Return a report's table.csv with one line per row and metric; rows of publications are left out."""
    wide = wide.loc[wide["reported"].isna()] if "reported" in wide else wide
    metrics = [name.removesuffix("_low") for name in wide if f"{name.removesuffix('_low')}_high" in wide.columns
               and name.endswith("_low") and not name.endswith(("bca_low", "difference_low", "rank_low"))]  # fmt: skip
    lines = []
    for row in wide.to_dict("records"):
        for metric in metrics:
            if pd.notna(row[metric]):
                p = row[f"{metric}_p_holm"]
                line = {"row": row["method"], "metric": metric, "mean": row[metric], "p_holm": p}
                line |= {key: row[f"{metric}_{key}"] for key in ("low", "high", "pairs", "difference")}
                lines.append(line | {"separated": "" if pd.isna(p) else "yes" if p <= ALPHA else "no"})
    return pd.DataFrame(lines, columns=list(COLUMNS))


def base_of(folder: Path) -> str:
    """Return the base model of a result: the name and hash in a run's manifest, else the packaged model."""
    for file in [folder / "manifest.json", *sorted(folder.glob("*/manifest.json"))]:
        manifest = json.loads(file.read_text()) if file.is_file() else {}
        digest = (manifest.get("inputs") or {}).get("the weights of the model")
        if digest and manifest["model"] != "micro":
            return f"{manifest['model']}, weights {digest[:12]}"
    return packaged()


def packaged() -> str:
    """Return the version of the packaged model: samples that it was trained on, and the hash of its weights."""
    samples = json.loads((ASSETS / "training.json").read_text())["samples"]
    weights = sorted((ASSETS / "micro_sdxl" / "unet").glob("*.safetensors"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in weights)).hexdigest()
    return f"micro, {samples:,} samples, weights {digest[:12]}"


def commit() -> str:
    """Return the commit of the working copy, with a plus if it has changes."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def made(name: str) -> Mapping[str, str] | None:
    """Return command, commit, base and date of a result; None if it has not been measured."""
    file = FOLDER / name / MADE
    return json.loads(file.read_text()) if file.is_file() else None
