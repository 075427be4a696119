"""What does not fit fails before the first step, with settings that were tried and fit."""

import subprocess
import sys
from pathlib import Path

import pytest
from test_equivalence import make_rows, train

from lora_chat.data.encoding.encode import EncodedDialogue
from lora_chat.errors import OutOfMemoryError
from lora_chat.system import memory_limit, memory_usage
from lora_chat.system.memory_usage import free_memory_bytes
from lora_chat.training.trainer import PackedSFTTrainer

FULL = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."


@pytest.fixture
def card(monkeypatch):
    """A machine on which a micro-batch of so many tokens fits, and more with recomputed activations."""

    def of(most, *, most_checkpointed=None):
        tried = []
        stock = PackedSFTTrainer.dry_run_step

        def try_step(self, inputs):
            batches = inputs.get("micro_batches", [inputs])
            tokens = max(batch["input_ids"].numel() for batch in batches)
            tried.append(tokens)
            recomputed = any(getattr(module, "gradient_checkpointing", False) for module in self.model.modules())
            if tokens > ((most_checkpointed or most) if recomputed else most):
                raise RuntimeError(FULL)
            stock(self, inputs)

        monkeypatch.setattr(PackedSFTTrainer, "dry_run_step", try_step)
        return tried

    return of


ROWS = [*make_rows(30), *make_rows(2, seed=5)]  # 8 to 24 tokens


def test_the_largest_micro_batch_is_what_is_tried(cache_home, tmp_path, card):
    tried = card(10**6)
    train(ROWS, tmp_path / "run", epochs=1, micro_batch_tokens=100)
    longest = sorted((len(row.input_ids) for row in ROWS), reverse=True)[:8]
    assert tried[0] <= 100 < tried[0] + min(longest)
    assert len(tried) == 1


def test_a_base_that_makes_all_its_logits_at_once_tries_the_most_of_them_too(random_base, tmp_path, monkeypatch):
    long = EncodedDialogue([5] * 60, [-100] * 55 + [5] * 5)
    tried = []
    monkeypatch.setattr(PackedSFTTrainer, "dry_run_step", lambda self, inputs: tried.append(loss_tokens(inputs)))
    settings = {"effective_batch_size": 2, "micro_batch_tokens": 70, "max_steps": 1}
    train([long, *make_rows(8)], tmp_path / "run", base=random_base("gemma2"), **settings)
    assert tried == [5, (23 - 4) + (21 - 4)]  # the long row alone, and the two with the most loss
    tried.clear()
    train([long, *make_rows(8)], tmp_path / "other", **settings)
    assert len(tried) == 1


def loss_tokens(inputs):
    return sum(int((batch["labels"] != -100).sum()) for batch in inputs["micro_batches"])


def test_settings_that_fit_are_named_and_fit(cache_home, tmp_path, card):
    rows = make_rows(256)
    card(600)
    with pytest.raises(OutOfMemoryError) as caught:
        train(rows, tmp_path / "large", effective_batch_size=256, micro_batch_tokens=2048, epochs=1)
    assert "--set training.micro_batch_tokens=512" in str(caught.value)
    assert "gradient_checkpointing" not in str(caught.value)
    train(rows, tmp_path / "fits", effective_batch_size=256, micro_batch_tokens=512, epochs=1)


def test_what_is_left_open_is_made_smaller_once_and_training_begins_again(cache_home, tmp_path, card, messages):
    rows = make_rows(64)
    _, wanted, losses = train(rows, tmp_path / "wanted", effective_batch_size=64, micro_batch_tokens=256, epochs=2)
    card(300)
    _, report, again = train(
        rows,
        tmp_path / "large",
        effective_batch_size=64,
        micro_batch_tokens=1024,
        epochs=2,
        adjustable_settings=("micro_batch_tokens",),
    )
    assert report.plan.micro_batch_tokens == 256
    assert report.plan.effective_batch_size == 64
    assert again == pytest.approx(losses, abs=1e-4)
    assert report.supervised_tokens == wanted.supervised_tokens
    assert "training.micro_batch_tokens becomes 256" in "\n".join(messages)


