"""task=merge and task=generate: merge the user's own LoRAs into one file, or generate images with them.

    python run.py task=merge content=a.safetensors style=b.safetensors method=direct output=merged.safetensors
    python run.py task=generate content=a.safetensors style=b.safetensors method=direct prompt="a sks dog in szn style"

Images for merges that learn are generated once and kept in the store if the user gives none.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from errno import EACCES
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from lorabench.base import UserError, __version__, seed_of
from lorabench.config.schemas import GenerateSpec, ModelSpec, TrainerSpec
from lorabench.config.task_schemas import FileTask
from lorabench.data.markers import parse
from lorabench.data.pairs import Reference, Scene
from lorabench.engine.artifact import Artifact
from lorabench.engine.bar import Bar
from lorabench.engine.devices import claim_here
from lorabench.engine.failures import unwritable
from lorabench.engine.output_folder import MANIFEST, OutputFolder
from lorabench.engine.own_files import VERSION, check_replaceable
from lorabench.engine.record import sha256
from lorabench.engine.store import Store
from lorabench.engine.work import Progress
from lorabench.engine.workers import use_threads
from lorabench.merging.method import Method
from lorabench.models.files import ModelFiles, model_files
from lorabench.report.labels import label
from lorabench.sampling.routing import LEARNED, unmarked
from lorabench.tasks.composition import ablation_of, method_of
from lorabench.tasks.given_loras import user_loras
from lorabench.tasks.merge_files import check_file, drawn, image_cost, merged, recognized, work
from lorabench.tasks.prompts import check_style_kept, readers_of
from lorabench.tasks.user_loras import UserLoRA, UserPair

if TYPE_CHECKING:
    from lorabench.lora.adapter import LoRA
    from lorabench.merging.merge import Merged
    from lorabench.models.model import DiffusionModel
    from lorabench.sampling.parts import Parts

INSTEAD = "output=<a new .safetensors file>"
AUTO = "auto"  # task.rank: of each layer, by `task.keep`
EXACT = 5e-5  # an error below is that of rounding, 0.00 %


@dataclass(frozen=True)
class Request:
    """What the command line asks for; name: of the method with its ablation, as typed.  root: the store's folder."""

    name: str
    own: UserPair
    method: Method
    model: ModelSpec
    generation: GenerateSpec
    trainer: TrainerSpec
    task: FileTask
    root: Path
    seed: int
    output: Path
    settings: Any = None  # settings of the method
    style_token: str = ""

    @classmethod
    def of(cls, cfg: DictConfig) -> Request:
        """UserError where a file is missing or a prompt is needed."""
        typed: Any = {name: OmegaConf.to_object(cfg[name]) for name in ("model", "generate", "trainer", "task")}
        own = UserPair(user_loras(cfg, "content"), user_loras(cfg, "style"), cfg.prompt).weighted(cfg.weights)
        method = method_of(cfg)
        own.check(method)
        name = label(method.name, ablation_of())
        is_chosen = any(each.startswith("model") for each in HydraConfig.get().overrides.task)
        model = typed["model"] if is_chosen or method.merge.needs_model else recognized(own, typed["model"])
        return cls(
            name, own, method, model, typed["generate"], typed["trainer"], typed["task"], Path(cfg.store),
            cfg.seed, Path(cfg.output), OmegaConf.to_container(cfg.method, resolve=True), cfg.prompts.style_token,
        )  # fmt: skip

    def check_prompts(self) -> None:
        """Warn of prompts that the model truncates; raise UserError if words of the style would be lost."""
        readers = readers_of(self.files, self.model.name)
        words = {self.style_token, *(word for own in self.own.styles for word in own.style_words)}
        for prompt in filter(None, [self.own.prompt, *(own.prompt for own in self.own.files)]):
            check_style_kept(parse(prompt).text, words, readers)
        if self.generation.negative:
            check_style_kept(self.generation.negative, (), readers)

    @cached_property
    def store(self) -> Store:
        """Open the store, on first use only: a sum of two files needs none."""
        return Store.open(self.root)

    @cached_property
    def files(self) -> ModelFiles:
        """Find the files of the model once; for a hub id this asks the hub."""
        return model_files(self.model)

    def merged(self, bar: Bar) -> Merged:
        cost = image_cost(self.generation)
        return merged(self.own, self.method, self.model, self.seed, self.trainer, self.kept, bar.reach, cost)

    def kept(
        self, model: DiffusionModel, own: UserLoRA, lora: LoRA, progress: Callable[[int], None]
    ) -> list[Reference]:
        """Return images that a LoRA generates from its prompt, from the store."""
        from lorabench.data.images import image_paths, reference
        from lorabench.lora.files.refuse import resolve

        files, spec = self.files, replace(self.generation, negative=None)
        params = {
            "model": {"weights": self.store.digest(*files.sources()), **files.numbers()},
            "precision": self.trainer.precision, "lora": sha256(resolve(own.file)), "weight": own.weight,
            "prompt": own.prompt, **by_blocks(own),
            "generate": spec.params(), "seed": self.seed,
        }  # fmt: skip

        def generate(folder: Path, progress: Progress) -> None:
            images = drawn(spec, self.seed, self.trainer, model, own, lora, progress)
            for index, image in enumerate(images):
                image.load().save(folder / f"{index:02d}.png")

        teachers = Artifact("teachers", Path(own.path).name, 1, params, generate)
        folder = self.store.get_or_make(teachers, lambda draft: generate(draft, progress))
        assert own.prompt
        return [reference(path, "", own.prompt) for path in image_paths(folder)]


