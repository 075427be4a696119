"""Short trainings that run in a process with an emulated card; tests call them by `card.run(train, {...})`.

The settings of `train` are those of DEFAULTS. It returns a mapping:

- `losses` of the steps, then the loss that is measured after training; `replies` are generated token ids;
- `device` of the model, `notes` that were logged, `steps` with the waits of each step after the first;
- `peak` bytes on the card, and `weights`, a digest of the adapter.
"""

import hashlib
import itertools
import json
import logging
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import fake_card
import torch
from card_bases import find_base_folder

DEFAULTS = {
    "base": "tiny-random",  # or "random:llama", "random:llama:20" (head size) ... for a new random model
    "mode": "4bit",
    "sharded": False,  # with FSDP2, in a group of one process
    "device": "cuda",  # or cpu, which computes in bf16 if the card does, and otherwise in fp32
    "fast": True,
    "settings": {},  # of the section `training`
    "adapter": {},  # of the section `adapter`
    "lengths": [9, 14, 20, 11, 17, 13, 22, 12, 15, 10, 19, 16],  # of the dialogues, in tokens
    "free": None,  # bytes that are left on the card when training starts
    "adjustable": ["micro_batch_size", "micro_batch_tokens"],
    "folder": None,  # for metrics and checkpoints
    "checkpoints": False,
    "resume": False,
    "stop_after": None,  # steps after which training is interrupted
}


class Stopped(Exception):
    """The interruption of a training by a test."""


def train(asked):
    """Train a few steps and return what happened."""
    asked = {**DEFAULTS, **asked}
    hardware = _find_hardware(asked["device"])
    model, tokenizer, precision = _load_model(asked, hardware)
    rows = make_rows(asked["lengths"])
    run = _make_run(asked, hardware, model, tokenizer, rows, precision)
    from lora_chat.training.sft import train_sft

    if asked["free"] is not None:
        fake_card.set_free_bytes(asked["free"])
    snapshots, stopped = _record_steps(asked["stop_after"]), False
    fake_card.reset_counters()
    notes = []
    with _collected_messages(notes):
        try:
            train_sft(run)
        except Stopped:
            stopped = True
    result = {"device": str(model.device), "notes": notes, "stopped": stopped, "peak": fake_card.peak_bytes()}
    result["steps"] = [dict(later - earlier) for earlier, later in itertools.pairwise(snapshots)]
    result["operations"] = dict(fake_card.OPERATIONS)
    if asked["free"] is not None:
        fake_card.set_free_bytes(2**32)
    return result | _measure(model, rows, run.metrics_path)


def train_on_both(asked):
    """Train on the card and on the CPU in the same precision; return both results."""
    return [train({**asked, "device": device}) for device in ("cuda", "cpu")]


def make_rows(lengths):
    """Return dialogues of random tokens, the first four of which are a prompt."""
    from lora_chat.data.encoding.encode import EncodedDialogue

    generator = torch.Generator().manual_seed(4)
    texts = [torch.randint(3, 259, (length,), generator=generator).tolist() for length in lengths]
    return [EncodedDialogue(ids, [-100] * 4 + ids[4:]) for ids in texts]


def _find_hardware(device):
    from lora_chat.system.hardware import Hardware, detect_hardware

    found = detect_hardware()
    return found if device == "cuda" else Hardware("cpu", "test", 0, found.bfloat16, 1)


def _load_model(asked, hardware):
    from lora_chat.config.plan import plan_precision
    from lora_chat.config.recipe import AdapterSection, BaseSection, QuantizationSection
    from lora_chat.models.adapter import attach_adapter
    from lora_chat.models.base_model import find_base, load_base_model, load_tokenizer

    base = find_base(BaseSection(name=find_base_folder(asked["base"], Path.cwd())))
    precision = plan_precision(QuantizationSection(mode=asked["mode"]), hardware)
    model = load_base_model(base, precision, to_shard=asked["sharded"])
    section = AdapterSection(**{"rank": 4, "dropout": 0.0, **asked["adapter"]})
    model = attach_adapter(model, section, seed=3)
    if asked["sharded"]:
        _shard(model, asked["device"])
    return model, load_tokenizer(base), precision


