"""Models with scripted replies, and a plan of prompts, for tests of blind judgement."""

from dataclasses import dataclass, field
from types import SimpleNamespace

from judgement_records import make_comparison

from lora_chat.inference.continuous.request import (
    BatchStatistics,
    Finish,
    GeneratedToken,
    QueueFullError,
    RequestTooLongError,
)
from lora_chat.pipeline.judge_plan import JudgedSide, JudgePlan
from lora_chat.pipeline.judge_prompts import JudgePrompt, ShownMessage
from lora_chat.runs.run_folder import RunFolder

RUN, ADAPTER = "runs/run-1", "adapter-1"


def reply_of(adapter, number):
    return f"{'trained' if adapter else 'plain'} reply {number}"


@dataclass
class ScriptedGenerator:
    """A generator that answers at once, or when `release` is called."""

    tokenizer: object
    reply: object = reply_of
    is_slow: bool = False
    error: Exception | None = None
    finishes: dict = field(default_factory=dict)
    """Reason of the end by the number of a prompt; `stop` otherwise."""
    requests: list = field(default_factory=list)
    waiting: list = field(default_factory=list)
    is_alive = True

    def submit(self, request, receive):
        if self.error is not None:
            raise self.error
        self.requests.append(request)
        self.waiting.append((request, receive))
        if not self.is_slow:
            self.release()
        return SimpleNamespace(cancel=lambda: None)

    def release(self, count=None):
        """End the next replies that wait."""
        for _ in range(len(self.waiting) if count is None else count):
            request, receive = self.waiting.pop(0)
            text = self.reply(request.adapter, request.number)
            for token in self.tokenizer.encode(text, add_special_tokens=False):
                receive(GeneratedToken(token, 0.0))
            receive(Finish(self.finishes.get(request.number, "stop")))

    def statistics(self):
        return BatchStatistics()

    def close(self, timeout=0.0):
        pass


class ScriptedModels:
    """The bare base and one adapter."""

    def __init__(self, generator, run=None):
        self.generator, self.refused = generator, {}
        self.precision = SimpleNamespace(mode="none", dtype="float32")
        self._list = (
            SimpleNamespace(name="base", adapter=None, source="base", run=None),
            SimpleNamespace(name="run-1", adapter=ADAPTER, source=RUN, run=run),
        )

    def list(self):
        return self._list

    def find(self, name):
        return next((model for model in self._list if model.name == name), None)


def make_plan(folder, tokenizer, prompts=5):
    """Return the plan of a run in a folder that needs no other file."""
    sides = [JudgedSide(source, tokenizer, (0,)) for source in (RUN, None)]
    shown = [ShownMessage("system", "Be brief."), ShownMessage("user", "Question <b>{}</b>?")]
    made = []
    for index in range(prompts):
        context = tuple(ShownMessage(m.role, m.text.replace("{}", str(index))) for m in shown)
        made.append(JudgePrompt(index, context, (index,), (index,), (index,), False))
    return JudgePlan(RunFolder(folder), RUN, make_comparison(), *sides, tuple(made))


ERRORS = {"queue": QueueFullError("full"), "long": RequestTooLongError("long")}
