"""A judge from its settings; packages that only one kind needs are imported for that kind."""

from __future__ import annotations

from lorabench.base import UserError
from lorabench.config.judging import JudgeSpec, OpenAIJudgeSpec, TransformersJudgeSpec, TruthJudgeSpec
from lorabench.scoring.judges.comparison import Comparison


def build(spec: JudgeSpec, device: str) -> Comparison:
    """Return the judge of a configuration.

    Raises:
        UserError: If a setting or a file is missing.
    """
    if isinstance(spec, TruthJudgeSpec):
        from lorabench.scoring.judges.truth import TruthJudge

        return TruthJudge(spec.renders, spec.margin)
    if isinstance(spec, OpenAIJudgeSpec):
        from lorabench.scoring.judges.endpoint import EndpointJudge

        return EndpointJudge(spec)
    if isinstance(spec, TransformersJudgeSpec):
        from lorabench.scoring.judges.local import LocalJudge

        return LocalJudge(spec, device)
    raise UserError("judge=none judges nothing; use judge=truth, judge=openai or judge=transformers")