def _shard(model, device):
    """Shard the base over a group of this process only, which moves and gathers weights like a larger one.

    The memory of gathered layers stays allocated, because the card cannot resize a storage.
    """
    import torch.distributed as dist
    from torch.distributed.fsdp._fully_shard import _fsdp_param, _fsdp_param_group

    from lora_chat.models.sharded_base import shard_base

    for module, name in (
        (_fsdp_param, "free_storage"),
        (_fsdp_param, "alloc_storage"),
        (_fsdp_param_group, "alloc_storage"),
    ):
        setattr(module, name, lambda tensor: None)
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    shard_base(model, 1, torch.device(device, 0) if device == "cuda" else torch.device(device))


def _make_run(asked, hardware, model, tokenizer, rows, precision):
    from lora_chat.config.plan import make_plan
    from lora_chat.config.recipe import CheckpointSection, Recipe
    from lora_chat.runs.checkpoints import find_newest_checkpoint
    from lora_chat.training.callbacks.checkpoint import CheckpointPolicy
    from lora_chat.training.training_run import TrainingRun

    folder = Path(asked["folder"] or tempfile.mkdtemp())
    folder.mkdir(exist_ok=True)
    training = {"max_steps": 3, "learning_rate": 1e-2, "effective_batch_size": 4, "fast_path": asked["fast"]}
    training |= {"gradient_checkpointing": False, **asked["settings"]}
    plan = make_plan(Recipe.model_validate({"data": {"train": "x"}, "training": training}), hardware).training
    newest = find_newest_checkpoint(folder / "checkpoints")[0] if asked["resume"] else None
    policy = CheckpointPolicy(folder / "checkpoints", CheckpointSection(every_steps=1, keep=9), {"a": 1}, newest)
    return TrainingRun(
        model=model,
        tokenizer=tokenizer,
        train_rows=rows,
        validation_rows=[],
        plan=plan,
        metrics_path=folder / "metrics.jsonl",
        bfloat16=precision.dtype == "bfloat16",
        float16=precision.dtype == "float16",
        adjustable_settings=asked["adjustable"],
        checkpoint_policy=policy if asked["checkpoints"] else None,
    )


def _measure(model, rows, metrics):
    from lora_chat.evaluation.loss import evaluate_loss
    from lora_chat.inference.generation import generate_ids

    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            digest.update(name.encode() + parameter.detach().float().cpu().numpy().tobytes())
    losses = [line["loss"] for line in lines if "loss" in line]
    return {
        "losses": [*losses, evaluate_loss(model, rows[:3])],
        "metrics": [{key: value for key, value in line.items() if key != "seconds"} for line in lines],
        "replies": generate_ids(model, 0, [row.input_ids[:5] for row in rows[:3]], [1], 4),
        "weights": digest.hexdigest(),
    }


@contextmanager
def _collected_messages(texts):
    """Append the messages to the user to a list."""
    logger, handler = logging.getLogger("lora_chat"), logging.Handler()
    handler.emit = lambda record: texts.append(record.getMessage())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield
    logger.removeHandler(handler)


def _record_steps(stop_after):
    """Return a list that receives the waits so far at the end of each step."""
    from transformers.trainer_callback import CallbackHandler

    snapshots, end_step = [], CallbackHandler.on_step_end

    def on_step_end(self, *arguments, **options):
        control = end_step(self, *arguments, **options)
        snapshots.append(Counter(fake_card.WAITS))
        if stop_after is not None and len(snapshots) == stop_after:
            raise Stopped
        return control

    CallbackHandler.on_step_end = on_step_end
    return snapshots
