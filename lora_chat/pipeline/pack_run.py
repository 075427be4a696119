"""The parcel of a finished run: one small file that a receiver can verify."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue

from lora_chat.config.base import StrictModel
from lora_chat.data.encoding.bundled_templates import CHATML_TEMPLATE
from lora_chat.data.encoding.chat_template import find_earlier_template, install_template
from lora_chat.errors import UsageError
from lora_chat.export.merge import AdapterBlend
from lora_chat.export.parity.compare import check_parity
from lora_chat.export.parity.default_prompts import make_default_samples
from lora_chat.export.parity.format import format_parity_line
from lora_chat.export.parity.samples import select_parity_samples
from lora_chat.export.peft import check_adapter_parity
from lora_chat.models.adapter import validate_adapter_config
from lora_chat.models.adapter_config import LoraSettings
from lora_chat.models.adapter_files import WEIGHTS_NAME
from lora_chat.models.base_model import load_tokenizer, read_model_type
from lora_chat.models.stop_tokens import read_stop_ids
from lora_chat.pipeline.held_out import EvaluationFiles, prepare_evaluation
from lora_chat.pipeline.model_reference import read_or_measure_reference
from lora_chat.pipeline.open_adapter import OpenAdapter, TrustOptions, open_adapter
from lora_chat.pipeline.parent import read_lineage
from lora_chat.runs.run_folder import RunFolder, open_run_folder
from lora_chat.sharing.build import PLACEHOLDER_DIGEST, build_members, write_parcel
from lora_chat.sharing.collect import (
    collect_comparison,
    collect_data,
    collect_evaluation,
    collect_generations,
    collect_judgement,
    collect_precision,
    collect_recipe,
    collect_training,
    collect_versions,
    make_base_receipt,
)
from lora_chat.sharing.compatibility import report_portability
from lora_chat.sharing.container import PARCEL_SUFFIX
from lora_chat.sharing.figures import ParityReceipt
from lora_chat.sharing.hub_metadata import describe_for_hub
from lora_chat.sharing.parcel import Parcel, open_parcel
from lora_chat.sharing.receipt import Receipt, format_validation_error
from lora_chat.sharing.shared_text import check_shared_text, redact_shared_text
from lora_chat.sharing.statement import write_statement
from lora_chat.sharing.tensor_checks import check_tensors, read_tensors
from lora_chat.system.console import display_path, format_bytes, quote_path
from lora_chat.system.user_key import pop_record_signature, sign_record
from lora_chat.system.user_path import expand_user_path

logger = logging.getLogger(__name__)

_SIGNATURE_PURPOSE = "proof 1"


class PackResult(StrictModel):
    """The written parcel."""

    parcel: str
    """Path of the file."""
    size: int
    """Size of the file, in bytes."""
    sha256: str
    members: tuple[str, ...]
    """Names of the files inside."""
    statement: str | None = None
    """Path of the in-toto statement; None if none was asked for."""


def pack_run(
    source: str,
    out: Path | None,
    license_name: str | None,
    key: Path | None,
    trust: TrustOptions,
    *,
    accept_findings: bool = False,
    statement: Path | None = None,
    languages: Sequence[str] = (),
) -> PackResult:
    """Check a run's adapter with plain PEFT, write its parcel, and verify the parcel as a receiver would.

    `statement` is the file of an in-toto statement that is written too. `languages` are ISO 639 codes.

    Raises UsageError if the run cannot be packed, IntegrityError if the parity check fails, and DataError if the parcel
    would share what the run's audit refuses, or secrets without `accept_findings`.
    """
    run = open_run_folder(source)
    opened = open_adapter(source, trust)
    name = run.path.resolve().name
    to = expand_user_path(out or f"{name}{PARCEL_SUFFIX}").absolute()
    if to.suffix != PARCEL_SUFFIX:
        to = to / f"{name}{PARCEL_SUFFIX}" if to.is_dir() else to.with_name(to.name + PARCEL_SUFFIX)
    draft, weights = draft_receipt(
        opened, run, name, license_name, accept_findings=accept_findings, languages=languages
    )
    try:
        members = build_members(draft, weights, key, validate_adapter_config(opened.adapter.stored))
    except ValueError as error:
        raise UsageError(f"This run cannot be packed: {format_validation_error(error)}.") from error
    write_parcel(members, to, lambda path: open_parcel(path))
    parcel = open_parcel(to)
    logger.info(_format_packed(parcel))
    result = PackResult(parcel=str(to), size=to.stat().st_size, sha256=parcel.sha256, members=tuple(sorted(members)))
    if statement is None:
        return result
    path = expand_user_path(statement).absolute()
    write_statement(parcel, path)
    return result.model_copy(update={"statement": str(path)})


def draft_receipt(
    opened: OpenAdapter,
    run: RunFolder,
    name: str,
    license_name: str | None,
    *,
    accept_findings: bool = False,
    languages: Sequence[str] = (),
) -> tuple[Receipt, bytes]:
    """Return a receipt without the digests of members, and the adapter's weights."""
    stored, identity = opened.adapter.stored, opened.adapter.stored.identity
    if identity is None:
        raise UsageError(f"{opened.name} does not name its base, so it cannot be packed.")
    settings = validate_adapter_config(stored)
    weights = (run.adapter / WEIGHTS_NAME).read_bytes()
    base = make_base_receipt(identity)
    plan = run.read_plan()
    lineage = read_lineage(run)
    evaluation, judgement = collect_evaluation(run), collect_judgement(run, name)
    if judgement and base.version == 1:
        logger.warning("The parcel leaves out the human votes, because its run is of a version without them.")
        judgement = None
    template = _find_custom_template(opened)
    try:
        recipe, data = redact_shared_text(collect_recipe(run, base.base), collect_data(run), plan.audit)
        texts: dict[str, JsonValue] = {
            "name": name,
            "base": base.model_dump(mode="json"),
            "recipe": recipe,
            "data": data.model_dump(mode="json"),
            "chat_template": template,
            "lineage": [parent.name for parent in lineage or ()],
            "judgement": judgement.b.label if judgement else None,
        }
        for line in check_shared_text(texts, data.audit, plan.audit, accept_findings=accept_findings):
            logger.warning(line)
        precision, versions = collect_precision(run), collect_versions(run)
        training, comparison = collect_training(run), collect_comparison(run)
        generations = collect_generations(run) if lineage else None
        parameters = check_tensors(read_tensors(weights), settings)
        # The two measurements load weights, so they follow all refusals.
        parity = _read_or_run_parity_check(opened, run, weights)
        reference = read_or_measure_reference(opened, run) if base.version > 1 else None
        receipt = Receipt(
            format="lora_chat parcel",
            version=6 if base.version > 1 else 3 if lineage else 1,
            name=name,
            license=license_name,
            base=base,
            precision=precision,
            architecture=read_model_type(opened.adapter.base),
            adapter=settings.to_section(),
            parameters=parameters,
            recipe=recipe,
            data=data,
            seed=plan.training.seed,
            versions=versions,
            training=training,
            comparison=comparison,
            proof=parity,
            chat_template=template,
            signer=None,
            members={},
            digest=PLACEHOLDER_DIGEST,
            lineage=lineage,
            generations=generations,
            evaluation=evaluation,
            reference=reference,
            judgement=judgement,
            hub=describe_for_hub(identity.base, recipe["data"], languages) if base.version > 1 else None,
        )
    except ValueError as error:
        raise UsageError(f"This run cannot be packed: {format_validation_error(error)}.") from error
    return receipt, weights


