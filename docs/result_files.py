"""The files in docs/results/: small copies of results, each with its command, commit and base model.

    docs/results/<name>/made.json      {command, commit, base, date, reference}
    docs/results/<name>/*.csv          tables; scores.csv has one line per row and metric of a report, comparisons.csv
                                       the planned comparisons with other rows than the reference, and published orders;
                                       costs.csv the seconds, passes and bytes of each row
    docs/results/<name>/*.md           texts of studies
    docs/results/<name>/<part>.*       the same of one of several tables, such as 2_subjects.scores.csv

`python docs/generate.py --from outputs/<name>` copies them.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from subprocess import CalledProcessError
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import yaml

from lorabench.base import ASSETS
from lorabench.engine.commit import git
from lorabench.engine.output_folder import INCOMPLETE, MANIFEST, UNFINISHED
from lorabench.engine.store import Store
from lorabench.models.files import ModelFiles
from lorabench.report.comparing import ALPHA
from lorabench.report.folder import SCORES as RUN_SCORES
from lorabench.report.planned import shown_apart
from lorabench.report.table import COSTS as COST_LABELS

FOLDER = Path(__file__).parent / "results"
MADE, SCORES, REPORT, COMPARISONS, COSTS = "made.json", "scores.csv", "table.csv", "comparisons.csv", "costs.csv"
DIFFERENCE = ("difference", "difference_low", "difference_high")
COLUMNS = ("row", "metric", "mean", "low", "high", "pairs", *DIFFERENCE, "p_holm", "separated")
COMPARED = ("family", "label", "against", "metric", *DIFFERENCE, "p_holm", "separated")
MOST = 300_000  # bytes of a file; docs have tables and no raw scores


def copy(folder: Path, command: str | None = None, target: Path | None = None) -> Path:
    """Copy the tables of a finished experiment and return their new folder.

    Args:
        folder: The folder of the experiment, "outputs/<name>".
        command: The command that made it. None: `python run.py experiments=<name>`.
        target: New folder. None: docs/results/<name>.

    Raises:
        SystemExit: If the folder does not exist or has no tables, or a run in it is not finished.
    """
    name = folder.resolve().name
    if not folder.is_dir():
        raise SystemExit(f"error: {folder} is not a folder; use --from outputs/<name>")
    found = parts(folder)
    if not found:
        raise SystemExit(f"error: {folder} has no table.csv and no study; use --from outputs/<name>")
    manifests = {file.parent: json.loads(file.read_text()) for source in found.values()
                 for file in run_files(source, MANIFEST)}  # fmt: skip
    check_finished(manifests)
    commits, base, reference = commits_of(manifests), base_of(manifests), reference_of(next(iter(found.values())))
    target = target or FOLDER / name
    target.mkdir(parents=True, exist_ok=True)
    for old in target.iterdir():
        old.unlink()
    for part, source in found.items():
        start = f"{part}." if part else ""
        files = [*source.glob("*.csv"), *source.glob("*.md")]
        if (source / REPORT).is_file():
            wide = own_rows(pd.read_csv(source / REPORT))
            lines_of(wide).to_csv(target / f"{start}{SCORES}", index=False, float_format="%.4g")
            costs_of(wide).to_csv(target / f"{start}{COSTS}", index=False, float_format="%.4g")
            files = [file for file in files if file.stem != "table" and file.with_suffix(".md").is_file()]
            if len(others := compared_with_others(source / COMPARISONS, reference)):
                others.to_csv(target / f"{start}{COMPARISONS}", index=False, float_format="%.4g")
        for file in files:
            if file.stat().st_size <= MOST:
                (target / f"{start}{file.name}").write_bytes(file.read_bytes())
            else:
                print(f"{file} has more than {MOST:,} bytes and is left out", file=sys.stderr)
    made = {
        "command": command or f"python run.py experiments={name}",
        "commit": commits,
        "base": base,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "reference": reference,
    }
    (target / MADE).write_text(json.dumps(made, indent=1) + "\n")
    return target


def parts(folder: Path) -> dict[str, Path]:
    """Return the folders with tables: the folder itself, or by name those in it, "" if there is a single one."""
    if (folder / REPORT).is_file():
        return {"": folder}
    below = [each for each in sorted(folder.iterdir()) if each.is_dir() and any(each.glob("*.csv"))]
    return {each.name if len(below) > 1 else "": each for each in below}


def check_finished(manifests: Mapping[Path, Mapping[str, Any]]) -> None:
    """Check that studies and runs are finished, and that nothing in them failed.

    Args:
        manifests: Manifests by folder, as in the functions below.

    Raises:
        SystemExit: If one is not.
    """
    for folder, manifest in manifests.items():
        is_run = (folder / RUN_SCORES).is_file()
        if {UNFINISHED, INCOMPLETE} & manifest.keys() or (is_run and "key" not in manifest):
            raise SystemExit(f"error: {folder} is not finished, or parts of it failed; run its command again")


def own_rows(wide: pd.DataFrame) -> pd.DataFrame:
    """Return a report's table.csv without the rows of publications."""
    return wide.loc[wide["reported"].isna()] if "reported" in wide else wide


