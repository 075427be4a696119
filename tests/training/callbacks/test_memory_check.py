"""Tests of the memory check before the first step and of the settings that it suggests."""

import sys
from pathlib import Path

import pytest
from test_equivalence import make_rows, train

from lora_chat.data.encoding.encode import EncodedDialogue
from lora_chat.errors import OutOfMemoryError
from lora_chat.system import memory_limit, memory_usage
from lora_chat.system.memory_usage import free_memory_bytes
from lora_chat.training.trainer import PackedSFTTrainer

OUT_OF_MEMORY_TEXT = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."


@pytest.fixture
def memory_for(monkeypatch):
    """Return a function that limits the tokens of a micro-batch, with another limit if activations are recomputed."""

    def limit_memory(max_tokens, *, max_checkpointed_tokens=None):
        tried = []
        stock = PackedSFTTrainer.dry_run_step

        def dry_run_step(self, inputs):
            tokens = inputs["input_ids"].numel()
            tried.append(tokens)
            recomputed = any(getattr(module, "gradient_checkpointing", False) for module in self.model.modules())
            if tokens > ((max_checkpointed_tokens or max_tokens) if recomputed else max_tokens):
                raise RuntimeError(OUT_OF_MEMORY_TEXT)
            stock(self, inputs)

        monkeypatch.setattr(PackedSFTTrainer, "dry_run_step", dry_run_step)
        return tried

    return limit_memory


ROWS = [*make_rows(30), *make_rows(2, seed=5)]  # 8 to 24 tokens


def test_tries_the_largest_micro_batch(cache_home, tmp_path, memory_for):
    tried = memory_for(10**6)
    train(ROWS, tmp_path / "run", epochs=1, micro_batch_tokens=100)
    longest = sorted((len(row.input_ids) for row in ROWS), reverse=True)[:8]
    assert tried[0] <= 100 < tried[0] + min(longest)
    assert len(tried) == 1


def test_base_with_soft_caps_also_tries_the_most_supervised_tokens(random_base, tmp_path, monkeypatch):
    long = EncodedDialogue([5] * 60, [-100] * 55 + [5] * 5)
    tried = []
    monkeypatch.setattr(PackedSFTTrainer, "dry_run_step", lambda self, inputs: tried.append(loss_tokens(inputs)))
    settings = {"effective_batch_size": 2, "micro_batch_tokens": 70, "max_steps": 1}
    train([long, *make_rows(8)], tmp_path / "run", base=random_base("gemma2"), **settings)
    assert tried == [5, (23 - 4) + (21 - 4)]  # the longest row, and the two rows with the most supervised tokens
    tried.clear()
    train([long, *make_rows(8)], tmp_path / "other", **settings)
    assert len(tried) == 1


def loss_tokens(inputs):
    return int((inputs["labels"] != -100).sum())


def test_suggested_settings_fit(cache_home, tmp_path, memory_for):
    rows = make_rows(256)
    memory_for(600)
    with pytest.raises(OutOfMemoryError) as caught:
        train(rows, tmp_path / "large", effective_batch_size=256, micro_batch_tokens=2048, epochs=1)
    assert "--set training.micro_batch_tokens=512" in str(caught.value)
    assert "gradient_checkpointing" not in str(caught.value)
    train(rows, tmp_path / "fits", effective_batch_size=256, micro_batch_tokens=512, epochs=1)


def test_sharded_base_stops_at_once_because_processes_cannot_retry(cache_home, tmp_path, memory_for, monkeypatch):
    monkeypatch.setattr("lora_chat.training.callbacks.memory_check.is_sharded", lambda model: True)
    tried = memory_for(10)
    with pytest.raises(OutOfMemoryError, match=r"part of the sharded base.*\nFix: --set training.micro_batch_tokens=N"):
        train(make_rows(8), tmp_path / "run", epochs=1, adjustable_settings=["micro_batch_tokens"])
    assert len(tried) == 1


def test_retries_with_a_smaller_adjustable_micro_batch(cache_home, tmp_path, memory_for, messages):
    rows = make_rows(64)
    _, expected_report, losses = train(
        rows, tmp_path / "expected", effective_batch_size=64, micro_batch_tokens=256, epochs=2
    )
    memory_for(300)
    _, report, retried_losses = train(
        rows,
        tmp_path / "large",
        effective_batch_size=64,
        micro_batch_tokens=1024,
        epochs=2,
        adjustable_settings=("micro_batch_tokens",),
    )
    assert report.plan.micro_batch_tokens == 256
    assert report.plan.effective_batch_size == 64
    assert retried_losses == pytest.approx(losses, abs=1e-4)
    assert report.supervised_tokens == expected_report.supervised_tokens
    assert "training.micro_batch_tokens becomes 256" in "\n".join(messages)


