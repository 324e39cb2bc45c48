"""Types of the configuration.

Values are in conf/*.yaml, types and conditions here. Hydra refuses an unknown key or a wrong type while it composes;
lorabench/config/checks.py checks the conditions. The settings of a method are the fields of its components, see
lorabench/merging/method.py. Nothing heavy is imported here, because `--cfg job` must be fast.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from lorabench.config.settings import setting


@dataclass
class LoRASpec:
    """How one LoRA is trained (stage 1): the options of diffusers' DreamBooth-LoRA script for SDXL."""

    rank: int = setting(MISSING, least=1)
    alpha: float = setting(MISSING, above=0)  # the update is scaled by alpha / rank
    blocks: list[str] = MISSING  # modules of the denoiser that are adapted, by path; [] adapts all attention layers
    text_encoders: bool = MISSING  # adapt both text encoders too
    text_lr: float = setting(MISSING, above=0)  # their learning rate
    steps: int = setting(MISSING, least=1)  # updates of the factors
    batch: int = setting(MISSING, least=1)  # images a forward, drawn with replacement
    accumulate: int = setting(MISSING, least=1)  # forwards an update
    optimizer: str = setting(
        MISSING, options=("adamw", "adamw8bit", "prodigy")
    )  # adamw, or an extra: adamw8bit (bitsandbytes) | prodigy (prodigyopt)
    lr: float = setting(MISSING, above=0)  # prodigy multiplies its own estimate by it
    betas: tuple[float, float] = setting(MISSING, least=0)
    weight_decay: float = setting(MISSING, least=0)
    schedule: str = setting(
        MISSING, options=("constant", "linear", "cosine", "cosine_with_restarts", "polynomial")
    )  # of the learning rate after a linear warm-up
    cycles: int = setting(MISSING, least=1)  # of the schedule cosine_with_restarts
    warmup: int = setting(MISSING, least=0)  # updates
    max_grad_norm: float | None = setting(MISSING, above=0)
    min_snr: float | None = setting(MISSING, above=0)  # gamma of Min-SNR weights; null weighs every timestep the same
    prior_weight: float = setting(MISSING, least=0)  # of prior preservation; 0 is without
    prior_images: int = setting(MISSING, least=1)  # of the class, which the base model draws for it
    flips: bool = MISSING  # train on mirrored images too
    crops: int = setting(
        MISSING, least=0
    )  # crops per image; 1: the center; 0: the center, conditioned as a whole image
    sample_every: int = setting(MISSING, least=0)  # updates between images drawn to look at; 0 draws none


@dataclass
class GenerateSpec:
    """How the images of a pair are drawn."""

    images: int = setting(MISSING, least=1)  # a pair and row
    steps: int = setting(MISSING, least=1)  # of the sampler
    guidance: float = setting(MISSING, least=1)  # classifier-free guidance scale; 1 is without
    batch: int = setting(MISSING, least=1)  # images drawn together; part of the floating-point result


@dataclass
class PromptSpec:
    content_token: str = MISSING
    style_token: str = MISSING
    contexts: Any = MISSING  # scenes to draw in: none | object | live | auto, or a list ("in the snow", "a wet {}")


@dataclass
class ModelSpec:
    """A model of the SDXL family and how it is held in memory; only the first eight change the numbers."""

    name: str = MISSING
    path: str = MISSING  # "micro" (the packaged one), a diffusers folder, a single .safetensors file or a hub id
    config: str = MISSING  # of a single file: the folder or hub id of its configurations and tokenizers
    vae: str | None = MISSING  # folder, file or hub id of another autoencoder than its own
    variant: str | None = MISSING  # of the weights' file names, where the folder has it
    dtype: str = setting(MISSING, options=("fp32", "bf16", "fp16"))  # type of denoiser and text encoders
    vae_dtype: str = setting(MISSING, options=("fp32", "bf16", "fp16"))  # SDXL's own autoencoder overflows in fp16
    resolution: int | None = setting(MISSING, least=8)  # pixels; null is what the model was trained for
    attention: str = setting(MISSING, options=("auto", "sdpa", "math", "sliced"))  # auto | sdpa | math | sliced
    offload: str = setting(
        MISSING, options=("none", "encoders")
    )  # none, or encoders: text encoders and VAE wait on the CPU until they are used
    checkpointing: bool = MISSING  # of gradients: more time a step for a fraction of its memory


