"""Models with several adapters for tests of shared steps, and replies that each adapter gives as the only one."""

import threading
from dataclasses import dataclass, field

import torch

from lora_chat.config.plan import plan_precision
from lora_chat.config.recipe import AdapterSection, BaseSection, QuantizationSection
from lora_chat.inference.continuous.request import Finish, GenerationRequest
from lora_chat.inference.generation import generate_ids
from lora_chat.models.adapter import attach_adapter, load_adapter
from lora_chat.models.adapter_files import read_adapter, save_adapter
from lora_chat.models.base_model import find_base, load_base_model, load_tokenizer
from lora_chat.models.identity import compute_identity
from lora_chat.system.hardware import Hardware


@dataclass
class ServedBase:
    """A base on this machine, its precision and adapters in files."""

    base: object
    precision: object
    stored: dict = field(default_factory=dict)
    _alone: dict = field(default_factory=dict)

    def load(self):
        return load_base_model(self.base, self.precision).eval()

    def alone(self, adapter):
        """Return the base with one adapter and nothing else in memory, as `chat` loads it."""
        if adapter not in self._alone:
            model = self.load()
            self._alone[adapter] = model if adapter is None else load_adapter(model, self.stored[adapter]).eval()
        return self._alone[adapter]

    def reply(self, adapter, prompt, num_tokens, stop_ids=(), **options):
        return generate_ids(self.alone(adapter), 0, [prompt], stop_ids, num_tokens, **options)[0]


def make_served_base(path, sections, folder, *, dtype="bfloat16", mode="none", adapter_dtype=torch.float32):
    """Return a base with adapters of random weights, one for each section."""
    base = find_base(BaseSection(name=str(path)))
    precision = plan_precision(QuantizationSection(mode=mode), Hardware("cpu", "test", 0, True, 2))
    served = ServedBase(base, precision.model_copy(update={"dtype": dtype}))
    identity = compute_identity(base, load_tokenizer(base))
    for number, (name, section) in enumerate(sections.items()):
        model = attach_adapter(served.load(), section, seed=number)
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    size = 0.3 if "lora_" in parameter_name else 0.1
                    change = torch.randn(parameter.shape, generator=generator) * size
                    parameter.data = (parameter.data.float() + change).to(adapter_dtype)
        save_adapter(model, folder / name, identity, "{{ messages }}", "card")
        served.stored[name] = read_adapter(folder / name)
    return served


def make_prompts(lengths, vocabulary=250):
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(5, vocabulary, (length,), generator=generator).tolist() for length in lengths]


class Collector:
    """A receiver that keeps tokens and waits for the end."""

    def __init__(self):
        self.tokens, self.finish, self._done = [], None, threading.Event()
        self.first = threading.Event()

    def __call__(self, item):
        if isinstance(item, Finish):
            self.finish = item
            self._done.set()
        else:
            self.tokens.append(item)
            self.first.set()

    @property
    def ids(self):
        return [token.token for token in self.tokens]

    def wait(self):
        assert self._done.wait(60), "the reply did not end"
        return self


def ask(generator, prompt, adapter=None, num_tokens=12, stop_ids=(), **options):
    """Submit a request and return its collector and ticket."""
    collector = Collector()
    request = GenerationRequest(tuple(prompt), adapter, frozenset(stop_ids), num_tokens, **options)
    collector.ticket = generator.submit(request, collector)
    return collector


SECTION = AdapterSection(rank=4)
