"""No library of this process fetches compiled code from a hub, whatever a base's config asks for."""

import sys


def block_hub_code() -> None:
    """Make `import kernels` fail: Transformers and bitsandbytes download and run code with that package.

    The variable USE_HUB_KERNELS stops only some of their ways to it. Call this before they are imported.
    """
    sys.modules["kernels"] = None  # type: ignore[assignment]  # the documented way to block an import
