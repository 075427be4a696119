"""Comparison of the closed form with dry runs of well-known shapes: `python -m tests.planning.grid 300`."""

import random
import statistics
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from lora_chat.models.shape import read_shape
from lora_chat.planning.layer_memory import MicroBatch
from lora_chat.planning.training_memory import TrainingMemory, estimate_training_memory
from lora_chat.planning.weight_memory import MemoryConfig
from tests.planning import dry_run
from tests.planning.shapes import Widths, make_config


@dataclass(frozen=True)
class Base:
    architecture: str
    widths: Widths
    layers: int
    vocabulary: int
    tied: bool


BASES = (
    Base("llama", Widths(4096, 14336, 32, 8, 128), 32, 128256, tied=False),
    Base("llama", Widths(2048, 8192, 32, 8, 64), 16, 128256, tied=True),
    Base("llama", Widths(576, 1536, 9, 3, 64), 30, 49152, tied=True),
    Base("mistral", Widths(4096, 14336, 32, 8, 128), 32, 32768, tied=False),
    Base("qwen2", Widths(2048, 11008, 16, 2, 128), 36, 151936, tied=True),
    Base("qwen2", Widths(896, 4864, 14, 2, 64), 24, 151936, tied=True),
    Base("qwen3", Widths(4096, 12288, 32, 8, 128), 36, 151936, tied=False),
    Base("qwen3", Widths(1024, 3072, 16, 8, 128), 28, 151936, tied=True),
    Base("gemma", Widths(2048, 16384, 8, 1, 256), 18, 256000, tied=True),
    Base("gemma2", Widths(2304, 9216, 8, 4, 256), 26, 256000, tied=True),
    Base("gemma3_text", Widths(1152, 6912, 4, 1, 256), 26, 262144, tied=True),
    Base("phi", Widths(2560, 10240, 32, 32, 80), 32, 51200, tied=False),
    Base("phi3", Widths(3072, 8192, 32, 32, 96), 32, 32064, tied=False),
    Base("gpt2", Widths(1600, 6400, 25, 25, 64), 48, 50257, tied=True),
    Base("gpt2", Widths(768, 3072, 12, 12, 64), 12, 50257, tied=True),
)


@dataclass(frozen=True)
class Point:
    base: Base
    variant: str
    mode: str
    rank: int
    tokens: int
    rows: int
    supervised: int
    checkpointed: int

    def __str__(self) -> str:
        base = f"{self.base.architecture} {self.base.widths.hidden_size} x {self.base.layers}"
        where = f"{self.variant} {self.mode} r{self.rank} {self.checkpointed} checkpointed"
        return f"{base}, {where}, {self.tokens} tokens in {self.rows} rows, {self.supervised} supervised"


def points(count: int, seed: int) -> Iterator[Point]:
    """Yield every base in turn, with random settings."""
    generator = random.Random(seed)
    for number in range(count):
        base = BASES[number % len(BASES)]
        eager = base.architecture == "gemma2"  # transformers computes all scores: T * T * heads
        variant = generator.choice(["stock", "padded"] if eager else ["fast", "stock", "padded"])
        tokens = generator.choice([512, 1024, 2048, 4096, 8192, 16384])
        yield Point(
            base=base,
            variant=variant,
            mode=generator.choice(["4bit", "8bit", "none"]),
            rank=generator.choice([8, 16, 32, 64, 128]),
            tokens=min(tokens, 4096) if eager else tokens,
            rows=generator.choice([2, 4]) if variant == "padded" else generator.choice([1, 1, 2, 4]),
            supervised=int(tokens * generator.choice([0.1, 0.5, 0.9]) if not eager else min(tokens, 4096) * 0.5),
            checkpointed=generator.choice([0, base.layers // 2, base.layers]),
        )


def measure(point: Point) -> int:
    """Return the peak bytes of the dry run."""
    all_checkpointed = point.checkpointed == point.base.layers
    return dry_run.dry_run(
        dry_run.Setting(
            config=_config(point.base),
            mode=point.mode,
            rank=point.rank,
            rows=point.rows,
            length=point.tokens // point.rows,
            supervised=point.supervised,
            checkpointed=True if all_checkpointed else point.checkpointed,
            fast_path=point.variant == "fast",
            padded=point.variant == "padded",
        )
    ).peak


def predict(point: Point) -> TrainingMemory:
    """Return the closed form of the same point."""
    shape = read_shape(_config(point.base).to_dict(), "this")
    setting = MemoryConfig(
        mode=point.mode,  # type: ignore[arg-type]
        rank=point.rank,
        fast_path=point.variant == "fast",
        checkpointed=point.checkpointed,
    )
    batch = MicroBatch(point.tokens, point.tokens // point.rows, point.supervised)
    return estimate_training_memory(shape, setting, batch, padded=point.variant == "padded")


def _config(base: Base) -> object:
    return make_config(base.architecture, base.widths, base.layers, base.vocabulary, tied=base.tied)


def main(count: int, seed: int) -> None:
    warnings.simplefilter("ignore")
    errors = []
    for point in points(count, seed):
        peak, memory = measure(point), predict(point)
        errors.append(memory.total / peak - 1)
        print(f"{errors[-1]:+8.3%}  {peak / 2**30:8.3f} GiB  {memory.peak_moment:15} {point}", flush=True)
    sizes = [abs(error) for error in errors]
    print(f"{count} settings: worst {max(sizes):.2%}, median {statistics.median(sizes):.3%}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
