"""task=unzip: one image as a content LoRA and a style LoRA, by UnZipLoRA.

    python run.py task=unzip image=cat.png content.prompt="a sks cat" style.prompt="watercolor painting" output=unzipped

Writes content.safetensors and style.safetensors, which other programs load, joint.safetensors, which is both by direct
addition, and contact.png. The training is kept in the store, so that the same command makes the same files quickly.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lorabench.base import __version__
from lorabench.data.concepts import ROLES, Reference
from lorabench.data.images import reference
from lorabench.engine.artifact import Artifact
from lorabench.engine.bar import Bar
from lorabench.engine.devices import claim_here, device_name
from lorabench.engine.output_folder import MANIFEST, OutputFolder, make_folder
from lorabench.engine.store import Store
from lorabench.engine.workers import use_threads
from lorabench.models.files import model_files
from lorabench.models.shapes import family_and_guidance, layer_map
from lorabench.personalization.schemes.unziplora import UnZipJob, check_unzip
from lorabench.personalization.training import Environment
from lorabench.sampling.rule import Context
from lorabench.scoring.files import scorer_set
from lorabench.tasks import unzip_sheet
from lorabench.tasks.checks import check_generation, check_rule
from lorabench.tasks.composition import ablation_of, method_of
from lorabench.tasks.jobs import load_model, load_scorer
from lorabench.tasks.unzip_inputs import check_sizes, image_sets, words_for
from lorabench.tasks.unzip_request import Unzip
from lorabench.tasks.unzip_words import Words

VERSION = 1  # raise it when the same settings give other adapters or looks
STEP, IMAGE = 3.0, 2.0  # cost of an image in a training step and in a sampling step, in forward passes


def run(cfg: DictConfig, folder: Path) -> None:
    """Unzip every image of the command line; prints the files and how good they are."""
    typed: Any = {
        name: OmegaConf.to_object(cfg[name]) for name in ("model", "generate", "trainer", "task", "lora", "scorers")
    }
    use_threads(typed["trainer"].threads)
    sets = image_sets(cfg.image)
    outputs = [Path(cfg.output) / name if len(sets) > 1 else Path(cfg.output) for name, _ in sets]
    files = model_files(typed["model"])
    scores = typed["task"].look_every or cfg.words == "suggest"
    unzip = Unzip(
        method_of(cfg), ablation_of(), files, cfg.model.name, cfg.model.name == "micro",
        scorer_set(typed["scorers"]).scorers if scores else (), typed["lora"], typed["generate"], typed["trainer"],
        typed["task"], Store.open(Path(cfg.store)), cfg.seed, OmegaConf.to_container(cfg.method, resolve=True),
    )  # fmt: skip
    check_unzip(unzip.lora)
    family, kind = family_and_guidance(files)
    check_generation(unzip.generation, family, kind)
    context = Context(ROLES, unzip.generation.steps, unzip.generation.guidance)
    check_rule(unzip.method, unzip.method.name, context, family, kind)
    unzip.scheme.check(layer_map(typed["model"]), unzip.lora)
    given = {role: cfg[role] and cfg[role].prompt for role in ("content", "style")}
    images = [tuple(reference(path, "", "") for path in paths) for _, paths in sets]
    for each in images:
        check_sizes(each)
    token, device = cfg.prompts.content_token, device_name(unzip.trainer.accelerator)
    words = [words_for(each, given, cfg.words, token, typed["scorers"], device, unzip.world) for each in images]
    for each in words:
        each.check()
    for output in outputs:
        make_folder(output)
        OutputFolder(output, "output=<an empty folder>").check()
    with claim_here(unzip.trainer.accelerator), Bar(len(sets) * work(unzip), "unzip") as bar:
        for index, (known, own_words, output) in enumerate(zip(images, words, outputs, strict=True)):
            before = index * work(unzip)
            lines = unzip_one(unzip, known, own_words, output, lambda done, before=before: bar.reach(before + done))
            print("\n".join(lines))


def work(unzip: Unzip) -> float:
    """Return the cost of an image, in forward passes of the denoiser."""
    return unzip.lora.steps * step_work(unzip) + unzip_sheet.count(unzip) * unzip.generation.steps * IMAGE


def step_work(unzip: Unzip) -> float:
    """Return the cost of a training step with its share of the looks."""
    recipe, spec, every = unzip.lora, unzip.generation, unzip.task.look_every
    return recipe.batch * recipe.accumulate * STEP + (spec.images * spec.steps * IMAGE / every if every else 0)


def unzip_one(
    unzip: Unzip, images: tuple[Reference, ...], words: Words, output: Path, progress: Callable[[float], None]
) -> list[str]:
    """Train on a set of images, and write the files of its folder.

    Returns:
        Lines about the files.
    """
    from lorabench.lora.adapter import Adapter
    from lorabench.lora.export import export
    from lorabench.tasks.reconstruction import FILE, file_error

    job = unzip.job(tuple(replace(each, prompt=words.prompts.full, word=words.subject) for each in images), words)
    artifact = artifact_of(unzip, job, words)
    each = step_work(unzip)

    def make(draft: Path) -> None:
        train(unzip, job, words, draft, lambda steps: progress(steps * each))

    folder = unzip.store.get_or_make(artifact, make)
    adapters = [Adapter.load(folder / f"{role}.safetensors") for role in ("content", "style")]
    looks = {int(step): value for step, value in json.loads((folder / FILE).read_text()).items()}
    base = load_model(unzip.model, unzip.trainer.accelerator)
    from lorabench.personalization.views import views

    latents = views(base, images, False, 0, 0).latents
    error = file_error(base, adapters, words.scene(), latents, unzip.scheme.prompt_separation)
    files = {
        "content": (adapters[0].unmasked(), words.prompts.content),
        "style": (adapters[1].unmasked(), words.prompts.style),
        "joint": (export(adapters), words.prompts.full),
    }  # fmt: skip
    sizes = []
    with OutputFolder(output, "output=<an empty folder>").filled() as draft:
        for name, (adapter, prompt) in files.items():
            path = draft / f"{name}.safetensors"
            adapter.save(path, origin(unzip, job, prompt), unzip.task.format, unzip.task.dtype)
            sizes.append(f"{output / path.name}  (rank {adapter.rank}, {path.stat().st_size / 1e6:.1f} MB, {prompt!r})")
        done = job.steps * each
        page = unzip_sheet.page(
            unzip, base, adapters, words, images, folder, looks, lambda count: progress(done + count)
        )
        page.save(draft / "contact.png")
        facts = {
            "task": "unzip", "method": unzip.method.name, "prompts": words.prompts._asdict(), "seed": unzip.seed,
            "images": [each.sha256 for each in images], "consistency": looks, "file_error": error,
        }  # fmt: skip
        (draft / MANIFEST).write_text(json.dumps(facts))
    lines = [*sizes, str(output / "contact.png")]
    lines.append(f"joint.safetensors differs from the exact joint model by {error:.1%} of the change by the LoRAs")
    if looks:
        steps = ", ".join(f"{step}: {value:.3f}" for step, value in looks.items())
        lines.append(f"consistency of the reconstruction by step: {steps}")
        if max(looks) + unzip.task.look_every <= job.steps:
            lines.append(
                f"ended after {max(looks)} of {job.steps} steps, since two looks gained less than {unzip.task.stop}"
            )
    return lines


def artifact_of(unzip: Unzip, job: UnZipJob, words: Words) -> Artifact:
    """Return the artifact of the adapters and looks."""
    looks = {"every": unzip.task.look_every, "stop": unzip.task.stop, "generate": unzip.generation.params()}
    scorers = [path for files in unzip.scorers for path in files.contents()]
    params: dict[str, Any] = {
        "model": {
            "weights": unzip.store.digest(*unzip.model.sources()), "precision": unzip.trainer.precision,
            **unzip.model.numbers(),
        },
        "job": job.params, "seed": unzip.seed,
    }  # fmt: skip
    if unzip.task.look_every:
        params["looks"] = {**looks, "scorers": unzip.store.digest(*scorers)}
    return Artifact("unzip", job.name, VERSION, params, partial(train, unzip, job, words))


def train(unzip: Unzip, job: UnZipJob, words: Words, folder: Path, progress: Callable[[int], None]) -> None:
    """Write both adapters, the curves and the looks of a training."""
    from lorabench.engine.curves import Curves
    from lorabench.personalization import unzip as training
    from lorabench.tasks.reconstruction import FILE, Consistency, Looks

    base, curves = load_model(unzip.model, unzip.trainer.accelerator), Curves()
    scratch = unzip.store.scratch(artifact_of(unzip, job, words))
    env = Environment(unzip.seed, unzip.trainer, progress, curves, scratch=scratch)
    looks: Looks | None = None
    if unzip.task.look_every:
        device = device_name(unzip.trainer.accelerator)
        scorers = [load_scorer(files, device) for files in unzip.scorers]
        consistency = Consistency(scorers, [image.load() for image in job.concept.images])
        looks = Looks(
            base, unzip.method.sampling, words.scene(), unzip.generation, consistency, scratch / "looks",
            unzip.task.look_every, unzip.task.stop, unzip.seed,
        )  # fmt: skip
    trained = training.unzip(base, job, env, [looks] if looks else [], lambda: looks is not None and looks.is_finished)
    for role, adapter in zip(("content", "style"), trained, strict=True):
        adapter.save(folder / f"{role}.safetensors", format="store")
    curves.write(folder)
    if looks is not None and looks.folder.is_dir():
        shutil.copytree(looks.folder, folder, dirs_exist_ok=True)
    else:
        (folder / FILE).write_text(json.dumps({}))


def origin(unzip: Unzip, job: UnZipJob, prompt: str) -> dict[str, str]:
    """Return metadata of a file: the prompt that it reads, and how it was made."""
    from lorabench.lora.files.metadata import trained_layers

    return {
        "lorabench.version": __version__, "lorabench.method": unzip.method.name, "lorabench.seed": str(unzip.seed),
        "lorabench.prompt": prompt, "lorabench.images": json.dumps([each.sha256 for each in job.concept.images]),
        "lorabench.settings": json.dumps(unzip.settings, default=str), "lorabench.model": unzip.model_name,
        **trained_layers(job.recipe.targets),
    }  # fmt: skip