@dataclass
class ScorerSpec:
    name: str = MISSING
    path: str | None = MISSING  # "micro" (the packaged ones) or a folder with one subfolder a scorer
    backbones: list[str] = MISSING  # published ones beside them, "dino@vits16"; lorabench/assets/scorers has them all
    weights: dict[str, str | None] = MISSING  # local files of theirs, "dino_vits16"; null is the hub and its cache
    batch: int = setting(32, least=1)  # images scored together; part of the floating-point result


@dataclass
class MicroworldSpec:
    name: str = MISSING
    subjects: Any = MISSING  # names, or a set: all (held out) | development; "a+b": both in one image
    styles: Any = MISSING  # as subjects; "a+b": a blend of both
    contents: list[str] | None = MISSING  # one group of subjects, instead of `subjects`
    content_images: int = setting(MISSING, least=1)  # photos a subject's LoRA is trained on
    style_images: int = setting(MISSING, least=1)  # pictures a style's LoRA is trained on
    references: int = setting(MISSING, least=1)  # other images of each, for scoring
    pairs: Any = "crossed"  # | matched, or a list of subject/style; see data/matching.py
    count: int = setting(32, least=1)  # of pairs=matched
    pairs_seed: int = setting(0, least=0)  # of pairs=matched


@dataclass
class PhotoSpec:
    """What datasets of photographs have in common: which subjects meet which styles, and which images score."""

    name: str = MISSING
    contents: list[str] | None = MISSING  # as in MicroworldSpec
    subjects: Any = MISSING  # names as in MicroworldSpec, or a set: all | live | object
    styles: Any = MISSING  # names, or all
    pairs: str = MISSING  # all (of subjects and styles) | random | a publication's, see data/pair_lists.yaml
    count: int = setting(MISSING, least=1)  # of pairs=random
    pairs_seed: int = setting(MISSING, least=0)  # of every draw of pairs
    references: Any = setting(MISSING, least=1)  # same: score against training images; or held-out images per subject

    @property
    def held_out(self) -> int:
        return 0 if self.references == "same" else int(self.references)


@dataclass
class DreamBoothStyleDropSpec(PhotoSpec):
    root: str = MISSING  # a clone of google/dreambooth, or a folder that holds it
    style_root: str | None = MISSING  # the same of StyleDrop-PyTorch, or a folder of images; null: root


@dataclass
class FolderSpec(PhotoSpec):
    manifest: str = MISSING  # see lorabench/data/manifest.py


DatasetSpec = MicroworldSpec | DreamBoothStyleDropSpec | FolderSpec


@dataclass
class ColumnSpec:
    """One column of a publication's table, from the stored value of each image and reference."""

    name: str = MISSING  # as printed
    metric: str = MISSING  # with its role: dino/content, clip_i/style; clip_t (plain words), clip_t/prompt
    backbone: str = MISSING
    references: str = "mean"  # over the references of an image: mean | max | first
    average: str = "pair"  # over images, see lorabench/report/protocols.py: pair | macro | micro
    scale: float = 1.0  # 100: in percent; 2.5: CLIPScore
    floor: float | None = None  # least value of an image and reference, before the scale; CLIPScore has 0
    times: str | None = None  # another metric of the same backbone, multiplied image by image


@dataclass
class ProtocolSpec:
    """How scores become the columns of a table; a view of stored scores."""

    name: str = MISSING
    arxiv: str | None = MISSING  # of the publication
    columns: list[ColumnSpec] = MISSING  # none: every metric as it was scored


@dataclass
class MergeSpec:
    """How merges are computed, whatever the method."""

    pairs_per_batch: int = setting(
        MISSING, least=1
    )  # pairs trained side by side in one batch, which changes the speed, and last digits


@dataclass
class TrainerSpec:
    """Where and how wide a run is computed; `precision` is part of every key.

    The device and `threads` change last digits (about 1e-7 of a weight, one gray level), so the manifest of a run has
    them and a table says where they differ. Nothing else here changes a number.
    """

    accelerator: str = setting(MISSING, options=("cpu", "gpu", "auto"))
    precision: str = setting(MISSING, options=("32-true", "bf16-mixed", "16-mixed"))
    workers: int = setting(MISSING, least=0)  # processes for independent items; 0 is this process
    threads: int = setting(MISSING, least=1)  # torch threads in each
    checkpoint_every: int = setting(
        100, least=1
    )  # updates between two saves of a LoRA in training; a killed one goes on from the last
    devices: int = setting(
        0, least=0
    )  # ranks on each node, which share every stage: a GPU or CPU process each; 0: `workers` instead
    nodes: int = setting(1, least=1)  # machines on which the same command is typed
    rendezvous: str | None = None  # host:port on one of the nodes, where they meet


