"""A parcel checked line by line, as a table: what needs no base, what needs one, and what can be measured again."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lora_chat.config.recipe import EvaluationSection
from lora_chat.errors import IntegrityError, RecipeError, UnavailableError
from lora_chat.export.merge import AdapterBlend
from lora_chat.export.parity.default_prompts import make_default_samples
from lora_chat.export.parity.samples import select_parity_samples
from lora_chat.export.peft import check_adapter_parity
from lora_chat.models.adapter import check_adapter_fits, write_stored_adapter
from lora_chat.models.adapter_config import LoraSettings
from lora_chat.models.base_model import load_meta_model
from lora_chat.models.identity import UNCOVERED_BY_VERSION_1
from lora_chat.models.stop_tokens import read_stop_ids
from lora_chat.pipeline.compare import compare_models
from lora_chat.pipeline.held_out import EvaluationFiles, prepare_evaluation
from lora_chat.pipeline.open_adapter import OpenAdapter, TrustOptions, find_adapter_base, open_adapter
from lora_chat.sharing.compatibility import report_portability
from lora_chat.sharing.parcel import Parcel, ParcelCheck, open_parcel
from lora_chat.system.hashing import digest_file
from lora_chat.system.sanitize import sanitize_line
from lora_chat.system.user_path import expand_user_path

_RECEIPT_METADATA_FIELDS = {"format", "version", "digest"}
"""Fields that say how a receipt is written, not what the adapter is."""
_LOSS_TOLERANCE = 0.02
"""Relative; another processor adds up in another order."""


def verify_parcel(path: str, evaluation_files: EvaluationFiles, trust: TrustOptions, *, again: bool) -> dict[str, Any]:
    """Every check with what was found; `passed` is False if one failed.

    Raises RecipeError for a file that is not there, UnavailableError if what was asked for needs a base.
    """
    if (evaluation_files.data or evaluation_files.questions) and not again:
        raise RecipeError("--data and --questions belong to --again: without it nothing is measured.")
    checks: list[ParcelCheck] = []
    found: dict[str, Any] = {"parcel": path, "passed": False}
    try:
        parcel = open_parcel(expand_user_path(path), trust.signer, checks.append)
    except IntegrityError:
        return found | {"checks": [asdict(check) for check in checks]}
    checks += _check_base(parcel, trust, required=again)
    if again and all(check.passed is not False for check in checks):
        checks += _remeasure(path, evaluation_files, trust)
    receipt = parcel.receipt
    confirmed = {name for check in checks if check.passed for name in check.confirms}
    named = {name for name, value in receipt if value is not None} - _RECEIPT_METADATA_FIELDS
    if "comparison" in confirmed and receipt.comparison and receipt.comparison.facts:
        named.add("comparison.facts")  # which questions they were is not in the receipt
    settings = LoraSettings.from_section(receipt.adapter)
    portability = report_portability(settings, receipt.precision.mode, receipt.architecture)
    return {
        "parcel": path,
        "passed": all(check.passed is not False for check in checks),
        "sha256": parcel.sha256,
        "checks": [asdict(check) for check in checks],
        "checked_here": sorted(named & confirmed),
        "sender_states": sorted(named - confirmed),
        "portability": [asdict(answer) for answer in portability],
        "receipt": receipt.model_dump(mode="json"),
    }


def format_verification(report: dict[str, Any]) -> str:
    """The table for a person, and a verdict."""
    marks = {True: "ok", False: "FAILED", None: "-"}
    width = max(len(check["name"]) for check in report["checks"])
    lines = [f"{marks[c['passed']]:<7} {c['name']:<{width}}  {sanitize_line(c['found'])}" for c in report["checks"]]
    if "receipt" in report:
        lines += ["", *_format_receipt(report)]
    lines.append("")
    left = [check["name"] for check in report["checks"] if check["passed"] is None]
    if not report["passed"]:
        lines.append("Refused: do not use it.")
    elif left:
        lines.append(f"Nothing wrong was found. Not checked: {', '.join(left)}.")
    else:
        lines.append("All checks passed.")
    return "\n".join(lines)


def _format_receipt(report: dict[str, Any]) -> list[str]:
    receipt = report["receipt"]
    base, found, data = receipt["base"], receipt["comparison"], receipt["data"]
    lines = [f"{receipt['name']}: for {base['base']} in {receipt['precision']['mode']}"]
    if base["system"] is not None:
        lines.append(f"System message: {sanitize_line(base['system'], 300)}")
    lines.append(
        f"Its sender states: {data['train_dialogues']:,} dialogues trained on, {receipt['training']['steps']} steps"
        + (
            f", loss {found['validation_loss']['base']:.3f} -> {found['validation_loss']['adapted']:.3f} on "
            f"{found['validation_dialogues']} held-out dialogues"
            if found
            else "; nothing was compared"
        )
        + (
            f", right of {found['facts']['questions']} questions {found['facts']['base']:.0%} -> "
            f"{found['facts']['adapted']:.0%}"
            if found and found["facts"]
            else ""
        )
    )
    lines.append(f"Checked here: {', '.join(report['checked_here'])}.")
    words = f"The sender's word alone: {', '.join(report['sender_states'])}."
    if {"comparison", "proof"} & set(report["sender_states"]):
        words += " verify --again measures the proof, and with the sender's --data the comparison."
    lines.append(words)
    return [*lines, *(f"{p['program']:<10} {p['answer']:<7} {p['why']}" for p in report["portability"])]


def _check_base(parcel: Parcel, trust: TrustOptions, *, required: bool) -> Iterator[ParcelCheck]:
    try:
        base = find_adapter_base(parcel.stored, trust, untrusted_name=True)
    except UnavailableError as error:
        if required or trust.base is not None:
            raise
        yield ParcelCheck("base", str(error).splitlines()[0], None)
        return
    bound = _run_check("base", lambda: _check_binding(parcel, trust, base.name), "base")
    yield bound
    if not bound.passed:
        yield ParcelCheck("fits the base", "not checked: this is not the base that it was trained on", None)
        return
    if parcel.receipt.base.version == 1:
        yield ParcelCheck("rest of the base", f"a receipt of version 1 does not cover {UNCOVERED_BY_VERSION_1}", None)
    yield _run_check("fits the base", lambda: _check_weights_fit(parcel, base))


def _run_check(name: str, step: Callable[[], str], *confirms: str) -> ParcelCheck:
    try:
        return ParcelCheck(name, step(), True, confirms)
    except IntegrityError as error:
        return ParcelCheck(name, str(error), False)


def _check_binding(parcel: Parcel, trust: TrustOptions, base: str) -> str:
    trust = TrustOptions(
        base=trust.base or base, compare_template_only=True, signer=trust.signer, recompute_digests=True
    )
    open_adapter(str(parcel.path), trust)
    brings = parcel.receipt.chat_template is not None
    stops = "" if brings else ", stop ids"
    also = "" if parcel.receipt.base.version == 1 else f", config{stops}, generation settings"
    left = "; the template that it brings was not run, so the stop ids are its sender's word" if brings else ""
    return f"weights{also}, tokenizer and chat template are those it was trained on: {base}{left}"


def _check_weights_fit(parcel: Parcel, base: Any) -> str:
    check_adapter_fits(load_meta_model(base), parcel.stored)
    return "each weight has its place and shape there, none is missing"


def _remeasure(path: str, evaluation_files: EvaluationFiles, trust: TrustOptions) -> Iterator[ParcelCheck]:
    trust_options = TrustOptions(
        trust.base, accept_template=trust.accept_template, signer=trust.signer, recompute_digests=True
    )
    opened = open_adapter(path, trust_options)
    prepared = prepare_evaluation(opened, evaluation_files) if evaluation_files.data else None
    yield _run_check("opened by PEFT", lambda: _check_parity(opened, prepared), "proof")
    if prepared is None or opened.parcel is None or evaluation_files.data is None:
        yield ParcelCheck("comparison", "not measured again: name dialogues with --data FILE", None)
        return
    report = compare_models(opened.adapter.load(opened.precision), prepared, EvaluationSection(samples=0))
    loss, stated = report.validation_loss, opened.parcel.receipt.comparison
    words = (
        f"loss {loss.base:.3f} -> {loss.adapted:.3f} on {report.validation_dialogues} dialogues of "
        f"{evaluation_files.data}"
    )
    if report.facts:
        words += f", right of {report.questions} questions {report.facts.base:.0%} -> {report.facts.adapted:.0%}"
    file = Path(evaluation_files.data)
    same = file.is_file() and digest_file(file) == opened.parcel.receipt.data.held_out
    if not same or stated is None:
        yield ParcelCheck(
            "comparison", f"{words}; other dialogues than the receipt's", True if loss.adapted < loss.base else None
        )
        return
    stated_loss = stated.validation_loss
    is_close = all(
        abs(a - b) <= _LOSS_TOLERANCE * max(abs(b), 0.5)
        for a, b in ((loss.base, stated_loss.base), (loss.adapted, stated_loss.adapted))
    )
    words += f"; the receipt says {stated_loss.base:.3f} -> {stated_loss.adapted:.3f} on just these"
    yield ParcelCheck("comparison", words, is_close, ("comparison",))


def _check_parity(opened: OpenAdapter, prepared: Any) -> str:
    stop_ids = tuple(read_stop_ids(opened.adapter.base, opened.adapter.tokenizer))
    blend = AdapterBlend(((opened.adapter, 1.0),), opened.precision, stop_ids)
    samples = select_parity_samples(prepared.validation) if prepared else make_default_samples(blend, opened.system)
    with tempfile.TemporaryDirectory(prefix="lora-chat-") as work_folder:
        write_stored_adapter(opened.adapter.stored, Path(work_folder) / "adapter")
        report = check_adapter_parity(blend, samples, Path(work_folder) / "adapter")
    if report.failures:
        raise IntegrityError("; ".join(report.failures))
    return f"mean KL {report.mean_kl:.1e} on {report.tokens} tokens (the base alone {report.control_kl:.1e})"
