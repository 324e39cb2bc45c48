"""task=merge and task=generate: merge the user's own LoRAs into one file, or generate images with them.

    python run.py task=merge content=a.safetensors style=b.safetensors method=direct output=merged.safetensors
    python run.py task=generate content=a.safetensors style=b.safetensors method=direct prompt="a sks dog in szn style"

Images for merges that learn are generated once and kept in the store if the user gives none.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from lorabench.base import UserError, seed_of
from lorabench.data.scenes import Scene
from lorabench.engine.bar import Bar
from lorabench.engine.devices import claim_here
from lorabench.engine.output_folder import MANIFEST, OutputFolder, make_folder
from lorabench.engine.own_files import check_replaceable
from lorabench.engine.workers import use_threads
from lorabench.merging.method import Method
from lorabench.sampling.routing import LEARNED, unmarked
from lorabench.tasks.file_request import Request, origin, resolved
from lorabench.tasks.merge_files import check_file, image_cost, work

if TYPE_CHECKING:
    from lorabench.sampling.parts import Parts

INSTEAD = "output=<a new .safetensors file>"
AUTO = "auto"  # task.rank: of each layer, by `task.keep`
EXACT = 5e-5  # an error below is that of rounding, 0.00 %


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
        request.check_sampling()
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
    size = request.output.stat().st_size if request.output.exists() else 0  # token embeddings may be all there is
    print(f"{request.output}  ({', '.join([*notes, f'rank {merged.rank}', f'{size / 1e6:.1f} MB'])})")


def check_rank(rank: Any) -> None:
    """Check `task.rank`.

    Raises:
        UserError: If it is not a number from 1 on, "auto" or None.
    """
    if rank is not None and rank != AUTO and (not isinstance(rank, int) or isinstance(rank, bool) or rank < 1):
        raise UserError(f"task.rank={rank} must be at least 1 or auto; use task.rank=auto task.keep=0.99")


def merges_text(method: Method) -> bool:
    """Return whether the method's rule applies to text encoders; else their updates are summed."""
    return not method.merge.needs_model


def cores() -> int:
    """Return the number of cores for this process, or OMP_NUM_THREADS if it is set."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) else len(os.sched_getaffinity(0))


def generate(request: Request) -> None:
    """Generate images of the prompt by the method, one per seed."""
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
    request.check_sampling()
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
