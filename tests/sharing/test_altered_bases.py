"""`verify --base` and opening refuse every base that differs from the base of training."""

import json
import os
import shutil

import pytest
from forging import facts

from lora_chat.cli import main
from lora_chat.errors import IntegrityError
from lora_chat.models.adapter import validate_adapter_config
from lora_chat.models.adapter_files import read_adapter
from lora_chat.models.bundled import find_bundled_base
from lora_chat.pipeline.open_adapter import TrustOptions, open_adapter
from lora_chat.sharing.build import build_members
from lora_chat.sharing.collect import make_base_receipt
from lora_chat.sharing.container import pack_members
from lora_chat.sharing.receipt import Receipt
from lora_chat.sharing.tensor_checks import check_tensors, read_tensors


@pytest.fixture
def base(cache_home, tmp_path):
    """Return the base tiny-random as a folder that anyone could have made."""
    folder = tmp_path / "tiny"
    shutil.copytree(find_bundled_base("tiny-random"), folder)
    for name in ("sha256.json", "complete.json"):
        (folder / name).unlink()
    return folder


@pytest.fixture
def make_parcel(base, make_adapter, tmp_path):
    """Return a function that packs an adapter of that base, optionally in version 1."""

    def make(version=2):
        make_adapter(base, tmp_path / "adapter")
        stored = read_adapter(tmp_path / "adapter")
        settings = validate_adapter_config(stored)
        weights = (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()
        bound = make_base_receipt(stored.identity).model_dump(mode="json")
        if version == 1:
            kept = ("base", "revision", "weights", "tokenizer", "chat_template", "system")
            bound = {key: bound[key] for key in kept}
        receipt = facts(
            version=version,
            base=bound,
            recipe={},
            precision={"mode": "none", "double_quantization": True, "dtype": "float32"},
            adapter=settings.to_section().model_dump(mode="json"),
            parameters=check_tensors(read_tensors(weights), settings),
        )
        path = tmp_path / "kiln.lorachat"
        members = build_members(Receipt.model_validate_json(json.dumps(receipt)), weights)
        path.write_bytes(b"".join(bytes(piece) for piece in pack_members(members)))
        return path

    return make


def change(folder, name, **fields):
    found = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**found, **fields}))


def noise(source, to):
    import torch
    from safetensors.torch import load_file, save_file

    to.parent.mkdir(exist_ok=True)
    weights = {name: torch.randn(tensor.shape).to(tensor.dtype) for name, tensor in load_file(source).items()}
    save_file(weights, to, metadata={"format": "pt"})


def config_rope(folder):
    change(folder, "config.json", rope_theta=17.0, rope_parameters={"rope_theta": 17.0, "rope_type": "default"})


def config_activation(folder):
    change(folder, "config.json", hidden_act="relu", rms_norm_eps=10.0)


def other_file(folder):
    noise(folder / "model.safetensors", folder / "sub" / "evil.safetensors")
    change(folder, "config.json", transformers_weights="sub/evil.safetensors")


def inner_adapter(folder):
    (folder / "adapter_model.bin").write_bytes(b"")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')


def distributed(folder):
    noise(folder / "model.safetensors", folder / "shard-00001-model-00001-of-00001.safetensors")


def normalizer(folder):
    change(folder, "tokenizer.json", normalizer={"type": "Replace", "pattern": {"String": "snow"}, "content": "coal"})


def decoder(folder):
    old = json.loads((folder / "tokenizer.json").read_text())["decoder"]
    swap = {"type": "Replace", "pattern": {"Regex": "[0-9]"}, "content": "9"}
    change(folder, "tokenizer.json", decoder={"type": "Sequence", "decoders": [old, swap]})


def stops(folder):
    change(folder, "generation_config.json", eos_token_id=[0, 1, 2, 5, 60, 61, 62])


def sampling(folder):
    change(folder, "generation_config.json", do_sample=True, temperature=5.0, repetition_penalty=9.0, max_length=3)


def added(folder):
    change(folder, "tokenizer_config.json", add_bos_token=True, clean_up_tokenization_spaces=True)


def template(folder):
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")


def same_size_and_time(folder):
    path = folder / "model.safetensors"
    before, raw = path.stat(), bytearray(path.read_bytes())
    raw[-1000:] = bytes(1000)
    path.write_bytes(raw)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


NOT_THE_BASE = (
    config_rope,
    config_activation,
    other_file,
    inner_adapter,
    distributed,
    normalizer,
    decoder,
    stops,
    sampling,
    added,
    template,
    same_size_and_time,
)


def test_verify_and_open_refuse_another_base(make_parcel, base, tmp_path, capsys):
    parcel = make_parcel()
    assert main(["verify", str(parcel), "--base", str(base)]) == 0
    assert "ok      base" in capsys.readouterr().out
    open_adapter(str(parcel), TrustOptions(base=str(base)))
    for alter in NOT_THE_BASE:
        folder = tmp_path / alter.__name__
        shutil.copytree(base, folder)
        alter(folder)
        capsys.readouterr()
        assert main(["verify", str(parcel), "--base", str(folder)]) == 7, alter
        captured = capsys.readouterr()
        assert "FAILED  base" in captured.out or f"The base {folder} contains an adapter" in captured.err, alter
        with pytest.raises(IntegrityError):
            open_adapter(str(parcel), TrustOptions(base=str(folder), accept_template=True))


def test_verify_ignores_a_stale_cached_digest(make_parcel, base, tmp_path, capsys):
    from lora_chat.models.integrity import _cache_key
    from lora_chat.system.cache_dir import cache_dir
    from lora_chat.system.hashing import digest_file

    parcel = make_parcel()
    true = digest_file(base / "model.safetensors")
    same_size_and_time(base)
    path = base / "model.safetensors"
    (cache_dir() / "digests.json").write_text(json.dumps({_cache_key(path, path.stat()): true}))
    assert main(["verify", str(parcel), "--base", str(base)]) == 7
    assert "FAILED  base" in capsys.readouterr().out


def test_old_parcel_opens_and_lists_uncovered_parts(make_parcel, base, capsys, messages):
    parcel = make_parcel(version=1)
    config_activation(base)
    assert main(["verify", str(parcel), "--base", str(base)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "rest of the base" in line]
    assert len([line for line in lines if "does not cover" in line and "config" in line and "stop ids" in line]) == 1
    messages.clear()
    open_adapter(str(parcel), TrustOptions(base=str(base)))
    assert len([line for line in messages if "does not cover" in line]) == 1
    same_size_and_time(base)
    assert main(["verify", str(parcel), "--base", str(base)]) == 7
