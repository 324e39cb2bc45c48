"""Types of the configuration.

conf/*.yaml has the values, this file the types and conditions. Hydra refuses an unknown key or a wrong type when it
composes; lorabench/config/checks.py checks the conditions. The settings of a method are the fields of its components,
see lorabench/merging/method.py. No heavy package is imported here, because `--cfg job` must be fast.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from omegaconf import MISSING

from lorabench.config.settings import setting
from lorabench.config.task_schemas import TARGETS, UserLoRASpec

SAMPLERS = ("model", "euler", "euler_karras", "dpmpp_2m", "dpmpp_2m_karras")  # lorabench/models/schedulers.py


@dataclass
class LoRASpec:
    """Training of one LoRA: the options of diffusers' DreamBooth-LoRA script for SDXL."""

    rank: int = setting(MISSING, least=1)
    alpha: float = setting(MISSING, above=0)  # the update is scaled by alpha / rank
    blocks: list[str] = MISSING  # modules of the denoiser that are adapted, by path; [] adapts all attention layers
    targets: str = setting(TARGETS[0], options=TARGETS)  # set of layers that are adapted
    text_encoders: bool = MISSING  # adapt the CLIP text encoders as well
    text_lr: float = setting(MISSING, above=0)  # learning rate of the text encoders
    steps: int = setting(MISSING, least=1)  # updates of the factors
    batch: int = setting(MISSING, least=1)  # images per forward pass, drawn with replacement
    accumulate: int = setting(MISSING, least=1)  # forward passes per update
    optimizer: str = setting(
        MISSING, options=("adamw", "adamw8bit", "prodigy")
    )  # adamw, or an extra: adamw8bit (bitsandbytes) | prodigy (prodigyopt)
    lr: float = setting(MISSING, above=0)  # with prodigy: a factor on its own estimate
    betas: tuple[float, float] = setting(MISSING, least=0)
    weight_decay: float = setting(MISSING, least=0)
    schedule: str = setting(
        MISSING, options=("constant", "linear", "cosine", "cosine_with_restarts", "polynomial")
    )  # learning rate after a linear warm-up
    cycles: int = setting(MISSING, least=1)  # restarts of the schedule cosine_with_restarts
    warmup: int = setting(MISSING, least=0)  # updates of the linear warm-up
    max_grad_norm: float | None = setting(MISSING, above=0)
    min_snr: float | None = setting(MISSING, above=0)  # gamma of Min-SNR; null: equal weights
    timesteps: str = setting(
        "uniform", options=("uniform", "logit_normal", "content", "style")
    )  # distribution of the noise levels; all but uniform need a flow-matching model
    loss: str = setting("native", options=("native", "v", "x0", "eps"))  # prediction whose squared error is minimized
    prior_weight: float = setting(MISSING, least=0)  # weight of prior preservation; 0: none
    prior_images: int = setting(MISSING, least=1)  # class images that the base model generates for prior preservation
    flips: bool = MISSING  # train on mirrored images as well
    crops: int = setting(
        MISSING, least=0
    )  # crops per image; 1: the center; 0: the center, conditioned as a whole image
    sample_every: int = setting(MISSING, least=0)  # updates between sample images; 0: no sample images


@dataclass
class GenerateSpec:
    """Generation of the images of a pair."""

    images: int = setting(MISSING, least=1)  # images per pair and row
    steps: int = setting(MISSING, least=1)  # sampling steps
    guidance: float = setting(MISSING, least=1)  # classifier-free guidance scale; 1: none
    batch: int = setting(MISSING, least=1)  # images generated together; changes the last digits
    sampler: str = setting("model", options=SAMPLERS)  # model: the scheduler of the model
    negative: str | None = None  # prompt of the unconditional prediction; null: the empty prompt

    def params(self) -> dict[str, Any]:
        """Return all settings for a key; later ones are left out at their defaults, so that keys stay."""
        later = {("sampler", "model"), ("negative", None), ("negative", "")}
        return {name: value for name, value in asdict(self).items() if (name, value) not in later}


@dataclass
class PromptSpec:
    """Words of the prompts."""

    content_token: str = MISSING
    style_token: str = MISSING
    contexts: Any = MISSING  # scenes: none | object | live | auto | grounds, or a list ("in the snow", "a wet {}")


