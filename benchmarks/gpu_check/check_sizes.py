"""Define the sizes of the check: `full` for a real card, `tiny` to rehearse it on an emulated one."""

from dataclasses import dataclass
from typing import Any

GIB = 2**30
MIB = 2**20
_LLAMA_1B, _LLAMA_8B = "meta-llama/Llama-3.2-1B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"


@dataclass(frozen=True)
class ParityShape:
    """A model of two layers whose gradients are compared."""

    base: str
    """Known base whose config is changed."""
    changes: dict[str, Any]
    """Changed keys of the config."""


@dataclass(frozen=True)
class SpeedShape:
    """A model whose training is timed."""

    base: str
    changes: dict[str, Any]
    steps: int
    """Steps of one block; trainers take turns after each block."""


@dataclass(frozen=True)
class PlanSetting:
    """One setting whose estimate is compared with a measurement."""

    shape: str
    """Name of a speed shape."""
    mode: str
    card: int
    """Memory of the emulated card, in bytes."""
    length: int
    """Tokens of each dialogue."""
    rows: int
    """Dialogues of a micro-batch."""
    fast: bool
    checkpointed: bool


@dataclass(frozen=True)
class CheckSize:
    """All sizes of one check."""

    name: str
    parity_shapes: dict[str, ParityShape]
    parity_modes: tuple[str, ...]
    parity_lengths: tuple[int, ...]
    """Lengths of the dialogues, in tokens."""
    parity_prefix: int
    """Length of the prefix that the dialogues share, in tokens."""
    speed_shapes: dict[str, SpeedShape]
    tokens: int
    """Tokens of one step, which is one micro-batch of eight dialogues."""
    warmup: int
    """Steps before the first block."""
    rounds: int
    """Blocks of each trainer."""
    plan_settings: tuple[PlanSetting, ...]
    step_down: tuple[str, int]
    """Shape, and the budget in tokens that has to be lowered because it does not fit."""
    run_config: dict[str, Any]
    """Config of the base that the command line trains."""
    run_dialogues: int
    run_steps: int
    smoke_modes: tuple[str, ...]
    """Modes of quantization in which the smoke recipe runs."""
    merge_share: float
    """Share of the 16-bit model for which the merge on a full card leaves memory; the 4-bit model fits into it."""


def _heads(hidden: int, heads: int, kv_heads: int, head_dim: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": 4096,
        "eos_token_id": 2,
        "bos_token_id": None,
        "pad_token_id": 0,
        **more,
    }


def _parity_shapes(scale: int, window: int) -> dict[str, ParityShape]:
    """Return one shape for each kind of attention; `scale` divides the hidden size, never the head size."""
    return {
        "llama": ParityShape(_LLAMA_1B, _heads(2048 // scale, 32 // scale, 8 // scale, 64)),
        "qwen3": ParityShape("Qwen/Qwen3-1.7B", _heads(2048 // scale, 16 // scale, 8 // scale, 128)),
        "mistral window": ParityShape(
            "mistralai/Mistral-7B-Instruct-v0.3",
            _heads(2048 // scale, 16 // scale, 8 // scale, 128, sliding_window=window),
        ),
        "gemma2": ParityShape(
            "google/gemma-2-2b-it", _heads(2048 // scale, 8 // scale, 8 // scale, 256, sliding_window=window)
        ),
    }


_RUN_CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": None,
}


def _plan_settings(unit: int, cards: tuple[int, int, int], lengths: tuple[int, int]) -> tuple[PlanSetting, ...]:
    """Return six settings on three emulated cards, whose memory is in units of `unit` bytes.

    The first setting has dialogues of the first length in tokens, and the others of the second.
    """
    small, middle, large = (unit * card for card in cards)
    first, other = lengths
    return (
        PlanSetting("1B", "none", small, first, 4, fast=True, checkpointed=False),
        PlanSetting("1B", "4bit", small, other, 2, fast=False, checkpointed=False),
        PlanSetting("1B", "8bit", middle, other, 4, fast=True, checkpointed=False),
        PlanSetting("8B", "4bit", middle, other, 2, fast=True, checkpointed=True),
        PlanSetting("8B", "4bit", large, other, 2, fast=False, checkpointed=True),
        PlanSetting("8B", "4bit", large, other, 2, fast=True, checkpointed=False),
    )


_FULL = CheckSize(
    name="full",
    parity_shapes=_parity_shapes(1, 512),
    parity_modes=("none", "4bit", "8bit"),
    parity_lengths=(2048, 1100, 700, 400, 333, 300),
    parity_prefix=240,
    speed_shapes={"1B": SpeedShape(_LLAMA_1B, {}, 8), "8B": SpeedShape(_LLAMA_8B, {}, 4)},
    tokens=2048,
    warmup=3,
    rounds=3,
    plan_settings=_plan_settings(GIB, (8, 12, 16), (512, 1024)),
    step_down=("1B", 16384),
    run_config=_RUN_CONFIG
    | {"hidden_size": 1536, "intermediate_size": 4096, "num_attention_heads": 12, "num_key_value_heads": 4}
    | {"head_dim": 128, "num_hidden_layers": 12, "vocab_size": 1024},
    run_dialogues=160,
    run_steps=60,
    smoke_modes=("none", "4bit", "8bit"),
    merge_share=0.7,
)
_TINY_CHANGES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
    "eos_token_id": 2,
}
_TINY = CheckSize(
    name="tiny",
    parity_shapes=_parity_shapes(8, 24),
    parity_modes=("none", "4bit", "8bit"),
    parity_lengths=(96, 60, 40, 31),
    parity_prefix=16,
    speed_shapes={
        "1B": SpeedShape(_LLAMA_1B, _TINY_CHANGES, 1),
        "8B": SpeedShape(_LLAMA_8B, _TINY_CHANGES | {"num_hidden_layers": 3}, 1),
    },
    tokens=256,
    warmup=1,
    rounds=2,
    plan_settings=_plan_settings(MIB, (256, 384, 512), (32, 48)),
    step_down=("1B", 2048),
    run_config=_RUN_CONFIG
    | {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "num_key_value_heads": 2}
    | {"head_dim": 64, "num_hidden_layers": 6, "vocab_size": 512},
    run_dialogues=24,
    run_steps=6,
    smoke_modes=("none",),
    merge_share=0.9,
)


def find_size(name: str) -> CheckSize:
    """Return the sizes with a name."""
    return {"full": _FULL, "tiny": _TINY}[name]
