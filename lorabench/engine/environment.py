"""Environment variables that change results through a library, although they are not part of any key.

Lightning reads each missing argument of a Trainer from `PL_TRAINER_<ARGUMENT>`. oneDNN, cuBLAS, cuDNN, torch,
diffusers, transformers and timm read the precision or the implementation of matrix products, attention and networks.
Variables that only choose among a machine's instructions (`ATEN_CPU_CAPABILITY`) or its threads stay, and costs record
the used ones (`lorabench.engine.costs`).
"""

import os

PREFIXES = (
    "PL_", "TIMM_", "TORCH_BLAS_", "TORCH_LINALG_", "TORCH_MKLDNN_", "TORCH_CUDNN_", "PYTORCH_NVFUSER_",
    "PYTORCH_TENSOREXPR",
)  # fmt: skip
NAMES = (
    "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE", "DIFFUSERS_ATTN_BACKEND", "DIFFUSERS_ENABLE_HUB_KERNELS", "PYTORCH_JIT",
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "TORCH_LINEAR_FLATTEN_3D", "USE_HUB_KERNELS", "TRANSFORMERS_SDPA_FORCE_GQA",
    "NPY_PROMOTION_STATE",
)  # fmt: skip


def clear_environment() -> list[str]:
    """Remove these variables from the environment of this process and of its future children.

    Returns:
        The names of the removed variables.
    """
    found = [name for name in os.environ if name.startswith(PREFIXES) or name in NAMES]
    for name in found:
        del os.environ[name]
    return sorted(found)
