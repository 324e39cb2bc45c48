"""Types of the tasks' settings (conf/task/)."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from lorabench.config.settings import setting

TARGETS = ("attention", "script", "all")  # sets of layers that LoRAs adapt (lorabench/models/layer_map.py)


@dataclass
class TaskSpec:
    """Settings of all tasks.

    Args:
        name: Name of the task.
        folder: Subfolder of `output/name` for its results.
    """

    name: str = MISSING
    folder: str = MISSING


@dataclass
class ParamsTask(TaskSpec):
    """Settings of task=params."""

    ranks: dict[str, int] = MISSING  # rank of both LoRAs by model
    targets: str = setting(MISSING, options=TARGETS)  # layers that the LoRAs adapt


@dataclass
class MemoryTask(TaskSpec):
    """Settings of task=memory."""

    models: list[str] = MISSING
    methods: list[str] = MISSING
    rank: int = setting(MISSING, least=1)  # rank of both LoRAs
    targets: str = setting(MISSING, options=TARGETS)  # layers that the LoRAs adapt


@dataclass
class LayerProbeTask(TaskSpec):
    """Settings of task=layer_probe."""

    scale: float = MISSING  # scale of the LoRA in the probed layers
    by: list[str] = MISSING  # "block" or "layer" (a transformer block)


@dataclass
class CompareTask(TaskSpec):
    """Settings of task=compare."""

    rows: Any = MISSING  # methods, each with an optional ablation ("duolora no_cycle"), or all
    fit_steps: int | None = MISSING  # optimizer steps of learned merges; null: as the method sets


@dataclass
class ModelsTask(CompareTask):
    """Settings of task=models."""

    others: list[str] = MISSING  # presets of models besides `model=`


@dataclass
class GridTask(TaskSpec):
    """Settings of task=grid."""

    merges: list[str] = MISSING  # options of method/merge
    fit_steps: int = setting(MISSING, least=1)  # optimizer steps of learned merges


@dataclass
class TradeoffTask(TaskSpec):
    """Settings of task=tradeoff."""

    methods: list[str] = MISSING
    strengths: list[float] = MISSING  # scales of one role while the other has 1; 1 is always included
    content: str = MISSING  # metric of the first axis, "dino/content"
    style: str = MISSING  # metric of the second axis


@dataclass
class SensitivityTask(TaskSpec):
    energy: list[float] = MISSING  # shares of the energy of each update that are removed
    weights: list[float] = MISSING  # scales of one LoRA while the other has scale 1
    like: list[str] = MISSING  # rows of a kind: methods with their ablations ("klora fixed_choice") and closed forms
    unlike: list[str] = MISSING  # methods that differ from the direct merge in kind
    null_seed: int = setting(MISSING, least=0)  # seed of the second direct merge
    splits: int = setting(MISSING, least=1)  # random splits of both seeds
    shown: list[str] = MISSING  # scores in the table and the figure


@dataclass
class StabilityTask(TaskSpec):
    """Settings of task=stability."""

    rows: list[str] = MISSING  # methods, each with an optional ablation ("duolora no_cycle")
    repeated: list[str] = MISSING  # rows that are also run with other seeds
    seeds: list[int] = MISSING  # seeds of the repeats
    pairs: int = setting(MISSING, least=2)  # pairs of the repeats


@dataclass
class SamplersTask(TaskSpec):
    samplers: list[str] = MISSING  # see `GenerateSpec.sampler`
    steps: list[int] = MISSING
    reference_steps: int = setting(MISSING, least=2)  # steps of the model's own sampler
    shown: list[str] = MISSING  # scores in the table


@dataclass
class TuningTask(TaskSpec):
    """Settings of task=tuning."""

    methods: Any = MISSING  # "all" that have ranges, or a list
    configurations: int = setting(MISSING, least=1)  # most configurations of a method
    pairs: int = setting(MISSING, least=1)  # development pairs
    steps: list[float] = setting(MISSING, above=0)  # shares of the steps of learned merges
    shown: list[str] = MISSING  # scores in the tables
    ranges: dict[str, str] = MISSING  # values of settings by method, "density=0.2,0.5 weight=1.0,1.4"


@dataclass
class RecipeTask(TaskSpec):
    """Settings of task=recipe."""

    ranges: list[str] = MISSING  # values of settings of lora=, as "lr=0.0005,0.002 rank=8,16"; [] tries none
    shown: list[str] = MISSING  # scores in the table, with the use of the images: "content subject_r1"


@dataclass
class CalibrationTask(TaskSpec):
    """Settings of task=calibration."""

    holds: float = MISSING  # share of cases in which the known answer must hold


@dataclass
class ImportTask(TaskSpec):
    """Settings of task=import_results."""

    origin: str | None = MISSING  # words for the rows; null: the device that computed them


@dataclass
class CostTask(TaskSpec):
    """Settings of task=cost."""

    methods: list[str] = MISSING
    repeats: int = MISSING  # repeats per merge and set of images, each in a new process


@dataclass
class HypernetworkTask(TaskSpec):
    """Settings of task=hypernetwork."""

    subjects: list[str] = MISSING  # training subjects; the subjects of the dataset are held out
    styles: list[str] = MISSING
    epochs: int = setting(MISSING, least=1)  # random pairs to train on
    lr: float = setting(MISSING, above=0)
    lambda_similarity: float = setting(MISSING, least=0)
    layers: str = MISSING  # reduction of the similarity over layers: sum or mean
    draws: int = setting(MISSING, least=1)  # draws of noise and images for the loss on a held-out pair


@dataclass
class UserLoRASpec:
    """The user's LoRA of one role. If there are several, each field is a list. See lorabench/tasks/user_loras.py."""

    lora: Any = MISSING  # .safetensors
    prompt: Any = MISSING  # training prompt, as "a sks dog"; needed by methods that learn
    images: Any = MISSING  # folder of the training images; null: the LoRA generates images
    embedding: Any = None  # file of token embeddings trained with the LoRA
    trigger: Any = None  # word for the embedding in prompts; null: as in the file
    blocks: Any = None  # weights by block: 12, 17, 20 or 26 numbers, {module path: weight} or a preset


