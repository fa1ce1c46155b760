"""The environment of engine processes: an allow-list, so that no key reaches code that reads bytes of strangers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

NAMES: Final = frozenset(
    {
        "PATH", "HOME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH",
        "DYLD_FALLBACK_LIBRARY_PATH", "XDG_RUNTIME_DIR", "XDG_DATA_DIRS", "LIBGL_DRIVERS_PATH", "GGML_NO_BACKTRACE",
    }
)  # fmt: skip
# Of the C library, OpenMP, and the drivers of GPUs. LLAMA_ARG_* is left out: it changes the command line.
PREFIXES: Final = (
    "LC_", "OMP_", "GOMP_", "KMP_", "CUDA_", "NVIDIA_", "GGML_", "HIP_", "ROCR_", "ROCM_", "HSA_", "AMD_", "GPU_",
    "VK_", "MESA_", "RADV_", "ANV_", "MTL_", "ONEAPI_", "SYCL_", "ZE_", "GLIBC_TUNABLES", "MALLOC_",
)  # fmt: skip
# Our own patches' variables (llama.cpp/README.md): the daemon sets them.
_NOT: Final = ("GGML_RPC_",)
_SECRETS: Final = ("TOKEN", "SECRET", "PASSWORD", "API_KEY", "CREDENTIAL")


def filtered(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that an engine process inherits."""
    return {
        name: value
        for name, value in environment.items()
        if (name in NAMES or name.startswith(PREFIXES))
        and not name.startswith(_NOT)
        and not any(word in name.upper() for word in _SECRETS)
    }
