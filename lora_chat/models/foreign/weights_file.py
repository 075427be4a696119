"""The file of an adapter's weights, in a folder of another tool."""

from collections.abc import Mapping
from pathlib import Path

from lora_chat.errors import IntegrityError
from lora_chat.models.foreign.mlx import MLX_WEIGHTS_NAME, is_mlx_config
from lora_chat.models.other_kinds import explain_other_base
from lora_chat.system.bounded_files import SMALL_FILE_BYTES, read_bytes

_WEIGHTS_NAME = "adapter_model.safetensors"
_PICKLES = "adapter_model.bin", "adapter_model.pt", "adapter_0.pt"
_LFS_START = b"version https://git-lfs.github.com/spec/"
_MAX_POINTER_BYTES = 1024


def find_foreign_weights(folder: Path, config: Mapping[str, object]) -> Path:
    """Return the file of an adapter's weights. Raises IntegrityError if none exist in safetensors."""
    path = folder / (MLX_WEIGHTS_NAME if is_mlx_config(config) else _WEIGHTS_NAME)
    if path.is_file():
        if path.stat().st_size < _MAX_POINTER_BYTES and read_bytes(path, SMALL_FILE_BYTES).startswith(_LFS_START):
            raise IntegrityError(f"{path} is a pointer of Git LFS, not the weights.\nFix: git lfs pull in that folder.")
        return path
    pickles = [name for name in _PICKLES if (folder / name).exists()]
    if pickles:
        raise IntegrityError(
            f"{folder} has its weights only as a pickle ({pickles[0]}), which can run code and is never read.\n"
            f"Fix: if you trust it, load it with PEFT and save it again (save_pretrained), which writes {path.name}."
        )
    if explain_other_base(folder, str(folder)) is None:
        raise IntegrityError(
            f"{folder} is a base with the config of an adapter in it, whose weights are missing ({path.name}).\n"
            "Fix: remove adapter_config.json from that folder."
        )
    raise IntegrityError(
        f"{folder} has an adapter's config and no weights ({path.name}).\nFix: copy or download the folder again."
    )
