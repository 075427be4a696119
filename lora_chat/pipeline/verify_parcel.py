"""A parcel checked line by line, as a table: what needs no base, what needs one, and what can be measured again."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lora_chat.config.recipe import EvaluationSection
from lora_chat.errors import BaseUnavailableError, IntegrityError, RecipeError
from lora_chat.export.merge import Mixture
from lora_chat.export.parity.default_prompts import imagine_probes
from lora_chat.export.parity.samples import make_probes
from lora_chat.export.peft import prove_adapter
from lora_chat.models.adapter import check_fits, write_stored
from lora_chat.models.base_model import load_skeleton
from lora_chat.models.identity import UNCOVERED
from lora_chat.models.stop_tokens import read_stop_ids
from lora_chat.pipeline.compare import measure
from lora_chat.pipeline.held_out import Own, find_held_out
from lora_chat.pipeline.open_adapter import Opened, Trust, find_bound_base, open_thing
from lora_chat.sharing.compatibility import report_portability
from lora_chat.sharing.parcel import Check, Parcel, open_parcel, settings_of
from lora_chat.system.console import say
from lora_chat.system.hashing import digest_file
from lora_chat.system.sanitize import visible
from lora_chat.system.user_path import user_path

_ABOUT_THE_RECEIPT = {"format", "version", "digest"}
"""Fields that say how a receipt is written, not what the adapter is."""
_SAME_LOSS = 0.02
"""Relative; another processor adds up in another order."""


def verify_parcel(path: str, own: Own, trust: Trust, *, again: bool) -> dict[str, Any]:
    """Every check with what was found; `passed` is False if one failed.

    Raises RecipeError for a file that is not there, BaseUnavailableError if what was asked for needs a base.
    """
    if (own.data or own.questions) and not again:
        raise RecipeError("--data and --questions belong to --again: without it nothing is measured.")
    checks: list[Check] = []
    found: dict[str, Any] = {"parcel": path, "passed": False}
    try:
        parcel = open_parcel(user_path(path), trust.signer, checks.append)
    except IntegrityError:
        return found | {"checks": [asdict(check) for check in checks]}
    checks += _check_base(parcel, trust, required=again)
    if again and all(check.passed is not False for check in checks):
        checks += _measure_again(path, own, trust)
    receipt = parcel.receipt
    confirmed = {name for check in checks if check.passed for name in check.confirms}
    named = {name for name, value in receipt if value is not None} - _ABOUT_THE_RECEIPT
    if "comparison" in confirmed and receipt.comparison and receipt.comparison.facts:
        named.add("comparison.facts")  # which questions they were is not in the receipt
    return {
        "parcel": path,
        "passed": all(check.passed is not False for check in checks),
        "sha256": parcel.sha256,
        "checks": [asdict(check) for check in checks],
        "checked_here": sorted(named & confirmed),
        "sender_states": sorted(named - confirmed),
        "portability": [
            asdict(p) for p in report_portability(settings_of(receipt), receipt.precision.mode, receipt.architecture)
        ],
        "receipt": receipt.model_dump(mode="json"),
    }


def report_text(report: dict[str, Any]) -> str:
    """The table for a person, and a verdict."""
    marks = {True: "ok", False: "FAILED", None: "-"}
    width = max(len(check["name"]) for check in report["checks"])
    lines = [f"{marks[c['passed']]:<7} {c['name']:<{width}}  {visible(c['found'])}" for c in report["checks"]]
    if "receipt" in report:
        lines += ["", *_about(report)]
    lines.append("")
    left = [check["name"] for check in report["checks"] if check["passed"] is None]
    if not report["passed"]:
        lines.append("Refused: do not use it.")
    elif left:
        lines.append(f"Nothing wrong was found. Not checked: {', '.join(left)}.")
    else:
        lines.append("All checks passed.")
    return "\n".join(lines)


def _about(report: dict[str, Any]) -> list[str]:
    receipt = report["receipt"]
    base, found, data = receipt["base"], receipt["comparison"], receipt["data"]
    lines = [f"{receipt['name']}: for {base['base']} in {receipt['precision']['mode']}"]
    if base["system"] is not None:
        lines.append(f"System message: {visible(base['system'], 300)}")
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


def _check_base(parcel: Parcel, trust: Trust, *, required: bool) -> Iterator[Check]:
    try:
        base = find_bound_base(parcel.stored, say, trust, named_by_stranger=True)
    except BaseUnavailableError as error:
        if required or trust.base is not None:
            raise
        yield Check("base", str(error).splitlines()[0], None)
        return
    bound = _tried("base", lambda: _bound(parcel, trust, base.name), "base")
    yield bound
    if not bound.passed:
        yield Check("fits the base", "not checked: this is not the base that it was trained on", None)
        return
    if parcel.receipt.base.version == 1:
        yield Check("rest of the base", f"a receipt of version 1 does not cover {UNCOVERED}", None)
    yield _tried("fits the base", lambda: _fits(parcel, base))


def _tried(name: str, step: Callable[[], str], *confirms: str) -> Check:
    try:
        return Check(name, step(), True, confirms)
    except IntegrityError as error:
        return Check(name, str(error), False)


def _bound(parcel: Parcel, trust: Trust, base: str) -> str:
    trust = Trust(base=trust.base or base, compare_only=True, signer=trust.signer, read_files=True)
    open_thing(str(parcel.path), say, trust)
    brings = parcel.receipt.chat_template is not None
    stops = "" if brings else ", stop ids"
    also = "" if parcel.receipt.base.version == 1 else f", config{stops}, generation settings"
    left = "; the template that it brings was not run, so the stop ids are its sender's word" if brings else ""
    return f"weights{also}, tokenizer and chat template are those it was trained on: {base}{left}"


def _fits(parcel: Parcel, base: Any) -> str:
    check_fits(load_skeleton(base), parcel.stored)
    return "each weight has its place and shape there, none is missing"


def _measure_again(path: str, own: Own, trust: Trust) -> Iterator[Check]:
    asked = Trust(trust.base, accept_template=trust.accept_template, signer=trust.signer, read_files=True)
    opened = open_thing(path, say, asked)
    prepared = find_held_out(opened, own) if own.data else None
    yield _tried("opened by PEFT", lambda: _prove(opened, prepared), "proof")
    if prepared is None or opened.parcel is None or own.data is None:
        yield Check("comparison", "not measured again: name dialogues with --data FILE", None)
        return
    report = measure(opened.found.load(opened.precision), prepared, EvaluationSection(samples=0))
    loss, stated = report.validation_loss, opened.parcel.receipt.comparison
    words = f"loss {loss.base:.3f} -> {loss.adapted:.3f} on {report.validation_dialogues} dialogues of {own.data}"
    if report.facts:
        words += f", right of {report.questions} questions {report.facts.base:.0%} -> {report.facts.adapted:.0%}"
    file = Path(own.data)
    same = file.is_file() and digest_file(file) == opened.parcel.receipt.data.held_out
    if not same or stated is None:
        yield Check(
            "comparison", f"{words}; other dialogues than the receipt's", True if loss.adapted < loss.base else None
        )
        return
    meant = stated.validation_loss
    near = all(
        abs(a - b) <= _SAME_LOSS * max(abs(b), 0.5) for a, b in ((loss.base, meant.base), (loss.adapted, meant.adapted))
    )
    words += f"; the receipt says {meant.base:.3f} -> {meant.adapted:.3f} on just these"
    yield Check("comparison", words, near, ("comparison",))


def _prove(opened: Opened, prepared: Any) -> str:
    stop_ids = tuple(read_stop_ids(opened.found.base, opened.found.tokenizer))
    mixture = Mixture(((opened.found, 1.0),), opened.precision, stop_ids)
    probes = make_probes(prepared.validation) if prepared else imagine_probes(mixture, opened.system)
    with tempfile.TemporaryDirectory(prefix="lora-chat-") as room:
        write_stored(opened.found.stored, Path(room) / "adapter")
        report = prove_adapter(mixture, probes, Path(room) / "adapter", say)
    if report.failures:
        raise IntegrityError("; ".join(report.failures))
    return f"mean KL {report.mean_kl:.1e} on {report.tokens} tokens (the base alone {report.control_kl:.1e})"