def test_does_not_change_fixed_settings(cache_home, tmp_path, memory_for):
    memory_for(300)
    with pytest.raises(OutOfMemoryError, match=r"--set training.micro_batch_tokens=256"):
        train(
            make_rows(64),
            tmp_path / "run",
            effective_batch_size=64,
            micro_batch_tokens=1024,
            adjustable_settings=("gradient_checkpointing",),
        )


@pytest.mark.slow
def test_retries_with_fewer_padded_rows(cache_home, tmp_path, memory_for):
    _, _, losses = train(ROWS, tmp_path / "two", attention="padded", micro_batch_size=2, epochs=1)
    memory_for(60)
    _, report, retried_losses = train(
        ROWS,
        tmp_path / "run",
        attention="padded",
        effective_batch_size=8,
        micro_batch_size=8,
        epochs=1,
        adjustable_settings=("micro_batch_size", "gradient_checkpointing"),
    )
    assert (report.plan.micro_batch_size, report.plan.gradient_accumulation_steps) == (2, 4)
    assert retried_losses == pytest.approx(losses, abs=1e-4)


@pytest.mark.slow
def test_suggests_fewer_padded_rows(cache_home, tmp_path, memory_for):
    memory_for(60)
    with pytest.raises(OutOfMemoryError, match=r"--set training.micro_batch_size=2"):
        train(ROWS, tmp_path / "run", attention="padded", effective_batch_size=8, micro_batch_size=8, epochs=1)


@pytest.mark.slow
def test_suggests_gradient_checkpointing_last(cache_home, tmp_path, memory_for):
    memory_for(10, max_checkpointed_tokens=30)
    with pytest.raises(OutOfMemoryError) as caught:
        train(ROWS, tmp_path / "run", epochs=1, micro_batch_tokens=20)
    assert "--set training.gradient_checkpointing=true" in str(caught.value)


@pytest.mark.slow
def test_names_the_longest_dialogue_if_nothing_fits(cache_home, tmp_path, memory_for):
    memory_for(0)
    with pytest.raises(OutOfMemoryError, match=r"longest dialogue, 24 tokens.*\n.*data.max_length"):
        train(ROWS, tmp_path / "run", epochs=1)


@pytest.mark.slow
def test_raises_other_errors_unchanged(cache_home, tmp_path, monkeypatch):
    def fail(self, inputs):
        raise RuntimeError("another")

    monkeypatch.setattr(PackedSFTTrainer, "dry_run_step", fail)
    with pytest.raises(RuntimeError, match="another"):
        train(ROWS, tmp_path / "run", epochs=1)


REAL_TRAINING = """
import os, re, sys
from pathlib import Path
os.chdir(sys.argv[2])
sys.path.insert(0, os.getcwd())
from lora_chat.errors import OutOfMemoryError
from lora_chat.system import memory_limit
from test_equivalence import make_rows, train
memory_limit.free_memory_bytes = lambda: 300_000_000
rows = make_rows(3000)
tokens = 40_000
for name in ("large", "fits"):
    try:
        train(rows, Path(sys.argv[1]) / name, effective_batch_size=3000, micro_batch_tokens=tokens, max_steps=1)
        print(name, "trained")
    except OutOfMemoryError as error:
        print(name, error)
        tokens = int(re.search("training.micro_batch_tokens=([0-9]+)", str(error))[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux alone")
def test_suggestion_fits_after_a_real_lack_of_memory(warm_workers, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(REAL_TRAINING)
    process = warm_workers.run(script, [str(tmp_path), str(Path("tests/training").resolve())], timeout=280)
    assert process.stdout.startswith("large Out of memory: the largest micro-batch"), process.stderr
    assert process.stdout.endswith("fits trained\n")


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux alone")
def test_memory_limit_ends_with_the_block():
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    with memory_limit.limited_memory():
        assert resource.getrlimit(resource.RLIMIT_DATA)[0] > 0
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux alone")
def test_free_memory_respects_the_container_limit(tmp_path, monkeypatch):
    machine = free_memory_bytes()
    group = Path("/proc/self/cgroup").read_text().splitlines()
    group_name = next((line.removeprefix("0::/") for line in group if line.startswith("0::")), None)
    if group_name is None:
        pytest.skip("no cgroup v2 here")
    folder = tmp_path / group_name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text("3000000\n")
    (folder / "memory.current").write_text("1000000\n")
    (folder / "memory.stat").write_text("anon 500000\ninactive_file 400000\n")
    monkeypatch.setattr(memory_usage, "_CGROUP_ROOT", tmp_path)
    assert free_memory_bytes() == 2_400_000
    (folder / "memory.max").write_text("max\n")
    assert free_memory_bytes() > machine / 2
