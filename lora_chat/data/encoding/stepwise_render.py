"""Render a chat with a changed template (`stepwise_template`), and return the text of each message."""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from lora_chat.data.encoding.lookahead_traps import raise_lookahead
from lora_chat.data.encoding.message_lists import LookaheadError
from lora_chat.data.encoding.stepwise_template import StepwiseRewriter

if TYPE_CHECKING:
    import jinja2

StepwiseRender = Callable[..., list[str]]


@lru_cache(maxsize=8)
def find_stepwise_render(source: str) -> StepwiseRender | None:
    """Return a function that renders a chat in pieces; None for a template that cannot be changed."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        return _compile_stepwise(_compile_jinja_template(source), source)
    except LookaheadError:
        return None


def _compile_stepwise(compiled: "jinja2.Template", source: str) -> StepwiseRender:
    """Return a function that renders a chat in pieces; raises LookaheadError for a template that cannot be changed.

    The pieces are the fewest messages for which they are valid, the text before the messages, the text after them, and
    the text of each message. Messages that the template reads before its loop have no text of their own.
    """
    environment = compiled.environment
    try:
        rewriter = StepwiseRewriter(environment.parse(source))
        code = environment.compile(rewriter.rewrite())
    except RecursionError as error:
        raise LookaheadError("the template is nested too deeply") from error
    template = environment.template_class.from_code(environment, code, environment.make_globals(None))
    pattern = re.compile(rf"{rewriter.token}([:!])(\d+);")

    def render(**arguments: object) -> list[str]:
        text = template.render(**arguments, **{rewriter.trap: raise_lookahead})
        return [str(rewriter.min_messages), *_split_at_marks(pattern, text)]

    return render


def _split_at_marks(pattern: re.Pattern[str], text: str) -> list[str]:
    """Return the text before and after the one loop that writes text, and the text of each of its iterations."""
    loops: list[tuple[int, str, list[str]]] = []
    """Number of each loop, the text before it, and the text of its iterations."""
    before, iterations, position = "", [], 0
    is_in_loop = False
    for mark in pattern.finditer(text):
        piece, position = text[position : mark.start()], mark.end()
        if is_in_loop:
            iterations.append(piece)
        else:
            before = piece
        is_in_loop = mark[1] == ":"
        if not is_in_loop:
            loops.append((int(mark[2]), before, iterations))
            before, iterations = "", []
    writing = [number for number, (_, _, texts) in enumerate(loops) if any(texts)]
    if len(writing) != 1 or len({loop[0] for loop in loops}) < len(loops):
        raise LookaheadError("not exactly one loop writes the messages")
    (chosen,) = writing
    beginning = "".join(text_before for _, text_before, _ in loops[: chosen + 1])
    end = "".join(text_before for _, text_before, _ in loops[chosen + 1 :]) + text[position:]
    return [beginning, end, *loops[chosen][2]]