def run(cfg: DictConfig, folder: Path) -> None:
    """Merge into a file, or generate images; print the path of the result."""
    request = Request.of(cfg)
    use_threads(request.trainer.threads)
    (merge if cfg.task.name == "merge" else generate)(request)


def merge(request: Request) -> None:
    """Merge into one file; layers of a sum go from file to file one at a time."""
    from lorabench.lora.files.embeddings import separate
    from lorabench.lora.files.write import check_name

    check_file(request.method)
    check_rank(request.task.rank)
    check_name(request.output)
    if request.output.suffix != ".safetensors" or request.output.is_dir():
        raise UserError(f"output={request.output} must be a .safetensors file; use output=merged.safetensors")
    if same := next((each for each in request.own.files if resolved(each) == request.output.resolve()), None):
        raise UserError(f"output={request.output} must not be an input ({same.path}); use output=merged.safetensors")
    make_folder(request.output.parent)  # before the long work
    check_replaceable(request.output, INSTEAD)
    merge = request.method.merge
    if merge.needs_model:
        request.check_prompts()
    else:
        use_threads(cores())
    place = request.trainer.accelerator if merge.needs_model or merge.dense else "cpu"
    with claim_here(place), Bar(work(request.own, request.method, request.generation), "merge") as bar:
        result = request.merged(bar)
    merged = result.file
    if merged.is_empty:
        raise UserError(f"{request.name} leaves nothing of the LoRAs, so there is no file to write; use method=direct")
    notes = []
    if result.error > EXACT:
        notes.append(f"relative error {result.error:.2%} at rank {merged.rank}")
    if request.task.rank is not None:
        merged, error = merged.compressed(None if request.task.rank == AUTO else request.task.rank, request.task.keep)
        notes.append(str(error))
    dtype = None if request.task.dtype == "same" else request.task.dtype
    for file in (request.output, *separate(merged.tokens, request.output)):
        check_replaceable(file, INSTEAD)
    written = merged.save(request.output, origin(request), request.task.format, dtype)
    text = sum(layer.startswith("text_encoder") for layer in written)
    counts = [f"{len(written) - text} layers, {request.name}"]
    if text:
        how = "" if merges_text(request.method) else " as their sum, because the method masks the denoiser only"
        counts.append(f"{text} of text encoders{how}")
    notes = [*counts, *notes]
    notes += [f"token {trigger}" for trigger in merged.tokens]
    size = (
        request.output.stat().st_size if request.output.exists() else 0
    )  # token embeddings only are in files beside it
    print(f"{request.output}  ({', '.join([*notes, f'rank {merged.rank}', f'{size / 1e6:.1f} MB'])})")


def check_rank(rank: Any) -> None:
    """UserError unless a rank is a number from 1 on, "auto" or None."""
    if rank is not None and rank != AUTO and (not isinstance(rank, int) or isinstance(rank, bool) or rank < 1):
        raise UserError(f"task.rank={rank} must be at least 1 or auto; use task.rank=auto task.keep=0.99")


def merges_text(method: Method) -> bool:
    """Return whether the method's rule applies to text encoders; else their updates are summed."""
    return not method.merge.needs_model


def resolved(own: UserLoRA) -> Path | None:
    """Return the file of a LoRA, without links; None if there is none."""
    from lorabench.lora.files.refuse import resolve

    try:
        return resolve(own.file).resolve()
    except UserError:
        return None


def origin(request: Request) -> dict[str, str]:
    """Return metadata of what was merged and how."""
    inputs = [
        {"role": role, "name": Path(own.path).name, "sha256": sha256(file), "weight": own.weight, **by_blocks(own)}
        for own, role in zip(request.own.files, request.own.roles, strict=True)
        if (file := resolved(own)) is not None
    ]
    return {
        VERSION: __version__, "lorabench.method": request.name, "lorabench.seed": str(request.seed),
        "lorabench.inputs": json.dumps(inputs), "lorabench.settings": json.dumps(request.settings, default=str),
        "lorabench.model": request.model.name,
    }  # fmt: skip


def by_blocks(own: UserLoRA) -> dict[str, Any]:
    """Return the weights by block of a LoRA as part of a key; nothing without."""
    return {} if own.blocks is None else {"blocks": own.blocks, "role": own.role}


def cores() -> int:
    """Return the number of cores for this process, or OMP_NUM_THREADS if it is set."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) else len(os.sched_getaffinity(0))


def generate(request: Request) -> None:
    """The method's images of the prompt, one a seed."""
    from PIL import Image

    from lorabench.sampling.generate import generate_by_rule
    from lorabench.tasks.jobs import load_model

    if (routing := request.method.sampling.routing) in LEARNED:
        raise UserError(
            f"method.routing={routing} needs the trainings of the LoRAs, which task=generate does not know; use "
            "method.routing=marker"
        )
    if not request.own.prompt:
        raise UserError("task=generate needs a prompt; use prompt='a sks dog in szn style'")
    make_folder(request.output)
    output = OutputFolder(request.output, "output=<an empty folder>")
    output.check()
    request.check_prompts()
    spec, scene = request.generation, Scene.of(request.own.prompt)
    if routing == "marker" and (off := unmarked(scene, request.own.roles)):
        print(f"note: the prompt marks no words of the {' and the '.join(off)}; these LoRAs are off", file=sys.stderr)
    cost = image_cost(spec)
    before = work(request.own, request.method, spec)
    with claim_here(request.trainer.accelerator), Bar(before + spec.images * cost, "generate") as bar:
        result = request.merged(bar)
        base = load_model(request.files, request.trainer.accelerator)
        seeds = [seed_of("image", scene.prompt, index, request.seed) for index in range(spec.images)]

        def parts() -> Parts | None:
            adapters = [each.read(request.model) for each in request.own.files]
            return request.method.merge.parts(adapters, request.own.roles, result.masks)

        images = generate_by_rule(
            base, request.method.sampling, result.file, parts, [scene] * spec.images, seeds, spec, request.trainer,
            lambda count: bar.reach(before + count * cost),
        )  # fmt: skip
    made = {"task": "generate", "method": request.name, "prompt": request.own.prompt, "negative": spec.negative,
            "seed": request.seed}  # fmt: skip
    with output.filled() as draft:
        for index, image in enumerate(images):
            Image.fromarray(image).save(draft / f"{index:02d}.png")
        (draft / MANIFEST).write_text(json.dumps(made))
    print(f"{request.output}  ({len(images)} images, {request.name})")


def make_folder(folder: Path) -> None:
    """Create a folder; raise UserError if files cannot be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(unwritable(error.errno or EACCES, str(folder))) from None