@dataclass
class LoggerSpec:
    kind: str = setting(MISSING, options=("wandb", "csv", "none"))  # wandb | csv | none
    mode: str = setting("offline", options=("offline", "online"))  # wandb: offline | online
    project: str = "lorabench"


@dataclass
class TaskSpec:
    """What a command does; folder: of its results, under output/name."""

    name: str = MISSING
    folder: str = MISSING


@dataclass
class ParamsTask(TaskSpec):
    ranks: dict[str, int] = MISSING  # of both LoRAs, by model


@dataclass
class MemoryTask(TaskSpec):
    models: list[str] = MISSING
    methods: list[str] = MISSING
    rank: int = setting(MISSING, least=1)  # of both LoRAs


@dataclass
class LayerProbeTask(TaskSpec):
    scale: float = MISSING  # strength of a LoRA in the layers probed
    by: list[str] = MISSING  # "block", "layer" (a transformer block)


@dataclass
class CompareTask(TaskSpec):
    rows: Any = MISSING  # a list of methods, each with an ablation after it if need be ("duolora no_cycle"), or all
    fit_steps: int | None = MISSING  # of every learned merge; null is the method's own


@dataclass
class GridTask(TaskSpec):
    merges: list[str] = MISSING  # options of method/merge, one of each kind
    fit_steps: int = setting(MISSING, least=1)  # of learned merges


@dataclass
class TradeoffTask(TaskSpec):
    methods: list[str] = MISSING
    strengths: list[float] = MISSING  # of one role while the other's is 1; 1 itself is always there
    content: str = MISSING  # metric of the first axis, "dino/content"
    style: str = MISSING  # of the second


@dataclass
class CalibrationTask(TaskSpec):
    holds: float = MISSING  # share of cases in which a known answer must hold to pass


@dataclass
class CostTask(TaskSpec):
    methods: list[str] = MISSING
    repeats: int = MISSING  # of every merge and set of images, each in a fresh process


@dataclass
class HypernetworkTask(TaskSpec):
    subjects: list[str] = MISSING  # that it is trained on; not those of the dataset, which are held out
    styles: list[str] = MISSING
    epochs: int = setting(MISSING, least=1)  # a random pair each
    lr: float = setting(MISSING, above=0)
    lambda_similarity: float = setting(MISSING, least=0)
    layers: str = MISSING  # sum or mean of the similarity over them
    draws: int = setting(MISSING, least=1)  # of noise and images, for the loss on a held-out pair


@dataclass
class UserLoRASpec:
    """The user's LoRA of one role, or several of them: then each field holds a list.  See
    lorabench/tasks/user_loras.py."""

    lora: Any = MISSING  # .safetensors
    prompt: Any = MISSING  # that it was trained with, "a sks dog"; only methods that learn need one
    images: Any = MISSING  # folder of the images it was trained on; null: they are generated with it
    embedding: Any = None  # file of token embeddings that were trained with it
    trigger: Any = None  # what stands for the embedding in prompts; null: as the file names it


@dataclass
class FileTask(TaskSpec):
    """Merging and drawing with the user's own files."""

    format: str = setting(MISSING, options=("kohya", "diffusers"))  # of the merged file
    rank: int | None = setting(MISSING, least=1)  # of the merged file; null is the exact merge, of the ranks' sum
    dtype: str = setting(
        MISSING, options=("same", "float32", "float16", "bfloat16")
    )  # of the merged file: float32 | float16 | bfloat16, or same: as the LoRAs' own


@dataclass
class Config:
    """The root; groups are typed by their own schemas."""

    name: str = MISSING
    seed: int = setting(MISSING, least=0)
    uses: list[str] = MISSING
    output: str = MISSING
    store: str = MISSING
    mode: str = MISSING
    reference: str = MISSING
    prompts: PromptSpec = field(default_factory=PromptSpec)
    merge: MergeSpec = field(default_factory=MergeSpec)
    generate: GenerateSpec = field(default_factory=GenerateSpec)
    model: Any = MISSING
    scorers: Any = MISSING
    dataset: Any = MISSING
    protocol: Any = MISSING
    lora: Any = MISSING
    method: Any = MISSING
    trainer: Any = MISSING
    logger: Any = MISSING
    task: Any = MISSING
    content: UserLoRASpec | None = None  # task=merge and task=generate
    style: UserLoRASpec | None = None
    prompt: str | None = None
    weights: list[float] | None = None  # task=merge and task=generate: scale of each LoRA, contents first
