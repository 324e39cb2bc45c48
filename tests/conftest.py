"""Fixtures: a tiny random SDXL, a pair of rendered concepts and small settings, so that stages run in milliseconds."""

from __future__ import annotations

import gc
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Before numpy is imported: threads of several test processes wait for each other, 40 times as long in numpy's SVD.
# Merges without a model use as many threads and would leave their number to the tests that follow.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from commands import Commands
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image
from shared_model import shared
from tiny_scorers import write_scorer

from lorabench.base import CONF, UserError, seed_of
from lorabench.config.register import register
from lorabench.config.schemas import GenerateSpec, LoRASpec, TrainerSpec
from lorabench.data.concepts import Concept, Reference
from lorabench.data.pairs import Pair
from lorabench.data.pairs import pair as make_pair
from lorabench.data.scenes import Prompts
from lorabench.lora.adapter import Factors, LoRA
from lorabench.merging.hypernetwork import Hypernetwork
from lorabench.models.model import DiffusionModel
from lorabench.models.sdxl.model import SDXL
from lorabench.scoring.description import KINDS
from lorabench.tasks import composition  # noqa: F401 (registers a resolver)
from pretraining.architecture import build_pipeline, build_text_encoders, build_unet, build_vae
from pretraining.tokens import build_tokenizer

# Shells start background jobs with SIGINT ignored, and the tested commands would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The longest files start first, so that all test processes end at about the same time.
SLOW = (
    "faults",
    "distributed",
    "cli",
    "config",
    "methods",
    "golden",
    "own",
    "slurm",
    "page_browser",
    "wheel",
    "merge",
    "pretraining_build",
    "pretraining",
    "workers",
)

torch.set_num_threads(1)
CPU = TrainerSpec(accelerator="cpu", precision="32-true", workers=0, threads=1)
SDXL_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-golden", action="store_true", help="write tests/golden.json instead of comparing")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {f"test_{name}": number for number, name in enumerate(SLOW)}
    items.sort(key=lambda item: place.get(item.path.stem, len(SLOW)))


def pytest_collection_finish() -> None:
    """Exclude half a million objects of the imported libraries from garbage collections, which take a third second."""
    gc.freeze()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a random SDXL pipeline with the structure of the micro model and few channels."""
    torch.manual_seed(0)
    pipeline = build_pipeline(
        unet=build_unet(widths=(8, 16, 16), heads=(1, 2, 2), layers=(1, 1, 2), text_width=32, groups=8),
        vae=build_vae(widths=(8, 8, 8), groups=8),
        text_encoders=build_text_encoders(build_tokenizer(), text_width=32, layers=2),
    )
    path = tmp_path_factory.mktemp("model") / "tiny_sdxl"
    pipeline.save_pretrained(path)
    return path


def build_koala(path: Path, middle: bool) -> SDXL:
    """Build a random SDXL with KOALA's structure and one layer per block; the small variant has no middle block."""
    torch.manual_seed(0)
    unet: Any = build_unet(widths=(8, 16, 16), heads=(1, 2, 2), layers=(1, 1, 2), text_width=32, groups=8)
    config = {**unet.config, "layers_per_block": 1, **({} if middle else {"mid_block_type": None})}
    text = build_text_encoders(build_tokenizer(), text_width=32, layers=2)
    build_pipeline(type(unet).from_config(config), build_vae((8, 8, 8), groups=8), text).save_pretrained(path)
    return SDXL.load(path)


@pytest.fixture
def model(folder: Path) -> Iterator[SDXL]:
    with shared(folder) as model:
        yield model


@pytest.fixture
def loras(model: SDXL) -> tuple[LoRA, LoRA]:
    """Return random content and style LoRAs of ranks 3 and 2 that change the output visibly."""
    return random_lora(model, 3, "content"), random_lora(model, 2, "style")


