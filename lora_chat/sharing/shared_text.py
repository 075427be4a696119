"""The policy of a run's audit for its parcel: the texts in it, and the secrets that the adapter was trained on.

Nothing that `sft` refuses is shared, and no secret is shared without consent.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from lora_chat.audit.excerpts import make_excerpt
from lora_chat.audit.redaction import redact_texts
from lora_chat.audit.sensitive.scan import find_sensitive
from lora_chat.config.audit import AuditSection, FindingKind, finding_title
from lora_chat.errors import DataError
from lora_chat.sharing.figures import DataReceipt
from lora_chat.system.sanitize import sanitize_line

_DIGEST = re.compile("[0-9a-f]{40,64}")
_BASE_FIELDS = frozenset({"config", "generation", "tokenizer_parts", "files", "versions"})
"""Fields of a receipt that describe files of the base and libraries."""
_SENSITIVE_KINDS: tuple[FindingKind, ...] = ("secret", "possible_secret", "personal_data")
_MAX_SHOWN = 5


@dataclass(frozen=True)
class SharedFinding:
    """A secret or personal data in a text of a receipt."""

    kind: FindingKind
    location: str
    """Names of the fields that contain the text, such as `base.system`."""
    excerpt: str
    """Masked excerpt."""

    @property
    def line(self) -> str:
        """Return the finding as one line."""
        return f"  {self.location}: {finding_title(self.kind)} | {self.excerpt}"


def redact_shared_text(
    recipe: Mapping[str, JsonValue], data: DataReceipt, policy: AuditSection
) -> tuple[dict[str, JsonValue], DataReceipt]:
    """Return a recipe and the counts of the data with marks in texts and names of sources, if the policy redacts.

    The system message and the chat template are a part of the model, so they are never changed.
    """
    if not policy.redacted:
        return dict(recipe), data
    names, _ = redact_texts([source.name for source in data.sources], policy.redacted)
    sources = [source.model_copy(update={"name": name}) for source, name in zip(data.sources, names, strict=True)]
    redacted = {key: _redact_value(value, policy) for key, value in recipe.items()}
    return redacted, data.model_copy(update={"sources": tuple(sources)})


def check_shared_text(
    fields: Mapping[str, JsonValue], counts: Mapping[str, int], policy: AuditSection, *, accept_findings: bool
) -> list[str]:
    """Return lines about findings that are shared nevertheless; raises DataError for what must not be shared.

    `fields` are parts of a receipt, and `counts` are the findings of the audit of the run by their kind.
    """
    findings = list(_find_in_texts(fields))
    trained = _count_trained(counts, policy)
    refused = [finding for finding in findings if policy.action(finding.kind) in ("refuse", "redact", "drop")]
    if refused:
        kinds = sorted({finding.kind for finding in refused})
        raise DataError(
            "\n".join(
                [
                    "The recipe does not allow these findings, and the parcel would contain them:",
                    *(finding.line for finding in refused[:_MAX_SHOWN]),
                    f"Fix: edit the data, template or recipe, and train again (section audit: {', '.join(kinds)}).",
                ]
            )
        )
    secrets = [finding for finding in findings if finding.kind != "personal_data"]
    if (secrets or "secret" in trained) and not accept_findings:
        raise DataError(
            "\n".join(
                [
                    "The parcel would share secrets:",
                    *(finding.line for finding in secrets[:_MAX_SHOWN]),
                    *(f"  the adapter: {line}" for line in _format_trained(trained)),
                    "Fix: train again with audit.secret and audit.possible_secret set to redact or drop, or share them "
                    "nevertheless with --accept-findings.",
                ]
            )
        )
    shown = [finding for finding in findings if policy.action(finding.kind) == "warn" or finding in secrets]
    return [*(f"Shared{finding.line[1:]}" for finding in shown[:_MAX_SHOWN]), *_format_trained(trained)]


def _count_trained(counts: Mapping[str, int], policy: AuditSection) -> dict[FindingKind, int]:
    """Return the number of findings of each kind that were neither redacted nor left out in training."""
    kinds = (kind for kind in _SENSITIVE_KINDS if policy.action(kind) not in ("redact", "drop"))
    return {kind: counts[kind] for kind in kinds if counts.get(kind)}


def _format_trained(trained: Mapping[FindingKind, int]) -> list[str]:
    """Return one line about the findings in the data of the adapter."""
    counts = ", ".join(f"{count:,} {finding_title(kind)}" for kind, count in trained.items())
    return [f"The data of this adapter had {counts}; a model can be made to recite them."] if trained else []


def _find_in_texts(fields: Mapping[str, JsonValue]) -> Iterator[SharedFinding]:
    """Yield the secrets and personal data in the texts of a receipt."""
    for location, text in _iter_texts(dict(fields), ""):
        matches = find_sensitive(text)
        for match in matches:
            is_code = location == "chat_template" and match.kind == "possible_secret"  # code often assigns tokens
            if not is_code:
                excerpt = sanitize_line(make_excerpt(text, match, matches))
                yield SharedFinding(match.kind, sanitize_line(location), excerpt)


def _iter_texts(value: JsonValue, location: str) -> Iterator[tuple[str, str]]:
    """Yield the location and text of all strings and keys except digests."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in _BASE_FIELDS:
                yield location, key
                yield from _iter_texts(inner, f"{location}.{key}" if location else key)
    elif isinstance(value, list):
        for inner in value:
            yield from _iter_texts(inner, location)
    elif isinstance(value, str) and not _DIGEST.fullmatch(value):
        yield location, value


def _redact_value(value: JsonValue, policy: AuditSection) -> JsonValue:
    """Return a JSON value with marks in its strings."""
    if isinstance(value, dict):
        return {key: _redact_value(inner, policy) for key, inner in value.items()}
    if isinstance(value, list):
        return [_redact_value(inner, policy) for inner in value]
    return redact_texts([value], policy.redacted)[0][0] if isinstance(value, str) else value
