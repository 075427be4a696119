"""Strangers' folders and files: links, special files, sizes, depths and numbers; and permissions of written files."""

import json
import os
import shutil
import socket
import stat
from pathlib import Path

import pytest

from lora_chat.cli import main
from lora_chat.config.recipe import BaseSection
from lora_chat.errors import IntegrityError, UnavailableError
from lora_chat.models import adapter_files, base_files
from lora_chat.models.adapter_files import read_adapter
from lora_chat.models.base_config import find_base_config
from lora_chat.models.base_model import find_base
from lora_chat.models.bundled import find_bundled_base
from lora_chat.pipeline.open_adapter import open_adapter
from lora_chat.runs import run_folder
from lora_chat.runs.checkpoints import (
    DamagedCheckpointError,
    commit_checkpoint,
    find_newest_checkpoint,
    verify_checkpoint,
)
from lora_chat.runs.run_folder import open_run_folder
from lora_chat.system.bounded_files import read_json, read_json_lines, read_text
from lora_chat.system.received_folder import check_received_folder
from lora_chat.system.safetensors_header import check_safetensors_header

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def made_run(cache_home, tmp_path_factory):
    """Return a finished run of tiny-random whose folder of runs was created with a usual umask."""
    folder = tmp_path_factory.mktemp("runs")
    settings = ["output.name=t", "evaluation.samples=0", f"output.directory={folder}", "output.tensorboard=true"]
    settings += ["audit.personal_data=redact", "checkpoint.every_steps=2"]
    before = os.umask(0o022)
    try:
        assert main(["sft", "recipes/smoke.yaml", *(word for one in settings for word in ("--set", one))]) == 0
    finally:
        os.umask(before)
    return folder / "t-1"


@pytest.fixture
def run(made_run, tmp_path):
    """Return a copy of the run, as a stranger would send it."""
    return Path(shutil.copytree(made_run, tmp_path / "gift-1", symlinks=True))


@pytest.fixture
def base(cache_home, tmp_path):
    """Return a copy of the base, as a stranger would send it."""
    folder = Path(shutil.copytree(find_bundled_base("tiny-random"), tmp_path / "base"))
    for name in ("sha256.json", "complete.json"):
        (folder / name).unlink()
    return folder


@pytest.fixture
def outside(tmp_path):
    """Return a file of the user that must remain unchanged."""
    path = tmp_path / "bashrc"
    path.write_text("mine")
    return path