def random_lora(model: DiffusionModel, rank: int, name: str, scale: float = 0.3) -> LoRA:
    factors = {}
    for layer, module in model.layers.trained().items():
        draw = torch.Generator().manual_seed(seed_of(name, layer))
        down = torch.randn(rank, module.in_features, generator=draw) * scale
        factors[layer] = Factors(down, torch.randn(module.out_features, rank, generator=draw) * scale)
    return LoRA(factors)


@pytest.fixture
def pair() -> Pair:
    prompts = Prompts()
    photos = [reference("mug", prompts.content("mug"), color) for color in ("red", "orange")]
    pictures = [reference(word, prompts.style(word), color) for word, color in (("boat", "blue"), ("tree", "teal"))]
    content = Concept("mug_1", "content", "mug", tuple(photos), tuple(photos))
    style = Concept("halftone_1", "style", "halftone style", tuple(pictures), tuple(pictures))
    return make_pair((content,), (style,), prompts)


def reference(word: str, prompt: str, color: str) -> Reference:
    return Reference(word, prompt, f"sha-{color}", partial(Image.new, "RGB", (64, 64), color))


@pytest.fixture
def lora_spec() -> LoRASpec:
    return LoRASpec(
        rank=2,
        alpha=4,
        blocks=[],
        text_encoders=False,
        text_lr=1e-3,
        steps=3,
        batch=2,
        accumulate=1,
        optimizer="adamw",
        lr=1e-2,
        betas=(0.9, 0.999),
        weight_decay=0.01,
        schedule="constant",
        cycles=1,
        warmup=1,
        max_grad_norm=1.0,
        min_snr=None,
        prior_weight=0.0,
        prior_images=2,
        flips=False,
        crops=0,
        sample_every=0,
    )


@pytest.fixture(scope="session")
def hypernetwork(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a random LoRA.rar network for the width of the tiny model; the shipped one fits only the micro model."""
    return random_hypernetwork(tmp_path_factory.mktemp("hypernetwork"), 16)


def random_hypernetwork(folder: Path, width: int) -> Path:
    """Write a random LoRA.rar network for layers of a width, and return its file."""
    torch.manual_seed(0)
    path = folder / "tiny.safetensors"
    Hypernetwork([width]).save(path, {"model": "tiny"})
    return path


@pytest.fixture
def generate_spec() -> GenerateSpec:
    return GenerateSpec(images=2, steps=3, guidance=3.0, batch=2)


@pytest.fixture(scope="session")
def commands() -> Iterator[Commands]:
    """Run `python run.py` without the seconds that imports take."""
    with Commands() as commands:
        yield commands


@pytest.fixture(scope="session")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with tiny random scorers."""
    root = tmp_path_factory.mktemp("scorers")
    for kind in KINDS:
        write_scorer(root / kind, kind)
    return root


@pytest.fixture(scope="session")
def tiny(folder: Path, scorers: Path) -> list[str]:
    """Return overrides with which a whole run takes seconds: random weights and two images per pair."""
    return [
        f"model.path={folder}", f"scorers.path={scorers}", "logger=none", "trainer.workers=0", "lora.rank=2",
        "lora.steps=3", "lora.batch=2", "generate.images=2", "generate.steps=2",
    ]  # fmt: skip


@pytest.fixture
def hydra() -> Iterator[None]:
    """Allow `hydra.compose` to compose the project's configuration."""
    with project_config():
        yield


@pytest.fixture
def refused(tiny: list[str], tmp_path: Path, hydra: None) -> Callable[..., None]:
    """Return a function that checks that a task is refused in one line and before any training."""

    def check(run: Callable[[DictConfig, Path], Any], overrides: list[str], words: str) -> None:
        with pytest.raises(UserError, match=re.escape(words)) as error:
            run(compose("config", [*tiny, *overrides, f"output={tmp_path}"]), tmp_path)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "store" / "personalize").exists()

    return check


register_once = cache(register)


@contextmanager
def project_config() -> Iterator[None]:
    register_once()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield
