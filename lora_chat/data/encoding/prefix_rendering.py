"""Render the beginnings of a dialogue by one rendering of the whole, where the template allows it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate

from lora_chat.data.encoding.render_requests import RenderJob, count_characters
from lora_chat.data.encoding.template_worker import BASE_OUTPUT_CHARACTERS, OUTPUT_FACTOR
from lora_chat.errors import DataError

_MIN_CHATS = 6
"""Fewest chats of a job that are rendered together; fewer are as fast one by one."""
_ALWAYS_RENDERED = 4
"""Chats with fewer messages are always rendered, because templates treat the first messages differently."""

RenderedJob = list[str] | DataError
Renderer = Callable[[Sequence[RenderJob]], list[RenderedJob]]


def render_with_shared_prefixes(jobs: Sequence[RenderJob], render: Renderer) -> list[RenderedJob]:
    """Return the texts of each job as `render` does, which renders the chats of a job one by one.

    The time for the beginnings of one dialogue then grows with its length, not with its square. `stepwise_template`
    proves for each rendering that the texts are the same; without a proof all chats are rendered.
    """
    parts = [_split_job(job) for job in jobs]
    first = iter(render([part for job_parts in parts for part in job_parts]))
    answers = [[next(first) for _ in job_parts] for job_parts in parts]
    results: list[RenderedJob | None] = [
        answer[0] if len(answer) == 1 else _join_answers(job, *answer)
        for job, answer in zip(jobs, answers, strict=True)
    ]
    unproven = [number for number, result in enumerate(results) if result is None]
    rest = iter(render([jobs[number] for number in unproven]) if unproven else ())
    return [next(rest) if result is None else result for result in results]


def _split_job(job: RenderJob) -> list[RenderJob]:
    """Return a job as it is, or as its short chats and its longest chat, if all are beginnings of the longest."""
    if len(job.chats) < _MIN_CHATS:
        return [job]
    longest = max(job.chats, key=len)
    if not all(message is same for chat in job.chats for message, same in zip(chat, longest, strict=False)):
        return [job]
    short = [chat for chat in job.chats if len(chat) < _ALWAYS_RENDERED]
    return [replace(job, chats=short), replace(job, chats=[longest], stepwise=True)]


def _join_answers(job: RenderJob, short: RenderedJob, pieces: RenderedJob) -> RenderedJob | None:
    """Return the texts of all chats of a job; None if the pieces do not give them."""
    if isinstance(short, DataError) or isinstance(pieces, DataError):
        return None
    count = max(map(len, job.chats))
    min_messages, before, after, *bodies = pieces
    skipped = count - len(bodies)
    known = max(int(min_messages), skipped)
    if skipped < 0 or any(_ALWAYS_RENDERED <= len(chat) < known for chat in job.chats):
        return None
    whole = before + "".join(bodies)
    ends = [*accumulate(map(len, bodies), initial=len(before))]
    if not _are_within_limits(job, before, after, bodies):
        return None
    rendered = iter(short)
    return [
        next(rendered) if len(chat) < _ALWAYS_RENDERED else whole[: ends[len(chat) - skipped]] + after
        for chat in job.chats
    ]


def _are_within_limits(job: RenderJob, before: str, after: str, bodies: Sequence[str]) -> bool:
    """Return whether each text is short enough for its own messages, as the worker requires of a text.

    Otherwise long text around a long message would be repeated for every beginning, in this process.
    """
    longest = max(job.chats, key=len)
    skipped = len(longest) - len(bodies)
    size, length = 0, len(before) + len(after)
    for number, message in enumerate(longest):
        size += count_characters(message)
        length += len(bodies[number - skipped]) if number >= skipped else 0
        if length > BASE_OUTPUT_CHARACTERS + OUTPUT_FACTOR * size:
            return False
    return True