def test_what_was_given_is_not_changed(cache_home, tmp_path, card):
    card(300)
    with pytest.raises(OutOfMemoryError, match=r"--set training.micro_batch_tokens=256"):
        train(
            make_rows(64),
            tmp_path / "run",
            effective_batch_size=64,
            micro_batch_tokens=1024,
            adjustable_settings=("gradient_checkpointing",),
        )


@pytest.mark.slow
def test_rows_of_a_padded_batch_step_down_too(cache_home, tmp_path, card):
    _, _, losses = train(ROWS, tmp_path / "two", attention="padded", micro_batch_size=2, epochs=1)
    card(60)
    _, report, again = train(
        ROWS,
        tmp_path / "run",
        attention="padded",
        effective_batch_size=8,
        micro_batch_size=8,
        epochs=1,
        adjustable_settings=("micro_batch_size", "gradient_checkpointing"),
    )
    assert (report.plan.micro_batch_size, report.plan.gradient_accumulation_steps) == (2, 4)
    assert again == pytest.approx(losses, abs=1e-4)


@pytest.mark.slow
def test_rows_of_a_padded_batch_are_made_fewer(cache_home, tmp_path, card):
    card(60)
    with pytest.raises(OutOfMemoryError, match=r"--set training.micro_batch_size=2"):
        train(ROWS, tmp_path / "run", attention="padded", effective_batch_size=8, micro_batch_size=8, epochs=1)


@pytest.mark.slow
def test_recomputing_comes_last(cache_home, tmp_path, card):
    card(10, most_checkpointed=30)
    with pytest.raises(OutOfMemoryError) as caught:
        train(ROWS, tmp_path / "run", epochs=1, micro_batch_tokens=20)
    assert "--set training.gradient_checkpointing=true" in str(caught.value)


@pytest.mark.slow
def test_when_nothing_fits_the_longest_dialogue_is_named(cache_home, tmp_path, card):
    card(0)
    with pytest.raises(OutOfMemoryError, match=r"longest dialogue, 24 tokens.*\n.*data.max_length"):
        train(ROWS, tmp_path / "run", epochs=1)


@pytest.mark.slow
def test_another_error_is_not_taken_for_it(cache_home, tmp_path, monkeypatch):
    def fail(self, inputs):
        raise RuntimeError("another")

    monkeypatch.setattr(PackedSFTTrainer, "dry_run_step", fail)
    with pytest.raises(RuntimeError, match="another"):
        train(ROWS, tmp_path / "run", epochs=1)


REAL = """
import re, sys
from pathlib import Path
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
def test_memory_that_really_ends_is_a_message_and_its_advice_holds(cache_home, tmp_path):
    words = [sys.executable, "-c", REAL, str(tmp_path)]
    done = subprocess.run(words, cwd="tests/training", capture_output=True, text=True, check=False)
    assert done.stdout.startswith("large Out of memory: the largest micro-batch"), done.stderr
    assert done.stdout.endswith("fits trained\n")


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux alone")
def test_the_limit_ends_with_training():
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    with memory_limit.limited_memory():
        assert resource.getrlimit(resource.RLIMIT_DATA)[0] > 0
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux alone")
def test_a_containers_limit_counts(tmp_path, monkeypatch):
    machine = free_memory_bytes()
    group = Path("/proc/self/cgroup").read_text().splitlines()
    own = next((line.removeprefix("0::/") for line in group if line.startswith("0::")), None)
    if own is None:
        pytest.skip("no cgroup v2 here")
    folder = tmp_path / own
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text("3000000\n")
    (folder / "memory.current").write_text("1000000\n")
    (folder / "memory.stat").write_text("anon 500000\ninactive_file 400000\n")
    monkeypatch.setattr(memory_usage, "_CGROUP_ROOT", tmp_path)
    assert free_memory_bytes() == 2_400_000
    (folder / "memory.max").write_text("max\n")
    assert free_memory_bytes() > machine / 2