@dataclass
class UnzipTask(TaskSpec):
    """Settings of task=unzip, which separates the user's images into LoRAs."""

    format: str = setting(MISSING, options=("kohya", "diffusers"))  # format of the files
    dtype: str = setting(MISSING, options=("float32", "float16", "bfloat16"))  # type of the files
    scenes: list[str] | None = MISSING  # places of the content by itself on the contact sheet; null: by the model
    subjects: list[str] | None = MISSING  # subjects of the style by itself; null: by the model
    look_every: int = setting(MISSING, least=0)  # steps between reconstructions whose consistency is shown; 0: none
    stop: float | None = setting(
        MISSING, above=0
    )  # least increase of consistency by two more reconstructions; null: none


@dataclass
class FileTask(TaskSpec):
    """Settings of task=merge and task=generate, which use the user's files."""

    format: str = setting(MISSING, options=("kohya", "diffusers"))  # format of the merged file
    rank: Any = setting(MISSING, least=1)  # rank of the merged file; null: exact merge with the sum of the ranks; auto
    dtype: str = setting(
        MISSING, options=("same", "float32", "float16", "bfloat16")
    )  # type of the merged file; same: as the LoRAs
    keep: float = setting(0.99, above=0, most=1)  # share of the squared norm of each layer that rank=auto keeps


@dataclass
class TuneTask(FileTask):
    """Find the weights of the user's own files that score best."""

    methods: list[str] = MISSING  # methods that learn nothing
    weights: list[float] = MISSING  # weights of both roles
    content: str = MISSING  # metric of the content, as "dino/content"
    style: str = MISSING
