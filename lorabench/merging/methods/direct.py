"""Direct merge: the direct merge of all LoRAs, the baseline of ZipLoRA (arXiv 2311.13600) and DuoLoRA (2504.13206).

dW_m = w_c dW_c + w_s dW_s,   w_c = w_s = 1
"""

from dataclasses import dataclass

from lorabench.merging.method import Method


@dataclass(frozen=True, kw_only=True)
class Direct(Method):
    pass
