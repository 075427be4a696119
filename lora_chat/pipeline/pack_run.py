"""A finished run -> one small file that somebody else can check."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from lora_chat.config.recipe import AdapterSection
from lora_chat.data.encoding.chat_template import CHATML_TEMPLATE, install_template
from lora_chat.errors import LoraChatError, RecipeError
from lora_chat.export.merge import Mixture
from lora_chat.export.parity.compare import check_proof
from lora_chat.export.parity.format import proof_line
from lora_chat.export.parity.samples import make_probes
from lora_chat.export.peft import prove_adapter
from lora_chat.models.adapter import check_stored
from lora_chat.models.adapter_files import WEIGHTS_NAME
from lora_chat.models.base_model import load_tokenizer, read_architecture
from lora_chat.models.stop_tokens import read_stop_ids
from lora_chat.pipeline.held_out import Own, find_held_out
from lora_chat.pipeline.open_adapter import Opened, Trust, open_thing
from lora_chat.runs.run_folder import RunFolder, open_run_folder
from lora_chat.sharing.build import UNSEALED, seal, write_parcel
from lora_chat.sharing.collect import (
    bound_base,
    bound_precision,
    collect_comparison,
    collect_data,
    collect_recipe,
    collect_training,
    collect_versions,
)
from lora_chat.sharing.compatibility import report_portability
from lora_chat.sharing.figures import ProofReceipt
from lora_chat.sharing.parcel import SUFFIX, Parcel, open_parcel, settings_of
from lora_chat.sharing.receipt import Receipt, explain
from lora_chat.sharing.tensor_checks import check_tensors, read_tensors
from lora_chat.system.console import megabytes, pasted, say, shown
from lora_chat.system.user_key import is_signed, sign
from lora_chat.system.user_path import user_path

_PURPOSE = "proof 1"


def pack_run(thing: str, out: Path | None, license_name: str | None, key: Path | None, trust: Trust) -> dict[str, Any]:
    """Prove a run's adapter with plain PEFT, write its parcel, and read it again as a receiver would.

    Raises RecipeError for what cannot be packed, IntegrityError where PEFT finds another model in it.
    """
    run = open_run_folder(thing)
    opened = open_thing(thing, say, trust)
    name = run.path.resolve().name
    to = user_path(out or f"{name}{SUFFIX}").absolute()
    if to.suffix != SUFFIX:
        to = to / f"{name}{SUFFIX}" if to.is_dir() else to.with_name(to.name + SUFFIX)
    draft, weights = draft_receipt(opened, run, name, license_name)
    try:
        members = seal(draft, weights, key)
    except ValueError as error:
        raise RecipeError(f"This run cannot be packed: {explain(error)}.") from error
    write_parcel(members, to, lambda path: open_parcel(path))
    parcel = open_parcel(to)
    say(_told(parcel))
    return {"parcel": str(to), "size": to.stat().st_size, "sha256": parcel.sha256, "members": sorted(members)}


def draft_receipt(opened: Opened, run: RunFolder, name: str, license_name: str | None) -> tuple[Receipt, bytes]:
    """A receipt without digests of members, and the weights it is about."""
    stored, identity = opened.found.stored, opened.found.stored.identity
    if identity is None:
        raise RecipeError(f"{opened.name} does not say which base it was trained on; it cannot be packed.")
    settings = check_stored(stored)
    weights = (run.adapter / WEIGHTS_NAME).read_bytes()
    base = bound_base(identity)
    plan = run.read_plan()
    try:
        receipt = Receipt(
            format="lora_chat parcel",
            version=base.version,
            name=name,
            license=license_name,
            base=base,
            precision=bound_precision(run),
            architecture=read_architecture(opened.found.base),
            adapter=AdapterSection(
                rank=settings["r"],
                alpha=settings["lora_alpha"],
                dropout=settings["lora_dropout"],
                target_modules=tuple(sorted(settings["target_modules"])),
                variant="dora" if settings["use_dora"] else "rslora" if settings["use_rslora"] else "lora",
            ),
            parameters=check_tensors(read_tensors(weights), settings),
            recipe=collect_recipe(run, base.base),
            data=collect_data(run),
            seed=plan.training.seed,
            versions=collect_versions(run),
            training=collect_training(run),
            comparison=collect_comparison(run),
            proof=ProofReceipt.model_validate_json(json.dumps(_proof(opened, run, weights))),
            chat_template=_own_template(opened),
            signer=None,
            members={},
            digest=UNSEALED,
        )
    except ValueError as error:
        raise RecipeError(f"This run cannot be packed: {explain(error)}.") from error
    return receipt, weights


def _proof(opened: Opened, run: RunFolder, weights: bytes) -> dict[str, Any]:
    """What plain PEFT makes of the adapter; measured once for each adapter, so that packing again changes nothing."""
    digest = hashlib.sha256(weights).hexdigest()
    if run.proof.is_file():
        kept = run.read_proof()
        if kept.get("adapter") == digest and _is_own(kept):
            return dict(kept["report"])
    stop_ids = read_stop_ids(opened.found.base, opened.found.tokenizer)
    mixture = Mixture(((opened.found, 1.0),), opened.precision, tuple(stop_ids))
    probes = make_probes(find_held_out(opened, Own()).validation)
    report = check_proof(prove_adapter(mixture, probes, run.adapter, say), accept=False)
    say(proof_line(report))
    found = report.as_dict()
    kept = {"adapter": digest, "report": found}
    with suppress(OSError, LoraChatError):  # without a key it is measured again next time
        kept["mac"] = sign(_PURPOSE, _content(kept))
    run.write_json(run.proof, kept)
    return found


def _is_own(kept: dict[str, Any]) -> bool:
    """Whether a proof was made by this user: what is packed states it under his name."""
    mark = kept.pop("mac", None)
    try:
        return isinstance(mark, str) and mark.isascii() and is_signed(_PURPOSE, _content(kept), mark)
    except (OSError, LoraChatError):
        return False


def _content(kept: dict[str, Any]) -> bytes:
    return json.dumps(kept, sort_keys=True).encode("ascii")


def _own_template(opened: Opened) -> str | None:
    """The template's text, if whoever has the base and lora_chat does not have it anyway."""
    text = str(opened.found.tokenizer.chat_template)
    plain = load_tokenizer(opened.found.base)
    return None if text in (install_template(plain), CHATML_TEMPLATE) else text


def _told(parcel: Parcel) -> str:
    receipt = parcel.receipt
    lines = [
        f"Packed {shown(parcel.path)} ({megabytes(parcel.path.stat().st_size)}): weights, config, card and receipt"
        + (", signed" if receipt.signer else ""),
        f"sha256   {parcel.sha256}   (tell it to the receiver by another way)",
    ]
    if receipt.base.system is not None:
        lines.append("With it goes the system message of the dialogues; none of their other words do.")
    portability = report_portability(settings_of(receipt), receipt.precision.mode, receipt.architecture)
    lines += [f"{p.program:<10} {p.answer:<7} {p.why}" for p in portability]
    name = pasted(Path(parcel.path.name))
    lines.append(f"The receiver types: lora-chat verify {name}, then lora-chat chat {name}")
    return "\n".join(lines)
