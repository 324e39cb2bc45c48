"""task=merge and task=generate: the user's own LoRAs merged into one file, or drawn with.

    python run.py task=merge content=a.safetensors style=b.safetensors method=direct output=merged.safetensors
    python run.py task=generate content=a.safetensors style=b.safetensors method=direct prompt="a sks dog in szn style"

Images that a merge learns from and that nobody gave are drawn once and kept in the store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from errno import EACCES
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from lorabench.base import UserError, seed_of
from lorabench.config.schemas import FileTask, GenerateSpec, ModelSpec, TrainerSpec
from lorabench.data.pairs import Reference
from lorabench.engine.artifact import Artifact
from lorabench.engine.bar import Bar
from lorabench.engine.devices import claim_here
from lorabench.engine.failures import unwritable
from lorabench.engine.record import sha256
from lorabench.engine.store import Store
from lorabench.engine.workers import use_threads
from lorabench.merging.method import Method
from lorabench.models.files import ModelFiles, model_files
from lorabench.report.folder import label
from lorabench.tasks.composition import ablation_of, method_of
from lorabench.tasks.jobs import nothing
from lorabench.tasks.merge_files import check_file, drawn, image_cost, merged, work
from lorabench.tasks.user_loras import OwnLoRA, OwnPair

if TYPE_CHECKING:
    from lorabench.lora.adapter import LoRA
    from lorabench.merging.merge import Merged
    from lorabench.models.model import DiffusionModel
    from lorabench.sampling.parts import Parts

EXACT = 5e-5  # an error below is that of rounding, 0.00 %


@dataclass(frozen=True)
class Job:
    """What the command line asks for; name: of the method with its ablation, as typed.  root: the store's folder."""

    name: str
    own: OwnPair
    method: Method
    model: ModelSpec
    generation: GenerateSpec
    trainer: TrainerSpec
    task: FileTask
    root: Path
    seed: int
    output: Path

    @classmethod
    def of(cls, cfg: DictConfig) -> Job:
        """UserError where a file is missing or a prompt is needed."""
        typed: Any = {name: OmegaConf.to_object(cfg[name]) for name in ("model", "generate", "trainer", "task")}
        own = OwnPair(own_loras(cfg, "content"), own_loras(cfg, "style"), cfg.prompt)
        method = method_of(cfg)
        own.check(method)
        name = label(method.name, ablation_of())
        return cls(
            name, own, method, typed["model"], typed["generate"], typed["trainer"], typed["task"], Path(cfg.store),
            cfg.seed, Path(cfg.output),
        )  # fmt: skip

    @cached_property
    def store(self) -> Store:
        """Opened where something is kept: a sum of two files needs none."""
        return Store.open(self.root)

    @cached_property
    def files(self) -> ModelFiles:
        """Looked for once, which asks the hub where the model is a hub id."""
        return model_files(self.model)

    def merged(self, bar: Bar) -> Merged:
        cost = image_cost(self.generation)
        return merged(self.own, self.method, self.model, self.seed, self.trainer, self.kept, bar.reach, cost)

    def kept(self, model: DiffusionModel, own: OwnLoRA, lora: LoRA, progress: Callable[[int], None]) -> list[Reference]:
        """Images that a LoRA draws of its prompt, from the store."""
        from lorabench.data.images import image_paths, reference

        files = self.files
        params = {
            "model": {"weights": self.store.digest(*files.sources()), **files.numbers()},
            "precision": self.trainer.precision, "lora": sha256(Path(own.path)), "prompt": own.prompt,
            "generate": asdict(self.generation), "seed": self.seed,
        }  # fmt: skip

        def make(folder: Path) -> None:
            images = drawn(self.generation, self.seed, self.trainer, model, own, lora, progress)
            for index, image in enumerate(images):
                image.load().save(folder / f"{index:02d}.png")

        teachers = Artifact("teachers", Path(own.path).name, 1, params, nothing)
        folder = self.store.get_or_make(teachers, make)
        assert own.prompt
        return [reference(path, "", own.prompt) for path in image_paths(folder)]