def _read_or_run_parity_check(opened: OpenAdapter, run: RunFolder, weights: bytes) -> ParityReceipt:
    """Return the parity report of the adapter in plain PEFT.

    The report is measured once and cached in the run, because packing the run again must give the same bytes.
    """
    digest = hashlib.sha256(weights).hexdigest()
    if run.parity_report.is_file():
        record = run.read_parity_report()
        if record.get("adapter") == digest and pop_record_signature(_SIGNATURE_PURPOSE, record):
            return ParityReceipt.model_validate_json(json.dumps(record["report"]))
    stop_ids = read_stop_ids(opened.adapter.base, opened.adapter.tokenizer)
    blend = AdapterBlend(((opened.adapter, 1.0),), opened.precision, tuple(stop_ids))
    held_out = prepare_evaluation(opened, EvaluationFiles()).parity_dialogues
    samples = select_parity_samples(held_out) if len(held_out) else make_default_samples(blend, opened.system)
    report = check_parity(check_adapter_parity(blend, samples, run.adapter), accept=False)
    logger.info(format_parity_line(report))
    record = {"adapter": digest, "report": report.model_dump()}
    sign_record(_SIGNATURE_PURPOSE, record)  # without a key the check runs again next time
    run.write_json(run.parity_report, record)
    return ParityReceipt.model_validate(report.model_dump())


def _find_custom_template(opened: OpenAdapter) -> str | None:
    """Return the chat template; None if it is the base's own or bundled with lora_chat."""
    text = str(opened.adapter.tokenizer.chat_template)
    plain = load_tokenizer(opened.adapter.base)
    return None if text in (find_earlier_template(plain), install_template(plain), CHATML_TEMPLATE) else text


def _format_packed(parcel: Parcel) -> str:
    """Format the message about a packed parcel."""
    receipt = parcel.receipt
    lines = [
        f"Packed {display_path(parcel.path)} ({format_bytes(parcel.path.stat().st_size)}): weights, config, card "
        f"and receipt" + (", signed" if receipt.signer else ""),
        f"sha256   {parcel.sha256}   (send it to the receiver by another channel)",
    ]
    if receipt.base.system is not None:
        lines.append("The parcel contains the system message of the dialogues and no other text of them.")
    settings = LoraSettings.from_section(receipt.adapter)
    portability = report_portability(settings, receipt.precision.mode, receipt.architecture)
    lines += [f"{p.program:<10} {p.answer:<7} {p.why}" for p in portability]
    name = quote_path(Path(parcel.path.name))
    lines.append(f"The receiver runs: lora-chat verify {name}, then lora-chat chat {name}")
    return "\n".join(lines)
