"""Fixtures that all tests share."""

import gc
import logging
import os
from pathlib import Path

import pytest

from lora_chat.cli import ENVIRONMENT

_SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_EXPERTS = {
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 48},
    "mixtral": {"num_local_experts": 4},
    "gpt_oss": {"num_local_experts": 4},
}
"""Additional settings of bases with experts."""
_GPT2_SHAPE = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 1024}


def make_random_base(architecture: str, folder: Path, sharpness: float) -> Path:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from lora_chat.models.bundled import find_bundled_base

    tokenizer = AutoTokenizer.from_pretrained(find_bundled_base("tiny-random"))
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    if architecture == "gpt2":
        tokenizer.chat_template = None
        tokenizer.pad_token = None
        ids["pad_token_id"] = None
    shape = dict(_GPT2_SHAPE if architecture == "gpt2" else _SHAPE)
    if architecture in ("gemma", "gemma2", "qwen3", *_EXPERTS):
        shape["head_dim"] = 16
    shape |= {**_EXPERTS[architecture], "num_experts_per_tok": 2} if architecture in _EXPERTS else {}
    torch.manual_seed(1)
    config = AutoConfig.for_model(architecture, vocab_size=len(tokenizer), **shape, **ids)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(sharpness)  # otherwise the logits are nearly equal
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# Libraries read these variables when they are imported, so they are set before any import, as in the command line.
os.environ.update({**ENVIRONMENT, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"})
# Importing the command line sets this variable, but scripts that tests start import from their folder.
os.environ.pop("PYTHONSAFEPATH", None)


gc.disable()  # during collection, which makes many objects and no garbage


_LONG_TESTS = ("test_main_job",), ("test_crashes", "test_working_directory")
"""Modules of tests of 20 seconds and more; the first worker begins with the first group, the second with the other."""


def pytest_collection_modifyitems(items):
    """Begin with the longest tests, so that two workers end together. Each gets half of the list, see pytest-xdist."""
    first, second = ([item for item in items if item.path.stem in names] for names in _LONG_TESTS)
    rest = [item for item in items if item.path.stem not in sum(_LONG_TESTS, ())]
    half = max(0, len(items) // 2 - len(first))
    items[:] = first + rest[:half] + second + rest[half:]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish():
    """Collect garbage again when the tests begin, but never that of the collection, which made none."""
    from tests.fork_server import fork_server_from_here

    gc.freeze()
    fork_server_from_here()
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def _libraries_stay_frozen():
    """Let `release_unused_memory` collect only garbage of the tests; with all that is imported it takes a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "unfreeze", lambda: None)
        patch.setattr(gc, "get_freeze_count", lambda: 0)  # so that it freezes no object of a test
        yield


@pytest.fixture(autouse=True)
def own_environment():
    """Restore the environment after a test, which may run commands in this process."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(autouse=True)
def restored_message_logger():
    """Restore the logger of the package after a test, which may run commands in this process."""
    logger = logging.getLogger("lora_chat")
    before = logger.level, logger.propagate, logger.handlers[:]
    yield
    logger.level, logger.propagate, logger.handlers[:] = before


@pytest.fixture
def messages(restored_message_logger):
    """Return the list of the messages to the user that are logged in this process, in order."""
    texts = []
    logger = logging.getLogger("lora_chat")
    handler = logging.Handler()
    handler.emit = lambda record: texts.append(record.getMessage())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return texts


@pytest.fixture
def no_garbage_collection():
    """Disable garbage collection during a timing, because a collection visits the objects of all earlier tests."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="session")
def cache_home(tmp_path_factory):
    """Return the cache folder of this session, which all its processes share."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        home = tmp_path_factory.getbasetemp().parent / "cache"
        home.mkdir(exist_ok=True)
    else:
        home = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("XDG_CACHE_HOME", str(home))
        environment.setenv("XDG_CONFIG_HOME", str(home / "config"))
        yield home


@pytest.fixture(scope="session")
def warm_workers(cache_home, tmp_path_factory):
    """Return workers that start without imports; tests put `run` in place of `run_worker`."""
    from tests.warm_worker import WarmWorkers

    return WarmWorkers(tmp_path_factory.mktemp("workers"))


@pytest.fixture(scope="module")
def warm_exporters(warm_workers):
    """Run PEFT, llama.cpp and its converters in workers that start without imports."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("llama_cpp_converters", "parity.llama_cpp_runner", "parity.peft_runner"):
            patch.setattr(f"lora_chat.export.{module}.run_worker", warm_workers.run)
        yield


@pytest.fixture(scope="session")
def tiny_tokenizer(cache_home):
    """Return the byte tokenizer of the base tiny-random."""
    from transformers import AutoTokenizer

    from lora_chat.models.bundled import find_bundled_base

    return AutoTokenizer.from_pretrained(find_bundled_base("tiny-random"))


@pytest.fixture(scope="session")
def random_base(cache_home, tmp_path_factory):
    """Return a function that maps an architecture to the folder of its random model, which is created once."""
    folders: dict[tuple[str, float], Path] = {}

    def get(architecture: str, sharpness: float = 1.0) -> Path:
        key = (architecture, sharpness)
        if key not in folders:
            folders[key] = make_random_base(architecture, tmp_path_factory.mktemp(architecture), sharpness)
        return folders[key]

    return get


@pytest.fixture(scope="session")
def make_adapter(cache_home):
    """Return a function that saves an untrained adapter with large weights and returns its base and precision."""
    import torch

    from lora_chat.config.plan import plan_precision
    from lora_chat.config.recipe import AdapterSection, BaseSection, QuantizationSection
    from lora_chat.data.encoding.chat_template import install_template
    from lora_chat.models.adapter import attach_adapter
    from lora_chat.models.adapter_files import save_adapter
    from lora_chat.models.base_model import find_base, load_base_model, load_tokenizer
    from lora_chat.models.identity import compute_identity
    from lora_chat.system.hardware import Hardware

    def make(base_name, folder, mode="none", *, variant="lora", size=0.3, seed=5, targets="all-linear"):
        base = find_base(BaseSection(name=str(base_name)))
        tokenizer = load_tokenizer(base)
        template = install_template(tokenizer)
        precision = plan_precision(QuantizationSection(mode=mode), Hardware("cpu", "test", 0, False, 2))
        section = AdapterSection(rank=4, variant=variant, target_modules=targets)
        model = attach_adapter(load_base_model(base, precision), section)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * size
        save_adapter(model, folder, compute_identity(base, tokenizer), template, "card")
        return base, precision

    return make


def pytest_terminal_summary(terminalreporter):
    """Say that the code for CUDA was not tested, because a skipped test is easily overlooked."""
    reasons = {report.longrepr[2] for report in terminalreporter.stats.get("skipped", []) if report.longrepr}
    for reason in sorted(reason for reason in reasons if "No emulated CUDA card" in reason):
        terminalreporter.write_line(f"The code for CUDA was NOT tested. {reason}", red=True)


@pytest.fixture(autouse=True, scope="module")
def _quick_garbage_collection():
    """Exclude the objects of earlier modules from garbage collections; each training makes one, of a second or more."""
    gc.collect()
    gc.freeze()
