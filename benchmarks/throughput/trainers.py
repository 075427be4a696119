"""List the trainers that are compared and their settings."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Trainer:
    """One program with one setting."""

    name: str
    program: str
    """Name of the runner's file without `run_` and `.py`."""
    setting: dict[str, Any] = field(default_factory=dict)
    same_batches: bool = True
    """Whether its steps contain the same dialogues as other trainers' steps, so that losses can be compared."""

    @property
    def runner(self) -> str:
        """Return the name of the runner's file."""
        return f"run_{self.program}.py"


def _trl(name: str, batch: int, checkpointing: bool, **more: Any) -> Trainer:
    """Return TRL in bfloat16 with 8 dialogues per step."""
    setting = {"batch": batch, "accumulation": 8 // batch, "checkpointing": checkpointing, "dtype": "bfloat16"}
    return Trainer(name, "trl", setting | more)


def _packed(name: str, checkpointing: bool) -> Trainer:
    """Return TRL with one row of at least 1,024 tokens per step, about 8 dialogues."""
    setting = {"batch": 1, "accumulation": 1, "checkpointing": checkpointing, "dtype": "bfloat16", "packing": True}
    return Trainer(name, "trl", setting, same_batches=False)


_LIGHT = {"batch": 1, "accumulation": 8, "checkpointing": False}

NAMED: dict[str, Trainer] = {
    trainer.name: trainer
    for trainer in (
        Trainer("ours", "ours"),
        Trainer("trl-sft", "trl"),  # the runner has the defaults of the command
        _trl("trl-bf16", 8, True),
        _trl("trl-best", 1, False),
        _trl("trl-best-mallopt", 1, False, mallopt=True),
        _packed("trl-packing", False),
        Trainer("llama-factory", "llama_factory"),
        Trainer("llama-factory-best", "llama_factory", _LIGHT),
        Trainer("llama-factory-packing", "llama_factory", _LIGHT | {"accumulation": 1, "packing": True}),
    )
}


def find_trainers(names: Sequence[str]) -> list[Trainer]:
    """Find trainers by name. `trl:{"batch": 2}` is a program with another setting."""
    trainers = []
    for name in names:
        program, colon, setting = name.partition(":")
        if name in NAMED:
            trainers.append(NAMED[name])
        elif colon and program in {trainer.program for trainer in NAMED.values()}:
            values: dict[str, Any] = json.loads(setting)
            same_batches = program != "trl" or not values.get("packing")
            trainers.append(Trainer(name, program, values, same_batches))
        else:
            raise SystemExit(f"no trainer {name}; there are {', '.join(NAMED)}, and PROGRAM:JSON")
    return trainers


def grid() -> list[Trainer]:
    """Return TRL with all combinations of batch, checkpointing and packing in bfloat16."""
    plain = [
        _trl(f"batch {batch} x {8 // batch}{', checkpointing' if on else ''}", batch, on)
        for batch in (1, 2, 4, 8)
        for on in (True, False)
    ]
    return [*plain, _packed("packing, checkpointing", True), _packed("packing", False)]
