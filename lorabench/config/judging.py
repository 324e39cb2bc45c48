"""Types of the configuration of judges and of the user study; values are in conf/judge/ and conf/task/."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from lorabench.config.settings import setting
from lorabench.config.task_schemas import TaskSpec

QUESTIONS = ("subject", "style", "both")


@dataclass
class JudgeSpec:
    """Which images are judged, and by which questions. The kind is also the name of the option of the group."""

    kind: str = setting(MISSING, options=("none", "truth", "openai", "transformers"))
    protocol: str = setting("pairwise", options=("pairwise", "combination", "rubric"))
    images: int = setting(2, least=1)  # images per pair and table row, the first ones
    baselines: bool = False  # baselines and the oracle are ranked too; they always serve as controls


@dataclass
class TruthJudgeSpec(JudgeSpec):
    renders: int = setting(MISSING, least=2)  # images that the world renders per question and pair
    margin: float = setting(MISSING, least=0, most=1)  # smaller differences are ties; 1: from another thing to the same


@dataclass
class ModelJudgeSpec(JudgeSpec):
    """A vision-language model."""

    model: str | None = MISSING  # name at the endpoint, or folder or hub id
    size: int = setting(512, least=16)  # longer side of the images that it gets, in pixels
    max_tokens: int | None = setting(MISSING, least=1)  # most tokens of an answer


@dataclass
class OpenAIJudgeSpec(ModelJudgeSpec):
    url: str = MISSING  # up to /v1
    key_variable: str = MISSING  # environment variable with the key; unset: requests have no key
    temperature: float = setting(MISSING, least=0)
    votes: int = setting(MISSING, least=1)  # answers per image of the protocols combination and rubric
    timeout: float = setting(MISSING, above=0)  # seconds
    retries: int = setting(MISSING, least=0)  # further attempts after a timeout, a 429 or a failure of the server
    longest_wait: float = setting(MISSING, least=0)  # seconds; a server that asks for more ends the run
    parallel: int = setting(MISSING, least=1)  # requests at the same time
    requests_per_minute: float | None = setting(MISSING, above=0)
    extra: dict[str, Any] = field(default_factory=dict)  # further fields of each request


@dataclass
class TransformersJudgeSpec(ModelJudgeSpec):
    max_tokens: int = setting(MISSING, least=1)
    dtype: str = setting(MISSING, options=("fp32", "bf16", "fp16"))


@dataclass
class StudyTask(TaskSpec):
    ask: list[str] = setting(MISSING, options=QUESTIONS)
    images: int = setting(MISSING, least=1)  # images per pair and table row, the first ones
    baselines: bool = MISSING  # baselines and the oracle take part; they always serve as controls
    pool: int = setting(MISSING, least=1)  # most different comparisons in the page
    repeats: int = setting(MISSING, least=0)  # questions of a participant that are shown again with the sides swapped
    controls: int = setting(MISSING, least=0)  # questions of a participant with a known answer


@dataclass
class StudyResultsTask(TaskSpec):
    passes: float = setting(MISSING, least=0, most=1)  # smallest share of right controls; others are left out
