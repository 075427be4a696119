"""The adapter as a plain folder that PEFT and what is built on it open, proven by PEFT without lora_chat."""

from collections.abc import Callable, Sequence
from pathlib import Path

from lora_chat.errors import RecipeError
from lora_chat.export.merge import Mixture
from lora_chat.export.parity.compare import ProofReport, check_proof, prove
from lora_chat.export.parity.outputs import ask
from lora_chat.export.parity.peft_runner import PeftReader
from lora_chat.export.parity.samples import Probe
from lora_chat.export.parity.tolerances import limits_of
from lora_chat.models.adapter import write_stored

_WHAT = "PEFT adapter"


def export_peft(
    mixture: Mixture, probes: Sequence[Probe], folder: Path, notice: Callable[[str], None], *, accept: bool = False
) -> list[ProofReport]:
    """Write weights and a config of what PEFT needs to know; the template lies beside.

    Raises IntegrityError if PEFT finds another model in it and that is not accepted.
    """
    if len(mixture.adapters) > 1:
        raise RecipeError("A PEFT folder holds one adapter; PEFT loads several side by side.")
    stored = mixture.adapters[0][0].stored
    write_stored(stored, folder)
    (folder / "chat_template.jinja").write_text(str(mixture.tokenizer.chat_template), encoding="utf-8")
    return [check_proof(prove_adapter(mixture, probes, folder, notice), accept=accept)]


def prove_adapter(
    mixture: Mixture, probes: Sequence[Probe], folder: Path, notice: Callable[[str], None]
) -> ProofReport:
    """A folder in PEFT's layout against the adapted model."""
    notice("Asking the adapted model")
    expected = mixture.ask(probes)
    notice("Asking PEFT, in a process without lora_chat")
    pad = int(mixture.tokenizer.pad_token_id)
    reader = PeftReader(folder, mixture.base, mixture.precision, probes, mixture.stop_ids, pad)
    delivered = ask(reader, probes, mixture.stop_ids, expected.logits[0].shape[-1])
    return prove(_WHAT, reader.name, expected, delivered, probes, limits_of(_WHAT))
