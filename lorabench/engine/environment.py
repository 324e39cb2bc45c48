"""Environment variables by which a library would change what is computed, although no key of the store has them.

Lightning fills each argument of a Trainer that is not given from `PL_TRAINER_<ARGUMENT>`. oneDNN, cuBLAS and diffusers
have switches for the precision or the implementation of matrix products and attention.
"""

import os

PREFIXES = ("PL_",)
NAMES = (
    "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE", "DIFFUSERS_ATTN_BACKEND", "DIFFUSERS_ENABLE_HUB_KERNELS", "PYTORCH_JIT",
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD",
)  # fmt: skip


def clear_environment() -> list[str]:
    """Remove these variables from the environment of this process and of those that it starts.

    Returns:
        Their names.
    """
    found = [name for name in os.environ if name.startswith(PREFIXES) or name in NAMES]
    for name in found:
        del os.environ[name]
    return sorted(found)