def plant(place, kind, outside):
    """Create a special file or link at a path."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "socket":
        here = Path.cwd()
        os.chdir(place.parent)  # the path of a socket is at most 108 bytes long
        try:
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(place.name)
        finally:
            os.chdir(here)
    else:
        targets = {"link": outside, "zero": "/dev/zero", "dangling": outside.with_name("none"), "loop": place.name}
        targets |= {"folder": outside.parent, "inner": "plan.json"}
        place.symlink_to(targets[kind])


KINDS = ["link", "zero", "dangling", "loop", "folder", "inner", "fifo", "socket"]
PLACES = [
    ".comparison.json.part",
    "comparison.json",
    ".loss.png.part",
    "loss.png",
    "plan.json",
    "recipe.yaml",
    "result.json",
    "metrics.jsonl",
    "proof.json",
    ".lock",
    "adapter",
    "adapter/README.md",
    ".adapter-x",
    "checkpoints",
    "checkpoints/committed",
    "checkpoints/.probe",
    "checkpoints/checkpoint-9",
    "checkpoints/checkpoint-4/zero",
    "checkpoints/checkpoint-4/.manifest.json.part",
    "tensorboard/events.out",
    "a/b/c/d",
]


@pytest.mark.parametrize("place", PLACES)
def test_a_run_with_a_link_anywhere_is_refused_by_name(run, outside, place):
    plant(run / place, "link", outside)
    with pytest.raises(IntegrityError, match="contains a symbolic link") as caught:
        open_run_folder(run)
    assert place in str(caught.value)
    assert outside.read_text() == "mine"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["metrics.jsonl", "plan.json", "checkpoints/checkpoint-4/optimizer.pt"])
def test_a_run_with_any_special_file_is_refused(run, outside, kind, place):
    plant(run / place, kind, outside)
    for opening in (lambda: open_run_folder(run), lambda: open_adapter(str(run))):
        with pytest.raises(IntegrityError, match="is refused: it contains a") as caught:
            opening()
        assert place in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["adapter_config.json", "lora_chat.json", "chat_template.jinja", "README.md", "a/b"])
def test_an_adapter_with_a_special_file_is_refused(run, outside, kind, place):
    plant(run / "adapter" / place, kind, outside)
    with pytest.raises(IntegrityError, match="is refused: it contains a") as caught:
        read_adapter(run / "adapter")
    assert place in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["config.json", "model.safetensors", "tokenizer.json", "extra/model.safetensors"])
def test_a_base_with_a_special_file_is_refused(base, outside, kind, place):
    plant(base / place, kind, outside)
    for opening in (find_base, lambda section: find_base_config(section)):
        with pytest.raises(IntegrityError, match="is refused: it contains a") as caught:
            opening(BaseSection(name=str(base)))
        assert place in str(caught.value)


def test_a_device_is_refused(tmp_path):
    try:
        os.mknod(tmp_path / "zero", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root makes devices")
    with pytest.raises(IntegrityError, match="contains a device, zero"):
        check_received_folder(tmp_path)


def test_a_link_that_the_user_names_is_followed(run, base, tmp_path):
    (tmp_path / "mine").symlink_to(run)
    (tmp_path / "my-base").symlink_to(base)
    assert open_run_folder(tmp_path / "mine").read_result()["steps"] == 4
    assert find_base(BaseSection(name=str(tmp_path / "my-base"))).folder == base.resolve()


def test_too_many_entries_and_too_deep_folders_are_refused(tmp_path, monkeypatch):
    deep = tmp_path / "deep"
    (deep / "/".join("d" * 30)).mkdir(parents=True)
    with pytest.raises(IntegrityError, match="nested more than 20 deep"):
        check_received_folder(deep)
    monkeypatch.setattr("lora_chat.system.received_folder._MAX_ENTRIES", 3)
    wide = tmp_path / "wide"
    wide.mkdir()
    for number in range(4):
        (wide / str(number)).touch()
    with pytest.raises(IntegrityError, match="more than 3 files"):
        check_received_folder(wide)


def make_hub_cache(home, base):
    """Create the layout of the hub's cache: snapshots with links to blobs."""
    repository = home / "models--a--b"
    snapshot = repository / "snapshots" / ("0" * 40)
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(base.iterdir())):
        shutil.copy(path, repository / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    (snapshot / "extra").mkdir()
    (snapshot / "extra" / "file").symlink_to("../../../blobs/0")
    return repository, snapshot


def test_links_of_the_hubs_cache_are_followed(base, tmp_path):
    _, snapshot = make_hub_cache(tmp_path / "hub", base)
    assert find_base(BaseSection(name=str(snapshot))).folder == snapshot.resolve()


@pytest.mark.parametrize("trick", ["outside", "through", "blobs", "fifo", "missing", "folder", "elsewhere"])
def test_refuses_links_that_imitate_the_hubs(base, tmp_path, outside, trick):
    repository, snapshot = make_hub_cache(tmp_path / "hub", base)
    link = snapshot / "config.json"
    blob = repository / "blobs" / link.readlink().name
    if trick == "outside":
        link.unlink()
        link.symlink_to(outside)
    elif trick == "through":
        blob.unlink()
        blob.symlink_to(outside)
    elif trick == "blobs":
        (repository / "blobs").rename(tmp_path / "blobs")
        (repository / "blobs").symlink_to(tmp_path / "blobs")
    elif trick == "fifo":
        blob.unlink()
        os.mkfifo(blob)
    elif trick == "missing":
        blob.unlink()
    elif trick == "folder":
        link.unlink()
        link.symlink_to("../../blobs")
    else:
        snapshot.parent.rename(repository / "copies")
        snapshot = repository / "copies" / snapshot.name
    with pytest.raises(IntegrityError, match="contains a symbolic link"):
        find_base(BaseSection(name=str(snapshot)))


COMMANDS = {
    "chat": ["chat", "RUN"],
    "eval": ["eval", "RUN"],
    "merge": ["merge", "RUN", "--to", "OUT"],
    "export": ["export", "RUN", "--to", "peft", "--out", "OUT"],
    "pack": ["pack", "RUN", "--out", "OUT"],
    "resume": ["sft", "recipes/smoke.yaml", "--resume", "RUN"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_a_run_with_a_link(run, outside, tmp_path, capsys, command):
    plant(run / ".comparison.json.part", "link", outside)
    names = {"RUN": str(run), "OUT": str(tmp_path / "out")}
    assert main([names.get(word, word) for word in COMMANDS[command]]) == IntegrityError.exit_code
    assert ".comparison.json.part" in capsys.readouterr().err
    assert outside.read_text() == "mine"
    assert not (tmp_path / "out").exists()


WRITTEN_BY_EVAL = ["comparison.json", "loss.png", "report.html"]
WRITTEN_BY_SFT = [
    *WRITTEN_BY_EVAL,
    "forecast.json",
    "versions.json",
    "identity.json",
    "data.json",
    "audit.json",
    "validation.jsonl",
    "redacted.jsonl",
    "metrics.jsonl",
]


@pytest.fixture
def unchecked(monkeypatch):
    """Disable the check of folders, as if links were planted after it."""
    for module in (run_folder, adapter_files):
        monkeypatch.setattr(module, "check_received_folder", lambda folder: None)


def plant_links(run, names, outside):
    for name in names:
        copy = run.with_name(f"copy-of-{name}")
        if name == "metrics.jsonl":  # it is read first
            copy.write_bytes((run / name).read_bytes())
        else:
            copy.write_text("mine")
        for place in (name, f".{name}.part"):
            (run / place).unlink(missing_ok=True)
            (run / place).symlink_to(copy)
    return {run.with_name(f"copy-of-{name}"): run.with_name(f"copy-of-{name}").read_bytes() for name in names}


def test_eval_follows_no_link(run, outside, unchecked):
    before = plant_links(run, WRITTEN_BY_EVAL, outside)
    assert main(["eval", str(run)]) == 0
    assert {path: path.read_bytes() for path in before} == before
    assert all(not (run / name).is_symlink() for name in WRITTEN_BY_EVAL)


def test_sft_resume_follows_no_link(run, outside, unchecked, capsys):
    # A link at a signed file makes the run a stranger's, which is refused before anything is written.
    names = [name for name in WRITTEN_BY_SFT if name not in ("identity.json", "validation.jsonl")]
    before = plant_links(run, names, outside)
    (run / "result.json").unlink()
    settings = ["output.name=t", "evaluation.samples=0", "output.tensorboard=true", "audit.personal_data=redact"]
    settings += ["checkpoint.every_steps=2", f"output.directory={run.parent}"]
    words = [word for one in settings for word in ("--set", one)]
    assert main(["sft", "recipes/smoke.yaml", *words, "--resume", str(run), "--adopt"]) == 0, capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before
    assert all(not (run / name).is_symlink() for name in names)


@pytest.mark.parametrize("kind", ["link", "dangling", "fifo"])
def test_resume_refuses_a_lock_that_is_not_a_file(run, outside, unchecked, kind, capsys):
    (run / "result.json").unlink()
    plant(run / ".lock", kind, outside)
    assert main(["sft", "recipes/smoke.yaml", "--resume", str(run)]) == IntegrityError.exit_code
    assert ".lock is a" in capsys.readouterr().err
    assert outside.read_text() == "mine"
    assert not outside.with_name("none").exists()


def test_audit_replaces_a_link_at_its_target(cache_home, tmp_path, outside):
    to = tmp_path / "out.jsonl"
    to.symlink_to(outside)
    assert main(["audit", "recipes/smoke.yaml", "--to", str(to)]) == 0
    assert outside.read_text() == "mine"
    assert not to.is_symlink()
    assert stat.S_IMODE(to.stat().st_mode) == 0o600


def test_only_the_owner_can_read_runs_and_the_cache(made_run, cache_home):
    assert stat.S_IMODE(made_run.stat().st_mode) == 0o700
    for place in (made_run, cache_home / "lora-chat"):
        for path in place.rglob("*"):
            if any(part.startswith(".") for part in path.relative_to(place).parent.parts):
                continue  # another process is writing a base there, in a folder that nobody else can enter
            wanted = 0o700 if path.is_dir() else 0o600
            assert oct(stat.S_IMODE(path.stat().st_mode)) == oct(wanted), path


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoints" / "checkpoint-4"
    folder.mkdir(parents=True)
    (folder / "optimizer.pt").write_bytes(b"state")
    (folder / "trainer_state.json").write_text("{}")
    commit_checkpoint(folder, {"a": 1})
    return folder


def reseal(folder, **extra):
    """Write a new manifest for a changed checkpoint, as a stranger can."""
    from lora_chat.runs.checkpoints import _digest_manifest

    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("sha256")
    manifest["files"] += [{"path": name, "size": size, "sha256": "0" * 64} for name, size in extra.items()]
    manifest["sha256"] = _digest_manifest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_with_a_special_file_is_not_digested(checkpoint, outside, kind):
    plant(checkpoint / "zero", kind, outside)
    reseal(checkpoint, zero=0)
    with pytest.raises(DamagedCheckpointError, match="zero is a"):
        verify_checkpoint(checkpoint)


def test_link_to_a_folder_is_not_a_checkpoint(checkpoint, tmp_path):
    checkpoint.with_name("checkpoint-9").symlink_to(tmp_path)
    found, aside = find_newest_checkpoint(checkpoint.parent)
    assert found is not None
    assert found.step == 4
    assert aside == []


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' + "[" * 5000 + "]" * 5000 + "}", "[]", "\xff"])
def test_oversized_manifest_or_state_counts_as_damage(checkpoint, text):
    (checkpoint / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(DamagedCheckpointError, match="manifest"):
        verify_checkpoint(checkpoint)


def test_deeply_nested_trainer_state_counts_as_damage(checkpoint):
    (checkpoint / "trainer_state.json").write_text('{"a":' + "[" * 500 + "]" * 500 + "}")
    (checkpoint / "manifest.json").unlink()
    commit_checkpoint(checkpoint, {})
    with pytest.raises(DamagedCheckpointError, match="nested"):
        verify_checkpoint(checkpoint)


DEEP = '{"a":' + "[" * 200_000 + "]" * 200_000 + "}"
BAD_JSON = {
    "deep": DEEP.encode(),
    "a little too deep": b'{"a":' + b"[" * 120 + b"]" * 120 + b"}",
    "unclosed": b"[" * 200_000,
    "latin": b'{"a": "\xe9"}',
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "cut": b'{"a": 1',
    "list": b"[1]",
    "digits": b'{"a": ' + b"9" * 10_000 + b"}",
    "empty": b"",
    "large": b'{"a": "' + b"x" * (1 << 20) + b'"}',
}


@pytest.mark.parametrize("bad", BAD_JSON)
@pytest.mark.parametrize(
    "place",
    ["adapter/adapter_config.json", "adapter/lora_chat.json", "plan.json", "result.json", "proof.json"],
)
def test_json_of_a_run_is_bounded(run, place, bad, capsys):
    (run / place).write_bytes(BAD_JSON[bad])

    def read():
        found = open_run_folder(run)
        found.read_plan()
        found.read_result()
        read_adapter(found.adapter)
        found.read_parity_report()

    with pytest.raises(IntegrityError) as caught:
        read()
    assert Path(place).name in str(caught.value)
    assert len(str(caught.value)) < 2000


ADAPTER_INSIDE = (UnavailableError, IntegrityError)
"""A base with an adapter in it is refused as such, before or after its config is read."""


@pytest.mark.parametrize("name", [*base_files._JSON_LIMITS_BYTES])
@pytest.mark.parametrize("bad", ["deep", "a little too deep", "latin", "cut", "list"])
def test_json_of_a_base_is_bounded(base, name, bad):
    if (name, bad) == ("chat_template.json", "list"):
        pytest.skip("transformers refuses it itself")
    (base / name).write_bytes(BAD_JSON[bad])
    with pytest.raises(ADAPTER_INSIDE if name == "adapter_config.json" else UnavailableError) as caught:
        find_base(BaseSection(name=str(base)))
    assert name in str(caught.value)


@pytest.mark.parametrize("name", [*base_files._JSON_LIMITS_BYTES, *base_files._VOCABULARY_NAMES, "chat_template.jinja"])
def test_files_of_a_base_have_a_largest_size(base, name):
    with (base / name).open("ab") as file:
        file.truncate(base_files.LARGE_FILE_BYTES + 1)  # sparse: it takes no room
    inside = name == "adapter_config.json"
    with pytest.raises(
        ADAPTER_INSIDE if inside else UnavailableError, match="bytes|adapter" if inside else "bytes"
    ) as caught:
        find_base(BaseSection(name=str(base)))
    assert name in str(caught.value)


def test_a_file_of_a_base_that_was_changed_is_checked_again(base):
    find_base(BaseSection(name=str(base)))
    (base / "config.json").write_text("[")
    with pytest.raises(UnavailableError):
        find_base(BaseSection(name=str(base)))


def test_many_small_values_are_too_many():
    from lora_chat.system import bounded_files

    with pytest.raises(ValueError, match="values"):
        bounded_files.parse_bounded_json("[" + "[]," * (bounded_files._MAX_VALUES // 2) + "[]]")


@pytest.mark.parametrize("place", ["adapter/chat_template.jinja", "metrics.jsonl"])
def test_text_of_a_run_must_be_utf8_and_bounded(run, place, monkeypatch):
    (run / place).write_bytes(b"\xff\xfe")
    read = {"chat_template.jinja": lambda: read_adapter(run / "adapter"), "metrics.jsonl": lambda: log(run)}
    with pytest.raises(IntegrityError, match="not UTF-8"):
        read[Path(place).name]()
    (run / place).write_bytes(b"x" * ((1 << 20) + 1))
    monkeypatch.setattr("lora_chat.runs.run_folder.MAX_LOG_BYTES", 1 << 20)
    with pytest.raises(IntegrityError, match="more than 1,048,576 bytes"):
        read[Path(place).name]()


def log(run):
    return open_run_folder(run).read_lines(run / "metrics.jsonl")


NUMBERS = {
    "num_hidden_layers": [10**8, 1001, 0, -1, "2", 2.5, True, [2, "2"], {"a": 1}],
    "hidden_size": [2**21, 0, "64", 64.0],
    "intermediate_size": [2**21, "128"],
    "num_attention_heads": [10**6, 0, "4"],
    "num_key_value_heads": [10**6, "2"],
    "head_dim": [2**30, "16"],
    "vocab_size": [2**25, 0, "260"],
    "max_position_embeddings": [2**28, "1024"],
    "num_labels": [10**9, "2"],
    "id2label": [{str(number): "x" for number in range(70_000)}, [1], "x"],
    "label2id": [{str(number): number for number in range(70_000)}],
    "eos_token_id": [2**30, "</s>", -5],
    "pad_token_id": [2**30, "x"],
    "num_local_experts": [10**6],
    "n_routed_experts": [10**6],
    "moe_intermediate_size": [2**30],
    "encoder_layers": [10**6],
    "n_embd": [2**30],
    "n_layer": [10**6],
    "n_positions": [2**30],
    "sliding_window": [2**40],
    "text_config": [{"num_hidden_layers": 10**8}, {"a": [{"vocab_size": 2**30}]}],
    "vision_config": [{"hidden_size": 10**9, "depth": 10**7}],
    "layer_types": [["x"] * 70_000],
}


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, value) for key, some in NUMBERS.items() for value in some],
    ids=lambda one: str(one)[:30],
)
def test_numbers_of_a_config_are_bounded(base, key, value):
    config = json.loads((base / "config.json").read_text()) | {key: value}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnavailableError) as caught:
        find_base(BaseSection(name=str(base)))
    assert "config.json" in str(caught.value)
    with pytest.raises(UnavailableError):
        find_base_config(BaseSection(name=str(base)))


def test_layers_times_experts_are_bounded(base):
    config = json.loads((base / "config.json").read_text()) | {"num_hidden_layers": 1000, "num_experts": 4096}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnavailableError, match="experts"):
        find_base(BaseSection(name=str(base)))


def test_the_configs_of_known_bases_are_within_bounds():
    from lora_chat.models.base_config import read_known_configs
    from lora_chat.models.config_checks import check_config_limits

    for name, config in read_known_configs().items():
        check_config_limits(config, name)
    large = {"num_hidden_layers": 126, "hidden_size": 16384, "vocab_size": 256_000, "intermediate_size": 53_248}
    check_config_limits(
        {**large, "max_position_embeddings": 10_485_760, "rope_theta": 500_000_000, "eos_token_id": [1]}, "x"
    )
    check_config_limits({"num_hidden_layers": 61, "n_routed_experts": 384, "time_step_limit": [0.0, float("inf")]}, "x")


def test_refuses_config_with_more_weights_than_the_files(base):
    from lora_chat.config.plan import plan_precision
    from lora_chat.config.recipe import QuantizationSection
    from lora_chat.models.base_model import load_base_model
    from lora_chat.system.hardware import Hardware

    config = json.loads((base / "config.json").read_text()) | {"num_hidden_layers": 900, "intermediate_size": 2**20}
    (base / "config.json").write_text(json.dumps(config))
    precision = plan_precision(QuantizationSection(mode="none"), Hardware("cpu", "test", 0, False, 2))
    with pytest.raises(UnavailableError, match="do not belong together"):
        load_base_model(find_base(BaseSection(name=str(base))), precision)


def test_added_tokens_are_counted(base):
    path = base / "tokenizer.json"
    found = json.loads(path.read_text())
    found["added_tokens"] = [{"id": number, "content": f"t{number}"} for number in range(100_001)]
    path.write_text(json.dumps(found))
    with pytest.raises(UnavailableError, match="added_tokens has 100,001 tokens"):
        find_base(BaseSection(name=str(base)))


HEADERS = {
    "empty": b"",
    "short": b"\0" * 7,
    "huge length": (2**63).to_bytes(8, "little") + b"{}",
    "longer than the file": (100).to_bytes(8, "little") + b"{}",
    "no JSON": (4).to_bytes(8, "little") + b"....",
    "deep": (240).to_bytes(8, "little") + b"[" * 120 + b"]" * 120,
    "list": (2).to_bytes(8, "little") + b"[]",
    "no UTF-8": (4).to_bytes(8, "little") + b'"\xff" ',
}
TABLES = {
    "outside": {"t": {"dtype": "F32", "shape": [4], "data_offsets": [0, 10**6]}},
    "backwards": {"t": {"dtype": "F32", "shape": [4], "data_offsets": [8, 0]}},
    "negative": {"t": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 0]}},
    "texts": {"t": {"dtype": "F32", "shape": ["4"], "data_offsets": [0, 0]}},
    "dimensions": {"t": {"dtype": "F32", "shape": [1] * 100, "data_offsets": [0, 4]}},
    "three places": {"t": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 4]}},
    "nothing": {"t": None},
}


