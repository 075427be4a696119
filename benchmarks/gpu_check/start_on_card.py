"""Run a program or a module on an emulated card, or on a real card with less memory.

python benchmarks/gpu_check/start_on_card.py [--memory BYTES | --free BYTES] (PROGRAM | -m MODULE) [ARGUMENT ...]
"""

import importlib
import os
import runpy
import sys

_DEFAULT_MEMORY = 12 * 2**30
"""Memory of the emulated card, in bytes."""
_TINY_MATRIX = 128


def install_fake_card(folder: str) -> None:
    """Load the emulated card, which must be there before PyTorch is imported."""
    sys.path.insert(0, folder)
    fake_card = importlib.import_module("fake_card")
    importlib.import_module("bitsandbytes")  # before the card, which takes over its operations
    fake_card.install(memory=_DEFAULT_MEMORY)
    sys.path.remove(folder)
    # The product with which the planner measures a card would take minutes on an emulated one.
    importlib.import_module("lora_chat.planning.local_device")._GPU_MATRIX_SIZE = _TINY_MATRIX  # type: ignore[attr-defined]


def main() -> None:
    """Set up the card, then run the program as if it had been started directly."""
    words, limit = sys.argv[1:], ("", 0)
    if words[0] in ("--memory", "--free"):
        limit, words = (words[0], int(words[1])), words[2:]
    folder = os.environ.get("GPU_CHECK_FAKE_CARD")
    if folder:
        install_fake_card(folder)
    if limit[0]:
        from lora_chat.system.operating_system import let_segments_grow

        let_segments_grow(os.environ)  # before PyTorch is imported, as the command line does
        from card_memory import emulate_smaller_card, leave_free

        (leave_free if limit[0] == "--free" else emulate_smaller_card)(limit[1])
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main()
