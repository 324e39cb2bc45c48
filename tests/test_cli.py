"""The benchmark on the command line: a complete run, a repeated, resumed and interrupted one, any number of workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from commands import Commands
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from test_costs import tells_peaks

ROOT = Path(__file__).parents[1]
PAIRS = ("mug_1+halftone_1", "mug_1+ink_1")
WORLD = [
    "dataset.subjects=[mug_1]", "dataset.styles=[halftone_1,ink_1]", "dataset.content_images=2",
    "dataset.style_images=2", "dataset.references=2",
]  # fmt: skip
DUOLORA = ["method=duolora", "method.fit.steps=2"]
FOLDER = "adhoc/duolora-none-s0"


def hashes(folder: Path, pattern: str) -> dict[str, str]:
    """Return the hash of each file by relative path."""
    return {
        str(f.relative_to(folder)): sha256(f.read_bytes()).hexdigest()
        for f in sorted(folder.rglob(pattern))
        if f.is_file()
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> tuple[Path, list[str], str]:
    """Return output folder, command line and printed text of a finished run."""
    output = tmp_path_factory.mktemp("output")
    arguments = [*tiny, *WORLD, *DUOLORA, f"output={output}", "logger=csv", "trainer.workers=2"]
    command = [sys.executable, str(ROOT / "run.py"), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return output, arguments, done.stdout


def test_run_folder_is_complete(run: tuple[Path, list[str], str]) -> None:
    output, _, printed = run
    folder = output / FOLDER
    files = {"config.yaml", "manifest.json", "scores.parquet", "table.md", "table.csv", "grid.png", "report.html"}
    assert files <= {file.name for file in folder.iterdir()}
    rows = {"base", "content_only", "style_only", "oracle", "duolora"}
    expected = {f"{row}/{pair}/{i:02d}.png" for row in rows for pair in PAIRS for i in range(2)}
    assert set(hashes(folder / "images", "*.png")) == expected
    assert set(hashes(folder / "merged", "*")) == {f"{pair}.safetensors" for pair in PAIRS}
    assert set(hashes(folder / "references", "*")) >= {"content/mug_1/0.png", "style/ink_1/1.png"}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["method"], manifest["ablation"], manifest["dataset"]) == ("duolora", "none", "microworld")
    costs = manifest["costs"]
    merge = {"learned_parameters", "merge_seconds", "merge_denoiser_passes"}
    sampling = {"seconds_per_image", "denoiser_passes_per_image"}
    assert set(costs) - {"merge_peak_bytes"} == merge | sampling | {"lora_seconds"}
    assert costs["denoiser_passes_per_image"] == 4  # 2 guided steps
    assert not tells_peaks() or costs["merge_peak_bytes"] > 1e8
    assert all(manifest["timings"][stage] > 0 for stage in ("personalize", "merge", "generate", "score"))
    assert {len(v) for pair in PAIRS for v in manifest["losses"][pair].values()} == {2}
    curves = (folder / "curves.csv").read_text().splitlines()
    assert curves[0] == "stage,name,term,step,value"
    assert len([line for line in curves if line.startswith("personalize,mug_1,loss")]) == 3
    assert printed.strip().endswith(str(folder / "report.html"))
    assert (folder / "table.md").read_text().strip() in printed


def test_scores_are_tidy_rows(run: tuple[Path, list[str], str]) -> None:
    import pandas as pd

    scores = pd.read_parquet(run[0] / FOLDER / "scores.parquet")
    assert set(scores["method"]) == {"base", "content_only", "style_only", "oracle", "duolora"}
    assert {"dino/content", "clip_i/style", "clip_t", "csd/style"} <= set(scores["metric"])
    key = ["method", "content", "style", "prompt", "image", "metric", "reference"]
    assert not any(scores.duplicated(key))
    assert all(scores["value"].between(-1, 1))
    seeds = scores.groupby(["content", "style", "image"])["seed"].nunique()
    assert set(seeds) == {1}  # every row starts from the same noise


def test_merged_lora_loads_in_diffusers(run: tuple[Path, list[str], str], folder: Path) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
    pipeline.load_lora_weights(str(run[0] / FOLDER / "merged"), weight_name=f"{PAIRS[0]}.safetensors")
    assert pipeline.get_active_adapters()


def test_same_command_again_finds_everything_done(run: tuple[Path, list[str], str]) -> None:
    output, arguments, printed = run
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    code = (
        "import atexit, runpy, sys; sys.argv = ['run.py', *sys.argv[1:]]\n"
        "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n"
        "runpy.run_path('run.py', run_name='__main__')"
    )
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, printed), result.stderr
    assert result.stderr.strip() == "False"  # nothing heavy was imported
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()} == before


def test_second_method_finds_loras_and_baselines(run: tuple[Path, list[str], str], commands: Commands) -> None:
    output, arguments, _ = run
    made = {path.parent.name for path in output.glob("store/*/*/key.json")}
    done = commands.run(*[a for a in arguments if a not in DUOLORA], "method=direct", "trainer.workers=0")
    assert done.returncode == 0, done.stderr
    new = [path for path in output.glob("store/*/*/key.json") if path.parent.name not in made]
    assert sorted(path.parts[-3] for path in new) == ["embed"] * 6 + ["generate"] * 2 + ["merge"] * 2 + ["score"] * 2
    assert (output / FOLDER / "report.html").is_file()


def test_killed_and_resumed_in_this_process_gives_same(
    run: tuple[Path, list[str], str], commands: Commands, tmp_path: Path
) -> None:
    """The run is killed while it trains LoRAs, and resumed without workers, because their number must not matter."""
    output, arguments, _ = run
    elsewhere = [*arguments, f"output={tmp_path}"]
    killed = commands.start(*elsewhere, "trainer.workers=1")
    killed.wait_for(lambda: list(tmp_path.glob("store/personalize/*/key.json")))
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.end().returncode == -signal.SIGKILL
    assert "key" not in json.loads((tmp_path / FOLDER / "manifest.json").read_text())  # ours, and not done
    done = commands.run(*elsewhere, "trainer.workers=0")
    assert done.returncode == 0, done.stderr
    for part in ("images", "merged", "references"):
        assert hashes(tmp_path / FOLDER / part, "*.*") == hashes(output / FOLDER / part, "*.*")
    assert hashes(tmp_path / FOLDER, "table.csv")


def test_ctrl_c_says_how_to_resume(run: tuple[Path, list[str], str], commands: Commands, tmp_path: Path) -> None:
    command = commands.start(*run[1], f"output={tmp_path}", "lora.steps=100000", "trainer.workers=1")
    command.wait_for(lambda: list(tmp_path.glob("store/.drafts/*")))
    os.killpg(command.pid, signal.SIGINT)
    done = command.end()
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().endswith("interrupted; finished artifacts are kept; run the same command to resume")