def run(cfg: DictConfig, folder: Path) -> None:
    """Merge into a file, or draw; prints what was made and where it lies."""
    job = Job.of(cfg)
    use_threads(job.trainer.threads)
    (merge if cfg.task.name == "merge" else generate)(job)


def merge(job: Job) -> None:
    check_file(job.method)
    if job.output.suffix != ".safetensors" or job.output.is_dir():
        raise UserError(f"output={job.output} must be a .safetensors file; type output=merged.safetensors")
    make_folder(job.output.parent)  # before the long work
    place = job.trainer.accelerator if job.method.merge.needs_model else "cpu"
    with claim_here(place), Bar(work(job.own, job.method, job.generation), "merge") as bar:
        result = job.merged(bar)
    if not result.file:
        raise UserError(f"{job.name} leaves nothing of the LoRAs, so there is no file to write; type method=direct")
    lora, notes = result.file, [f"{len(result.file)} layers, {job.name}"]
    if result.error > EXACT:
        notes.append(f"relative error {result.error:.2%} at rank {lora.rank}")
    if job.task.rank is not None:
        lora, error = lora.compressed(job.task.rank)
        notes.append(str(error))
    origin = {"lorabench.method": job.name, "lorabench.seed": str(job.seed)}
    dtype = None if job.task.dtype == "same" else job.task.dtype
    lora.save(job.output, origin, job.task.format, dtype)
    print(f"{job.output}  ({', '.join([*notes, f'rank {lora.rank}', f'{job.output.stat().st_size / 1e6:.1f} MB'])})")


def generate(job: Job) -> None:
    """The method's images of the prompt, one a seed."""
    from PIL import Image

    from lorabench.sampling.generate import generate_by_rule
    from lorabench.tasks.jobs import load_model

    if not job.own.prompt:
        raise UserError("task=generate draws a prompt; type prompt='a sks dog in szn style'")
    make_folder(job.output)
    spec = job.generation
    cost = image_cost(spec)
    before = work(job.own, job.method, spec)
    with claim_here(job.trainer.accelerator), Bar(before + spec.images * cost, "generate") as bar:
        result = job.merged(bar)
        base = load_model(job.files, job.trainer.accelerator)
        seeds = [seed_of("image", job.own.prompt, index, job.seed) for index in range(spec.images)]

        def parts() -> Parts:
            found = job.method.merge.parts([each.read() for each in job.own.files], job.own.roles, result.masks)
            assert found is not None
            return found

        images = generate_by_rule(
            base, job.method.sampling, result.file, parts, [job.own.prompt] * spec.images, seeds, spec, job.trainer,
            lambda count: bar.reach(before + count * cost),
        )  # fmt: skip
    for index, image in enumerate(images):
        Image.fromarray(image).save(job.output / f"{index:02d}.png")
    print(f"{job.output}  ({len(images)} images, {job.name})")


def make_folder(folder: Path) -> None:
    """UserError unless files can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(unwritable(error.errno or EACCES, str(folder))) from None


def own_loras(cfg: DictConfig, role: str, needed: bool = True) -> tuple[OwnLoRA, ...]:
    """The LoRAs of a role; with several, prompts and images are lists of as many."""
    spec: Any = OmegaConf.to_container(cfg[role])
    paths = as_list(spec["lora"])
    if not paths and needed:
        raise UserError(f"task={cfg.task.name} needs a {role} LoRA; type {role}=<file.safetensors>")
    several = {key: as_list(spec[key]) or [None] * len(paths) for key in ("prompt", "images")}
    for key, values in several.items():
        if len(values) != len(paths):
            raise UserError(f"{role}.{key} has {len(values)} entries for {len(paths)} LoRAs; give one for each")
    return tuple(
        OwnLoRA(path, prompt, images or ())
        for path, prompt, images in zip(paths, several["prompt"], several["images"], strict=True)
    )


def as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
