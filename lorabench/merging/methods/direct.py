"""Direct merge: the sum of all adapters, the baseline of ZipLoRA (arXiv 2311.13600) and DuoLoRA (2504.13206).

dW_m = sum_k dW_k
"""

from dataclasses import dataclass

from lorabench.merging.masked import MaskedSum


@dataclass(frozen=True, kw_only=True)
class Direct(MaskedSum):
    """A sum without scales and masks."""
