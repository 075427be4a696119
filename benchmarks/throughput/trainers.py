"""Which trainers are compared, and with which settings."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Trainer:
    """One program with one setting."""

    name: str
    program: str
    """The runner's file without `run_` and `.py`."""
    setting: dict[str, Any] = field(default_factory=dict)
    same_batches: bool = True
    """Whether its steps hold the same dialogues as those of the others, so that losses can be compared."""

    @property
    def runner(self) -> str:
        """The runner's file."""
        return f"run_{self.program}.py"


def _trl(name: str, batch: int, checkpointing: bool, **more: Any) -> Trainer:
    """TRL in bfloat16 with 8 dialogues a step."""
    setting = {"batch": batch, "accumulation": 8 // batch, "checkpointing": checkpointing, "dtype": "bfloat16"}
    return Trainer(name, "trl", setting | more)


def _packed(name: str, checkpointing: bool) -> Trainer:
    """TRL with one row of at least 1,024 tokens a step, which is 8 dialogues or so."""
    setting = {"batch": 1, "accumulation": 1, "checkpointing": checkpointing, "dtype": "bfloat16", "packing": True}
    return Trainer(name, "trl", setting, same_batches=False)


_LIGHT = {"batch": 1, "accumulation": 8, "checkpointing": False}

NAMED: dict[str, Trainer] = {
    one.name: one
    for one in (
        Trainer("ours", "ours"),
        Trainer("trl-sft", "trl"),  # the runner's defaults are those of the command
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
    """Trainers by name; `trl:{"batch": 2}` is a program with a setting of its own."""
    found = []
    for name in names:
        program, colon, setting = name.partition(":")
        if name in NAMED:
            found.append(NAMED[name])
        elif colon and program in {one.program for one in NAMED.values()}:
            given: dict[str, Any] = json.loads(setting)
            same = program != "trl" or not given.get("packing")
            found.append(Trainer(name, program, given, same))
        else:
            raise SystemExit(f"no trainer {name}; there are {', '.join(NAMED)}, and PROGRAM:JSON")
    return found


def grid() -> list[Trainer]:
    """TRL's flags in bfloat16: batch, checkpointing and packing."""
    plain = [
        _trl(f"batch {batch} x {8 // batch}{', checkpointing' if on else ''}", batch, on)
        for batch in (1, 2, 4, 8)
        for on in (True, False)
    ]
    return [*plain, _packed("packing, checkpointing", True), _packed("packing", False)]
