"""How concepts become adapters: the first of the three components of a method.

A training declares its outputs before anything is trained, so that plans, keys and refusals need no weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lorabench.config.schemas import GenerateSpec, LoRASpec, TrainerSpec
from lorabench.config.settings import check_settings
from lorabench.data.pairs import Concept, Pair, Reference, Role

if TYPE_CHECKING:
    from lorabench.engine.curves import Curves
    from lorabench.lora.adapter import LoRA
    from lorabench.models.layer_map import LayerMap
    from lorabench.models.model import DiffusionModel
    from lorabench.scoring.scorer import Scorer

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
        notes: What a job reports besides its adapters, as JSON.
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
    """

    version: ClassVar[int] = 1
    samples: ClassVar[bool] = False
    scorers: ClassVar[tuple[str, ...]] = ()

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
    def class_images(self) -> int:
        """Return the number of images that the base model generates of the concept's class beforehand."""
        return 0

    @abstractmethod
    def run(self, model: DiffusionModel, env: Environment) -> dict[str, LoRA]:
        """Train; returns the adapters by `Output.name`.

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

    @property
    def rank(self) -> int:
        return self.job.recipe.rank

    @property
    def blocks(self) -> Sequence[str]:
        """Return the modules whose attention layers are adapted; empty means all."""
        return self.job.recipe.blocks

    @property
    def targets(self) -> str:
        """Name of the set of layers that it adapts."""
        return self.job.recipe.targets


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


def is_per_pair(outputs: Sequence[Output]) -> bool:
    """Return True if a job holds both roles, so that no other pair can use it and it is a cost of the method."""
    roles: dict[str, set[Role | None]] = {}
    for output in outputs:
        roles.setdefault(output.job.name, set()).add(output.role)
    return any(None in each or len(each) > 1 for each in roles.values())
