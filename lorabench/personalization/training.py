"""How concepts become adapters: the first of the three components of a method.

A training declares its outputs before anything is trained, so that plans, keys and refusals need no weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lorabench.base import UserError
from lorabench.config.dataset_schemas import DatasetSpec
from lorabench.config.schemas import GenerateSpec, LoRASpec, TrainerSpec
from lorabench.config.settings import check_settings
from lorabench.data.concepts import Concept, Reference, Role
from lorabench.data.pairs import Pair

if TYPE_CHECKING:
    from lorabench.engine.curves import Curves
    from lorabench.lora.adapter import LoRA
    from lorabench.models.layer_map import LayerMap
    from lorabench.models.model import DiffusionModel
    from lorabench.scoring.scorer import Scorer

BACKBONE = "backbone"  # name of the adapter that changes the base weights, among those of its job
Images = Literal["concepts", "aligned", "stylised"]


@dataclass(frozen=True)
class Environment:
    """Inputs of a job besides its own parameters.

    Args:
        seed: Seed of the run.
        progress: Called with the number of optimizer steps done.
        curves: Collects losses.
        class_images: Images for prior preservation, see `Job.class_images`.
        scratch: Folder from which a killed training resumes.
        samples: Folder for the images that `LoRASpec.sample_every` asks for.
        generate: How those are sampled, and the images that a job samples itself.
        scorer: Returns the scorer of a kind, see `Job.scorers`.
        notes: Results of a job besides its adapters, as JSON.
        needed: Folder of each job in `Job.needs`, in order.
        folder: Folder of the job's own result, for files besides its adapters.
    """

    seed: int
    trainer: TrainerSpec
    progress: Callable[[int], None] | None = None
    curves: Curves | None = None
    class_images: Sequence[Reference] = ()
    scratch: Path | None = None
    samples: Path | None = None
    generate: GenerateSpec | None = None
    scorer: Callable[[str], Scorer] | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    needed: Sequence[Path] = ()
    folder: Path | None = None


@dataclass(frozen=True)
class Job(ABC):
    """One training. Equal jobs are trained once, whichever pairs and methods ask for them.

    Args:
        concept: Images and captions it is trained on.
        recipe: How it is trained.
        name: Name in messages; not part of the key.

    Attributes:
        version: Number to raise when the same parameters give other adapters.
        samples: Whether the job samples images, so that the sampler's settings are part of its key.
        scorers: Kinds of scorers that the job needs, such as "clip".
        stage: Folder of the store.
    """

    version: ClassVar[int] = 1
    samples: ClassVar[bool] = False
    scorers: ClassVar[tuple[str, ...]] = ()
    stage: ClassVar[str] = "personalize"

    concept: Concept
    recipe: LoRASpec
    name: str

    @property
    def params(self) -> dict[str, Any]:
        """Return the parameters that determine the adapters, as JSON; the plan adds the base model and the seed."""
        return {
            "training": type(self).__name__, "version": self.version, "lora": asdict(self.recipe),
            "concept": self.concept.identity(),
        }  # fmt: skip

    @property
    def steps(self) -> int:
        """Return the number of optimizer steps."""
        return self.recipe.steps

    @property
    def needs(self) -> tuple[Job, ...]:
        """Return the jobs whose results this one reads. They may belong to no pair, and all pairs share them."""
        return ()

    @property
    def backbone(self) -> Job | None:
        """Return the job whose adapter `backbone` changes the base weights for this one; None for the plain model.

        The adapters of this job belong to the changed weights: they are merged and used on them only.
        """
        return None

    def ranks(self, layers: LayerMap) -> Mapping[str, int]:
        """Return the rank of the adapters by layer of the denoiser.

        Raises:
            UserError: If the recipe selects no layer of this model.
        """
        return dict.fromkeys(layers.trained(self.recipe.blocks, self.recipe.targets), self.recipe.rank)

    @property
    def class_images(self) -> int:
        """Return the number of images that the base model generates of the concept's class beforehand."""
        return 0

    @abstractmethod
    def run(self, model: DiffusionModel, env: Environment) -> dict[str, LoRA]:
        """Train, and return the adapters by `Output.name`.

        Raises:
            UserError: If the recipe does not fit the model or this machine.
        """

    @abstractmethod
    def learned(self, lora: LoRA) -> int:
        """Return how many numbers of an adapter are learned."""


@dataclass(frozen=True)
class Output:
    """One adapter that a job will produce.

    Args:
        job: The job.
        name: Name among the adapters of the job.
        role: Content or style; None holds both concepts.
        shown: Concept with the images, captions and trigger that a merge may use.
    """

    job: Job
    name: str
    role: Role | None
    shown: Concept


@dataclass(frozen=True, kw_only=True)
class Training(ABC):
    """A training scheme. Its fields are its settings.

    Attributes:
        images: Images that the dataset must provide: images of each concept, one image before and after styling, or
            images of the content in the style only.
        has_factors: False if the adapters are token embeddings only.
    """

    images: ClassVar[Images] = "concepts"
    has_factors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_settings("method", self)

    def shortened(self, steps: int) -> Training:
        """Return the training with at most this many steps for models besides adapters, for quick checks."""
        return self

    def check_dataset(self, dataset: DatasetSpec) -> None:
        """Check that the dataset has all that the training needs besides the images of its concepts.

        Raises:
            UserError: If it does not.
        """
        return None

    @abstractmethod
    def outputs(self, pair: Pair, recipe: LoRASpec) -> list[Output]:
        """Declare the adapters for a pair: contents, then styles.

        Raises:
            UserError: If the scheme does not support the recipe.
        """

    def check(self, layers: LayerMap, recipe: LoRASpec) -> None:
        """Check the layers of a model before anything is trained.

        Raises:
            UserError: If the scheme does not fit them.
        """
        return None


def backbone_of(outputs: Sequence[Output]) -> Job | None:
    """Return the job of the base weights that all adapters of a pair share; None for the plain model.

    Raises:
        UserError: If their base weights differ.
    """
    found = list({str(job.params): job for each in outputs if (job := each.job.backbone)}.values())
    if len(found) > 1 or (found and any(each.job.backbone is None for each in outputs)):
        raise UserError(f"adapters on different base weights ({found[0].name}) cannot be merged; use one training")
    return found[0] if found else None


def is_per_pair(outputs: Sequence[Output]) -> bool:
    """Return True if a job holds both roles, so that no other pair can use it and it is a cost of the method."""
    roles: dict[str, set[Role | None]] = {}
    for output in outputs:
        roles.setdefault(output.job.name, set()).add(output.role)
    return any(None in each or len(each) > 1 for each in roles.values())
