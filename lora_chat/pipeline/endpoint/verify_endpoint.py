"""The check whether an OpenAI-compatible endpoint serves the adapted model, from top to bottom."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lora_chat.errors import UsageError
from lora_chat.export.formats import TOLERANCES
from lora_chat.models.stop_tokens import read_stop_ids
from lora_chat.pipeline.endpoint.ask_endpoint import EndpointClient, EndpointReply
from lora_chat.pipeline.endpoint.compare_endpoint import (
    IS_ADAPTER,
    IS_BASE,
    IS_OTHER,
    EndpointComparison,
    PromptParity,
    compare_endpoint,
)
from lora_chat.pipeline.endpoint.endpoint_prompts import MAX_PROMPTS, EndpointPrompt, select_prompts
from lora_chat.pipeline.endpoint.judge_reply import ReplyJudge
from lora_chat.pipeline.endpoint.local_replies import MAX_REPLY_TOKENS, make_local_replies
from lora_chat.pipeline.endpoint.token_forms import TokenForms
from lora_chat.pipeline.open_adapter import TrustOptions, open_adapter
from lora_chat.system.http_client import open_endpoint
from lora_chat.system.sanitize import sanitize_line

logger = logging.getLogger(__name__)

DEFAULT_EXPORT = "PEFT adapter"
"""Name of the tolerances for the same weights."""
_MAX_KEY_BYTES = 10_000


@dataclass(frozen=True)
class EndpointOptions:
    """The endpoint that the user named."""

    url: str
    model: str | None = None
    """Name of the model there; None if it has only one."""
    key_file: Path | None = None
    allow_remote: bool = False
    export: str = DEFAULT_EXPORT
    """Name of what is served, a key of `TOLERANCES`."""


@dataclass(frozen=True)
class EndpointVerification:
    """The result of the check."""

    endpoint: str
    model: str
    adapter: str
    asked: str
    """Name of the prompts."""
    export: str
    comparison: EndpointComparison

    @property
    def passed(self) -> bool:
        """Return whether the endpoint serves the adapted model."""
        return self.comparison.verdict == IS_ADAPTER

    def as_dict(self) -> dict[str, object]:
        """Return the result as JSON data."""
        figures = asdict(self.comparison)
        return {
            "endpoint": self.endpoint,
            "model": self.model,
            "adapter": self.adapter,
            "prompts_from": self.asked,
            "export": self.export,
            "verdict": self.comparison.verdict,
            "passed": self.passed,
            **figures,
            "failures": list(self.comparison.failures),
        }


def verify_endpoint(
    source: str, options: EndpointOptions, trust: TrustOptions, mode: str | None, data: str | None
) -> EndpointVerification:
    """Ask an endpoint and the adapted model here the same prompts, and compare.

    Raises UnavailableError if the endpoint does not answer, UsageError for an address that may not be asked.
    """
    sent = "up to 12 held-out prompts" if data is None else f"up to {MAX_PROMPTS} prompts of {data}"
    key = _read_key(options.key_file) if options.key_file else None
    endpoint = open_endpoint(options.url, key, allow_remote=options.allow_remote, sent=sent)
    opened = open_adapter(source, trust, mode)
    tokenizer = opened.adapter.tokenizer
    stop_ids = tuple(read_stop_ids(opened.adapter.base, tokenizer))
    prompts, asked = select_prompts(opened, stop_ids, data)
    client = EndpointClient(endpoint, options.model)
    where = f"{sanitize_line(options.url, 100)} ({sanitize_line(client.model, 100)})"
    logger.info(f"Asking {where}: {len(prompts)} {asked}, replies of at most {MAX_REPLY_TOKENS} tokens")
    replies = [client.ask(prompt.messages, MAX_REPLY_TOKENS) for prompt in prompts]
    parity = _compare_prompts(client, prompts, replies)
    logger.info(f"Asking {source} here ({opened.precision.mode}, {opened.precision.dtype})")
    local = make_local_replies(opened.adapter.load(opened.precision).eval(), tokenizer, stop_ids, prompts)
    forms = TokenForms(tokenizer)
    judges = [ReplyJudge(reply, forms, stop_ids) for reply in local]
    comparison = compare_endpoint(
        parity,
        [judge.judge(reply) for judge, reply in zip(judges, replies, strict=True)],
        [judge.judge_base() for judge in judges],
        sum(reply.has_ended for reply in local),
        TOLERANCES[options.export],
    )
    return EndpointVerification(options.url, client.model, source, asked, options.export, comparison)


def format_endpoint(verification: EndpointVerification) -> str:
    """Format the figures and the verdict."""
    c, p = verification.comparison, verification.comparison.prompts
    ids = f"{p.compared_ids - p.other_ids} of {p.compared_ids} with the ids of training" if p.compared_ids else ""
    lengths = f"{p.compared_lengths - p.other_lengths} of {p.compared_lengths} with their length"
    shown = ids or (lengths if p.compared_lengths else "the endpoint does not report their ids")
    first = f", the first other token is number {min(c.first_differences) + 1}" if c.first_differences else ""
    stop = f"checked in {c.ended_replies} replies" if c.ended_replies else "not checked: no reply is short enough"
    lines = [
        f"{sanitize_line(verification.endpoint, 200)}, model {sanitize_line(verification.model, 100)}",
        f"prompts      {p.prompts} {verification.asked}; {shown}",
        f"replies      {c.equal_replies:.0%} of {c.replies} equal (to the base's: {c.equal_to_base:.0%}){first}",
        f"tokens       {c.same_top_token:.1%} of {c.tokens} are the most probable ones here; they lack "
        f"{c.regret:.2g} nats (the base's: {c.control_regret:.2g})",
        f"stop token   {stop}",
    ]
    if c.mean_kl is None:
        lines.append("KL           the endpoint reports no probabilities that can be compared")
    else:
        lines.append(
            f"KL           at least {c.mean_kl:.1e} nats per token on {c.kl_tokens} tokens, allowed "
            f"{c.tolerances.mean_kl:.0e} (the base: {c.control_kl:.1e})"
        )
    lines += ["", *(f"FAILED  {failure}" for failure in c.failures)]
    return "\n".join([*lines, _format_verdict(verification)])


def _format_verdict(verification: EndpointVerification) -> str:
    c = verification.comparison
    if verification.passed:
        return f"The endpoint serves the adapter of {verification.adapter}."
    if c.verdict == IS_BASE:
        return (
            "NOT THE ADAPTER: the endpoint answers as the base without it. Fix: load the adapter or the merged model."
        )
    if c.verdict == IS_OTHER:
        return (
            "NOT THE ADAPTER, or not as in training. Fix: compare chat template, system message and stop tokens, "
            "and name a quantized export with --export."
        )
    return "NOT PROVEN: the adapter and its base answer these prompts alike. Fix: name others with --data FILE."


def _compare_prompts(
    client: EndpointClient, prompts: Sequence[EndpointPrompt], replies: Sequence[EndpointReply]
) -> PromptParity:
    """Compare ids and lengths of the prompts with training, as far as the endpoint reports them."""
    reported = []
    for prompt in prompts:
        ids = client.read_prompt_ids(prompt.messages)
        if ids is None:
            break  # an endpoint that does not report them is not asked again
        reported.append((prompt.ids, ids))
    lengths = [(len(p.ids), r.prompt_tokens) for p, r in zip(prompts, replies, strict=True) if r.prompt_tokens]
    return PromptParity(
        prompts=len(prompts),
        compared_ids=len(reported),
        other_ids=sum(expected != ids for expected, ids in reported),
        compared_lengths=len(lengths),
        other_lengths=sum(expected != length for expected, length in lengths),
    )


def _read_key(path: Path) -> str:
    """Return the key in the first line of a file that is not empty."""
    try:
        with path.open("rb") as file:
            lines = file.read(_MAX_KEY_BYTES).decode("ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Cannot read the key: {path} ({error}). Fix: write it into the first line.") from error
    if not lines:
        raise UsageError(f"There is no key in {path}. Fix: write it into the first line.")
    return lines[0]
