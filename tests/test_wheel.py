"""An installed wheel works without the checkout: console command, Python API, configuration and experiments."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from lorabench.lora.adapter import LoRA

ROOT = Path(__file__).parents[1]
SOURCES = ("lorabench", "conf", "experiments", "setup.py", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the bin folder of an environment with the wheel and with this environment's dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)], folder)
    shutil.rmtree(source)
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    run([*pip, "--python", str(python), "install", "--no-deps", str(wheel)], folder)
    site = next((folder / "env" / "lib").glob("python*/site-packages"))
    # A path file, unlike PYTHONPATH, does not run the path files of that folder, so the checkout stays out.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return python.parent


def run(command: list[str], cwd: Path) -> str:
    """Run a command in a folder without PYTHONPATH and return its standard output."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def files(loras: tuple[LoRA, LoRA], tmp_path: Path) -> list[str]:
    for lora, name in zip(loras, ("a", "b"), strict=True):
        lora.save(tmp_path / f"{name}.safetensors")
    return ["a.safetensors", "b.safetensors"]


def test_wheel_gives_python_interface_without_checkout(environment: Path, tmp_path: Path) -> None:
    code = "import lorabench; from lorabench import merge; print(lorabench.__file__, merge.__name__)"
    file, name = run([str(environment / "python"), "-c", code], tmp_path).split()
    assert Path(file).is_relative_to(environment.parent) and name == "merge"


def test_console_command_composes_configuration(environment: Path, tmp_path: Path) -> None:
    printed = run([str(environment / "lorabench"), "--cfg", "job", "experiments=smoke"], tmp_path)
    assert "name: smoke\n" in printed
    assert "output: outputs\n" in printed


def test_console_command_merges_two_files(
    environment: Path, files: list[str], loras: tuple[LoRA, LoRA], folder: Path, tmp_path: Path
) -> None:
    content, style = files
    command = [str(environment / "lorabench"), "task=merge", f"content={content}", f"style={style}", "method=direct"]
    run([*command, "model=micro", f"model.path={folder}"], tmp_path)
    assert len(LoRA.load(tmp_path / "merged.safetensors")) == len(loras[0])