@pytest.mark.parametrize("kind", [*HEADERS, *TABLES])
def test_safetensors_headers_are_checked_before_they_are_opened(tmp_path, run, kind):
    text = json.dumps(TABLES.get(kind)).encode()
    raw = HEADERS.get(kind) if kind in HEADERS else len(text).to_bytes(8, "little") + text + b"\0" * 16
    path = run / "adapter" / "adapter_model.safetensors"
    path.write_bytes(raw)
    with pytest.raises(IntegrityError):
        check_safetensors_header(path)
    with pytest.raises(IntegrityError, match="cannot be read"):
        read_adapter(run / "adapter").read_weights()


def test_a_header_of_a_hundred_megabytes_is_not_read(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes((90_000_000).to_bytes(8, "little"))
    os.truncate(path, 100_000_000)
    with pytest.raises(IntegrityError, match="cannot have 90,000,000 bytes"):
        check_safetensors_header(path)


def test_reading_never_waits_for_a_fifo(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for read in (read_text, read_json, check_safetensors_header, lambda path: list(read_json_lines(path, 10))):
        with pytest.raises(IntegrityError, match="FIFO"):
            read(tmp_path / "fifo")


def test_endless_devices_are_not_read():
    for read in (read_text, read_json, check_safetensors_header):
        with pytest.raises(IntegrityError, match="device"):
            read(Path("/dev/zero"))


def with_pattern(base, pattern):
    from transformers import AutoTokenizer

    path = base / "tokenizer.json"
    found = json.loads(path.read_text())
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    found["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, found["pre_tokenizer"]]}
    path.write_text(json.dumps(found))
    return AutoTokenizer.from_pretrained(base)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [("^(a|a|aa)+$", "a" * 60 + "!"), ("(?:a|a){18}[bc]", "a" * 1500 + "c"), ("(x+x+)+y", "x" * 60)],
)
def test_backtracking_pattern_times_out(base, pattern, text, monkeypatch):
    """Oniguruma stops one attempt after ten million steps, and starts again at every character."""
    from lora_chat.data.encoding import tokenizer as tokenizer_module

    monkeypatch.setattr(tokenizer_module, "_BASE_TIMEOUT_SECONDS", 0.3)
    coder = tokenizer_module.TextTokenizer(with_pattern(base, pattern))
    with pytest.raises(UnavailableError, match="regular expression"):
        coder.tokenize([text])


def test_a_usual_pattern_is_encoded_as_before(base):
    from lora_chat.data.encoding.tokenizer import TextTokenizer

    tokenizer = with_pattern(base, r"\p{N}")
    assert TextTokenizer(tokenizer).tokenize(["ab 12"])[0].ids == tokenizer.encode("ab 12", add_special_tokens=False)


def test_library_panic_gives_one_message(monkeypatch, capsys):
    from lora_chat.commands import verify

    panic = type("PanicException", (BaseException,), {})

    def fail(options):
        raise panic("index out of bounds\nstack")

    monkeypatch.setattr(verify, "run", fail)
    assert main(["verify", "x.lorachat"]) == IntegrityError.exit_code
    assert "index out of bounds" in capsys.readouterr().err
