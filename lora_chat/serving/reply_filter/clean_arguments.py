"""The filter of the arguments of a tool call, which remain valid JSON."""

import json

from lora_chat.audit.json_strings import parse_json_container, rewrite_strings
from lora_chat.audit.report import TextMatch
from lora_chat.serving.reply_filter.filter_settings import FilterSettings
from lora_chat.serving.reply_filter.reply_filter import ReplyFilter
from lora_chat.serving.reply_filter.value_search import ReplyFindings, ValueSearch


def clean_arguments(text: str, settings: FilterSettings, findings: ReplyFindings) -> tuple[str, bool]:
    """Return complete arguments, cleaned string by string with their keys as context, and whether they are blocked.

    Arguments that are not a JSON object or list are cleaned as a text. Blocked arguments are empty.
    """
    value = parse_json_container(text)
    if value is None:
        reply_filter = ReplyFilter(settings, findings)
        clean = reply_filter.feed(text) + reply_filter.close()
        return ("" if reply_filter.blocked else clean), reply_filter.blocked
    search = ValueSearch(settings, findings)
    if settings.mode == "redact":
        new = rewrite_strings(value, lambda context, leaf: search.redact((context,), leaf))
        return (text if new == value else json.dumps(new, ensure_ascii=False)), False
    matches: list[TextMatch] = []

    def collect(context: str, leaf: str) -> str:
        matches.extend(search.find(context, leaf))
        return leaf

    rewrite_strings(value, collect)
    findings.counts.update(match.kind for match in matches[:1])
    return ("" if matches else text), bool(matches)
