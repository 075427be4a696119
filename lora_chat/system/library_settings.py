"""Settings of libraries: no telemetry, no code from a hub, and messages only of lora_chat."""

import sys

ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "DISABLE_KUBEFLOW_INTEGRATION": "TRUE",  # Trainer would send the metrics of every process to the cluster
    "USE_HUB_KERNELS": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_XET": "1",
}
"""Variables that are set before any library is imported: no telemetry, and no code from a hub."""
SMALLER_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "64"}
"""Numbers of entries in the caches of compiled products of oneDNN and PyTorch.

Micro-batches rarely have the same shape twice, so the default of 1,024 entries took 0.9 GB after a hundred steps and
made no step faster.
"""
CHATTY_LIBRARIES = (
    *("bitsandbytes", "transformers", "trl", "peft", "accelerate", "datasets", "torch", "matplotlib", "lm_eval"),
)
"""Loggers whose messages are hidden below errors, because lora_chat reports what matters to the user."""
KERNELS_PACKAGE = "kernels"
"""Package with which Transformers and bitsandbytes download code and run it."""


def block_hub_code() -> None:
    """Make `import kernels` fail, because Transformers and bitsandbytes download and run code with that package.

    The variable USE_HUB_KERNELS stops only some of their uses. Call this before they are imported.
    """
    sys.modules[KERNELS_PACKAGE] = None  # type: ignore[assignment]  # the documented way to block an import