@dataclass
class ModelSpec:
    """A model, its memory and its defaults of sampling. attention, offload and checkpointing do not change results."""

    name: str = MISSING
    path: str = MISSING  # "micro" (the packaged one), a diffusers folder, a single .safetensors file or a hub id
    config: str = MISSING  # for a single file: folder or hub id of the configurations and tokenizers
    vae: str | None = MISSING  # folder, file or hub id of another autoencoder
    variant: str | None = MISSING  # part of the file names of the weights, as "fp16"
    dtype: str = setting(MISSING, options=("fp32", "bf16", "fp16"))  # type of the denoiser and the text encoders
    vae_dtype: str = setting(MISSING, options=("fp32", "bf16", "fp16"))  # SDXL's own autoencoder overflows in fp16
    resolution: int | None = setting(MISSING, least=8)  # pixels; null: the resolution that the model was trained for
    attention: str = setting(MISSING, options=("auto", "sdpa", "math", "sliced"))
    offload: str = setting(
        MISSING, options=("none", "encoders")
    )  # encoders: keep text encoders and VAE on the CPU while they are not used
    checkpointing: bool = MISSING  # gradient checkpointing: slower steps, less memory
    true_guidance: bool = False  # FLUX.1: guide with the empty prompt instead of the guidance embedding
    steps: int = setting(MISSING, least=1)  # default of generate.steps
    guidance: float = setting(MISSING, least=1)  # default of generate.guidance


@dataclass
class ScorerSpec:
    """The scorers."""

    name: str = MISSING
    path: str | None = MISSING  # "micro" (the packaged ones) or a folder with one subfolder per scorer
    backbones: list[str] = MISSING  # published ones, as "dino@vits16"; listed in lorabench/assets/scorers
    weights: dict[str, str | None] = MISSING  # local files by name, as "dino_vits16"; null: the hub and its cache
    batch: int = setting(32, least=1)  # images scored together; changes the last digits


@dataclass
class ColumnSpec:
    """One column of a publication's table, computed from the stored value of each image and reference."""

    name: str = MISSING  # as the publication prints it
    metric: str = MISSING  # dino/content, clip_i/style, clip_t (plain words), clip_t/prompt
    backbone: str = MISSING
    references: str = "mean"  # reduction over the references of an image: mean | max | first
    average: str = "pair"  # reduction over images: pair | macro | micro, see lorabench/report/protocols.py
    scale: float = 1.0  # 100: percent; 2.5: CLIPScore
    floor: float | None = None  # lower bound of a value before scaling; CLIPScore: 0
    times: str | None = None  # metric of the same backbone to multiply by, per image
    use: str = "joint"  # sample sets: joint | content | style | cross, see lorabench/data/uses.py


@dataclass
class ProtocolSpec:
    """The columns of a table, computed from stored scores."""

    name: str = MISSING
    arxiv: str | None = MISSING  # number of the publication
    columns: list[ColumnSpec] = MISSING  # []: all metrics


@dataclass
class MergeSpec:
    """Computation of merges, for all methods."""

    pairs_per_batch: int = setting(MISSING, least=1)  # pairs merged in one batch; changes speed and last digits


@dataclass
class TrainerSpec:
    """Devices and processes of a run.

    `precision` is part of every key. The device and `threads` change the last digits (about 1e-7 of a weight, one gray
    level), so the manifest of a run has them, and a table has a note if they differ. No other setting here changes
    results.
    """

    accelerator: str = setting(MISSING, options=("cpu", "gpu", "auto"))
    precision: str = setting(MISSING, options=("32-true", "bf16-mixed", "16-mixed"))
    workers: int = setting(MISSING, least=0)  # worker processes for independent items; 0: this process
    threads: int = setting(MISSING, least=1)  # torch threads per process
    checkpoint_every: int = setting(100, least=1)  # updates between two checkpoints of a training
    devices: int = setting(0, least=0)  # ranks per node, one GPU or CPU process each; 0: use `workers`
    nodes: int = setting(1, least=1)  # machines that run the same command
    rendezvous: str | None = None  # host:port of one of the nodes


@dataclass
class LoggerSpec:
    """The logger of a run."""

    kind: str = setting(MISSING, options=("wandb", "csv", "none"))
    mode: str = setting("offline", options=("offline", "online"))  # mode of wandb
    project: str = "lorabench"


@dataclass
class Config:
    """The root of the configuration. Groups have their own schemas."""

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
    judge: Any = MISSING
    logger: Any = MISSING
    task: Any = MISSING
    content: UserLoRASpec | None = None  # task=merge and task=generate
    style: UserLoRASpec | None = None
    prompt: str | None = None
    negative: str | None = None  # short for generate.negative
    weights: list[float] | None = None  # task=merge and task=generate: scale of each LoRA, contents first
    image: Any = None  # task=unzip: an image, a list of images of one subject, a folder or a pattern
    words: str = setting("given", options=("given", "suggest"))  # task=unzip: suggest: words that are left out
    blocks: Any = None  # weights by block of every LoRA that has none of its own, see lora/files/blocks.py
    runs: list[str] | None = None  # task=judge and task=study: folders of finished runs
    folder: str | None = None  # task=import_results: a run folder made elsewhere, or a folder of them
    questions: int | None = setting(None, least=1)  # task=study: per participant
    answers: str | None = None  # task=study_results: folder of the participants' files
    study: str | None = None  # task=study_results: folder of task=study
