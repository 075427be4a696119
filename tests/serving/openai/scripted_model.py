"""A model whose replies a test chooses, and a server for it on a free port of this machine."""

import threading
import time
from dataclasses import dataclass, field

from transformers import AutoTokenizer

from lora_chat.data.encoding.chat_template import install_template
from lora_chat.inference.continuous.request import BatchStatistics, Finish, GeneratedToken, QueueFullError
from lora_chat.models.bundled import find_bundled_base
from lora_chat.pipeline.admitted_model import AdmissionCheck, AdmittedModel

THINKING_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
OWN_CALLS_TEMPLATE = (
    "{{ tools }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% if m.tool_calls %}"
    "call:{{ m.tool_calls[0].function.name }}({{ m.tool_calls[0].function.arguments.at }}){% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPENING_TEMPLATE = THINKING_TEMPLATE.replace("<|im_start|>assistant\n{% if", "<|im_start|>assistant\n<think>\n{% if")


@dataclass
class ScriptedTicket:
    request: object
    cancelled: threading.Event = field(default_factory=threading.Event)
    reused_tokens: int = 3

    def cancel(self):
        self.cancelled.set()


class ScriptedGenerator:
    """Answers each request with the next text of `replies`, or with the last one."""

    is_alive = True

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.replies, self.tickets = ["Hello there."], []
        self.finish, self.pause, self.is_full = "stop", 0.0, False

    def submit(self, request, receive):
        if self.is_full:
            raise QueueFullError("full")
        ticket = ScriptedTicket(request)
        self.tickets.append(ticket)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        ids = self._tokenizer.encode(reply, add_special_tokens=False) if isinstance(reply, str) else reply
        threading.Thread(target=self._answer, args=(ticket, ids, receive), daemon=True).start()
        return ticket

    def _answer(self, ticket, ids, receive):
        reason = self.finish
        for token in ids[: ticket.request.max_new_tokens]:
            time.sleep(self.pause)
            if ticket.cancelled.is_set():
                reason = "cancelled"
                break
            top = ((token, -0.25), (int(token) - 1, -2.5))[: ticket.request.top_logprobs or 0]
            receive(GeneratedToken(token, -0.25, top))
        else:
            reason = "length" if len(ids) > ticket.request.max_new_tokens else reason
        receive(Finish(reason))

    def statistics(self):
        return BatchStatistics()

    def close(self, timeout=0.0):
        pass


class ScriptedModels:
    """Models with one vocabulary: plain, with tools, and with thoughts."""

    def __init__(self):
        self.refused = {"broken": "IntegrityError: its weights were changed"}
        self._models = {}
        for name, template in {
            "plain": "chatml",
            "tools": "chatml_tools",
            "thinking": THINKING_TEMPLATE,
            "own_calls": OWN_CALLS_TEMPLATE,
            "opening": OPENING_TEMPLATE,
        }.items():
            tokenizer = AutoTokenizer.from_pretrained(find_bundled_base("tiny-random"))
            if "{" in template:
                tokenizer.chat_template = template
            else:
                install_template(tokenizer, template)
            self._models[name] = AdmittedModel(
                name,
                None if name == "plain" else f"adapter-{name}",
                tokenizer,
                (tokenizer.eos_token_id,),
                "Be brief." if name == "tools" else None,
                1024,
                (AdmissionCheck("base", True, "the same weights"),),
                name,
                1,
            )
        self.generator = ScriptedGenerator(self._models["plain"].tokenizer)

    def list(self):
        return tuple(self._models.values())

    def find(self, name):
        return self._models.get(name)


class RunningServer:
    """A server in a thread of this process."""

    def __init__(self, app):
        import uvicorn

        self._server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    def close(self):
        self._server.should_exit = True
        self._thread.join(10)