def costs_of(wide: pd.DataFrame) -> pd.DataFrame:
    """Return the costs in a report's table.csv, one line per row."""
    return wide[["method", *(name for name in COST_LABELS if name in wide)]].rename(columns={"method": "row"})


def lines_of(wide: pd.DataFrame) -> pd.DataFrame:
    """Return a report's table.csv with one line per row and metric."""
    metrics = [name.removesuffix("_low") for name in wide if f"{name.removesuffix('_low')}_high" in wide.columns
               and name.endswith("_low") and not name.endswith(("bca_low", "difference_low", "rank_low"))]  # fmt: skip
    lines = []
    for row in wide.to_dict("records"):
        for metric in metrics:
            if pd.notna(row[metric]):
                p = row[f"{metric}_p_holm"]
                line = {"row": row["method"], "metric": metric, "mean": row[metric], "p_holm": p}
                line |= {key: row[f"{metric}_{key}"] for key in ("low", "high", "pairs", *DIFFERENCE)}
                lines.append(line | {"separated": "" if pd.isna(p) else "yes" if p <= ALPHA else "no"})
    return pd.DataFrame(lines, columns=list(COLUMNS))


def compared_with_others(file: Path, reference: str) -> pd.DataFrame:
    """Return the planned comparisons of a report that scores.csv, which has those with the reference, lacks."""
    if not file.is_file():
        return pd.DataFrame()
    return shown_apart(pd.read_csv(file), reference)[list(COMPARED)]


def run_files(folder: Path, name: str) -> list[Path]:
    """Return the files of this name of a run, or of the runs in a folder."""
    return [file for file in (folder / name, *sorted(folder.glob(f"*/{name}"))) if file.is_file()]


def reference_of(folder: Path) -> str:
    """Return the row that differences refer to, from the config of a run; "" for a study."""
    configs = [yaml.safe_load(file.read_text()) for file in run_files(folder, "config.yaml")]
    return next((str(config["reference"]) for config in configs if config.get("reference")), "")


def commits_of(manifests: Mapping[Path, Mapping[str, Any]]) -> str:
    """Return the commits of the code that made a result, usually one, separated by commas.

    Raises:
        SystemExit: If a manifest has none.
    """
    if not manifests:
        raise SystemExit("error: the folder has no manifest.json; run its command again")
    if lost := next((folder for folder, manifest in manifests.items() if not manifest.get("commit")), None):
        raise SystemExit(f"error: {lost} has no commit; run its command again in a checkout of this code")
    return ",".join(sorted({manifest["commit"] for manifest in manifests.values()}))


def base_of(manifests: Mapping[Path, Mapping[str, Any]]) -> str:
    """Return the base model of a result: the name and hash in a run's manifest, else the packaged model.

    Manifests of studies have no hash; the weights of their commit count.

    Raises:
        SystemExit: If something was made with other weights than those that the package has now.
    """
    for folder, manifest in manifests.items():
        digest = (manifest.get("inputs") or {}).get("the weights of the model")
        if digest and manifest["model"] != "micro":
            return f"{manifest['model']}, weights {digest[:12]}"
        if not (digest == packaged_digest() if digest else is_packaged_at(manifest["commit"].removesuffix("+"))):
            raise SystemExit(f"error: {folder} was made with other weights of micro than those here; run it again")
    return packaged()


def is_packaged_at(commit: str) -> bool:
    """Return whether a commit has the packaged weights of now."""
    try:
        git("diff", "--quiet", commit, "--", str(ASSETS / "micro_sdxl"))
        return True
    except CalledProcessError:  # they differ, or the commit is not known
        return False


@cache
def packaged_digest() -> str:
    """Return the hash of the packaged model, as in manifests."""
    folder = ASSETS / "micro_sdxl"
    with TemporaryDirectory() as scratch:
        return Store(Path(scratch)).digest(*ModelFiles(folder, folder).sources())


def packaged() -> str:
    """Return the version of the packaged model: samples that it was trained on, and the hash of its weights."""
    samples = json.loads((ASSETS / "training.json").read_text())["samples"]
    weights = sorted((ASSETS / "micro_sdxl" / "unet").glob("*.safetensors"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in weights)).hexdigest()
    return f"micro, {samples:,} samples, weights {digest[:12]}"


def made(name: str) -> Mapping[str, str] | None:
    """Return command, commit, base and date of a result; None if it has not been measured."""
    file = FOLDER / name / MADE
    return json.loads(file.read_text()) if file.is_file() else None
