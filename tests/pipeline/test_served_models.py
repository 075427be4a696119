"""Only proven adapters answer: each wrong one is refused at the door with its reason, and right ones are admitted."""

import dataclasses
import hashlib
import json
import os
import shutil
import threading
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from lora_chat.config.lora_variants import LORA_VARIANTS
from lora_chat.errors import ConsentError, IntegrityError, LoraChatError, OutOfMemoryError, UnavailableError, UsageError
from lora_chat.inference.continuous.batch_generator import BatchGenerator
from lora_chat.inference.continuous.request import BatchLimits, Finish, GenerationRequest
from lora_chat.models.adapter_config import find_special_variants
from lora_chat.pipeline import admission, admission_prompts, served_memory, served_models
from lora_chat.pipeline.admission_reference import _select_prompts, common_kl
from lora_chat.pipeline.open_adapter import TrustOptions
from lora_chat.pipeline.served_models import open_served_models
from lora_chat.pipeline.served_names import NamedSource, check_unique_names, read_named_source
from tests.pipeline.serving_fixtures import things  # noqa: F401

pytestmark = pytest.mark.slow  # many models are loaded

LIMITS = BatchLimits()


@pytest.fixture(scope="module")
def good(things):  # noqa: F811
    return things.parcel("good", things.adapter("good-adapter"))


@pytest.fixture(scope="module")
def other(things):  # noqa: F811
    return things.parcel("other", things.adapter("other-adapter", seed=6, targets=("q_proj", "v_proj")))


@pytest.fixture(scope="module")
def models(things, good):  # noqa: F811
    opened = open_served_models([str(good), things.base], things.trust, None, LIMITS)
    yield opened
    opened.close(5)


def checks_of(model):
    return {check.name: check.passed for check in model.checks}


def count_weights(models):
    return models.generator.run_between_steps(lambda model: sum(p.numel() for p in model.parameters()))


def refusal(models, source, trust=None):
    """Return why a source is refused, and check that nothing of it stays."""
    weights, names = count_weights(models), [model.name for model in models.list()]
    with pytest.raises(LoraChatError) as caught:
        models.admit(str(source), trust)
    assert count_weights(models) == weights
    assert [model.name for model in models.list()] == names
    name = read_named_source(str(source)).name
    assert models.refused.pop(name)
    return str(caught.value)


def reply(models, adapter, prompt=(5, 6, 7), count=6):
    tokens, done = [], threading.Event()

    def receive(item):
        done.set() if isinstance(item, Finish) else tokens.append(item.token)

    models.generator.submit(GenerationRequest(prompt, adapter, frozenset(), count), receive)
    assert done.wait(20)
    return tokens


def test_a_proven_parcel_answers_beside_the_bare_base(models):
    assert [model.name for model in models.list()] == ["base", "good"]
    assert checks_of(models.find("good")) == dict.fromkeys(("files", "base", "prompts", "reference"), True)
    assert "the bare base" in models.find("good").checks[-1].detail
    assert models.find("base").adapter is None
    assert models.find("GOOD") is None


def test_a_second_adapter_is_admitted_and_unloaded_without_a_trace(models, other):
    weights = count_weights(models)
    before = reply(models, models.find("good").adapter)
    admitted = models.admit(f"second={other}")
    assert checks_of(admitted)["reference"] is True
    assert count_weights(models) > weights
    models.dismiss("second")
    assert count_weights(models) == weights
    assert reply(models, models.find("good").adapter) == before
    with pytest.raises(UsageError, match="No adapter is loaded"):
        models.dismiss("second")
    with pytest.raises(UsageError, match="No adapter is loaded"):
        models.dismiss("base")


def test_the_last_adapter_can_be_unloaded_and_loaded_again(things, good, other):  # noqa: F811
    models = open_served_models([things.base], things.trust, None, LIMITS)
    bare, weights = reply(models, None), count_weights(models)
    for source in (good, other):
        models.admit(f"one={source}")
        assert reply(models, None) == bare
        models.dismiss("one")
        assert (reply(models, None), count_weights(models)) == (bare, weights)
    models.close(5)


def test_a_replaced_adapter_is_swapped_after_the_proof(models, good, other, monkeypatch):
    monkeypatch.setattr(served_models, "_IDLE_CHECK_SECONDS", 0.02)
    first = models.admit(f"swapped={good}")
    alone = reply(models, first.adapter, count=40)
    with pytest.raises(UsageError, match="is taken"):
        models.admit(f"swapped={other}")
    models.forget_refusal("swapped")
    received, ended = [], threading.Event()

    def receive(item):
        ended.set() if isinstance(item, Finish) else received.append(item.token)

    models.generator.submit(GenerationRequest((5, 6, 7), first.adapter, frozenset(), 40), receive)
    second = models.admit(f"swapped={other}", replaces=True)
    assert models.find("swapped") is second
    assert second.adapter != first.adapter
    assert ended.wait(60)
    assert received == alone
    for _ in range(100):
        if first.adapter not in models.generator.run_between_steps(lambda model: set(model.peft_config)):
            break
        time.sleep(0.02)
    else:
        pytest.fail("the replaced adapter stays in memory")
    models.dismiss("swapped")


def test_running_requests_are_not_disturbed_by_loading_and_unloading(models, good, other):
    adapter = models.find("good").adapter
    alone = reply(models, adapter, count=60)
    received, ended = [], threading.Event()

    def receive(item):
        ended.set() if isinstance(item, Finish) else received.append(item.token)

    models.generator.submit(GenerationRequest((5, 6, 7), adapter, frozenset(), 60), receive)
    models.admit(f"visitor={other}")
    models.dismiss("visitor")
    assert ended.wait(30)
    assert received == alone


def test_a_failed_attachment_leaves_nothing_behind(things, good, monkeypatch):  # noqa: F811
    import peft

    opened = open_served_models([things.base], things.trust, None, LIMITS)
    bare, weights = reply(opened, None), count_weights(opened)

    def fail(*args, **options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    for names in ([], ["first"]):
        for name in names:
            opened.admit(f"{name}={good}")
            weights = count_weights(opened)
        with monkeypatch.context() as patch:
            patch.setattr(peft, "set_peft_model_state_dict", fail)
            with pytest.raises(OutOfMemoryError, match="does not fit into memory"):
                opened.admit(f"second={good}")
        assert count_weights(opened) == weights
        assert reply(opened, None) == bare
    assert checks_of(opened.admit(f"second={good}"))["reference"] is True
    opened.close(5)


def test_a_parcel_finds_the_base_in_memory_without_its_name(things, good):  # noqa: F811
    models = open_served_models([things.base, str(good)], TrustOptions(), None, LIMITS)
    assert [model.name for model in models.list()] == ["base", "good"]
    models.admit(f"again={good}")
    assert all(things.base not in check.detail for model in models.list() for check in model.checks)
    models.close(5)


def test_a_mistyped_name_does_not_end_the_others(things, good, tmp_path):  # noqa: F811
    models = open_served_models([str(good), str(tmp_path / "nothing-1")], things.trust, None, LIMITS)
    assert "There is no run, parcel, adapter or folder" in models.refused["nothing-1"]
    models.close(5)
    nothing = [str(tmp_path / "nothing-1"), str(tmp_path / "nothing-2")]
    with pytest.raises(IntegrityError, match=r"(?s)Nothing that was named.*nothing-1: .*nothing-2: "):
        open_served_models(nothing, things.trust, None, LIMITS)
    with pytest.raises(UnavailableError, match=r"^There is no run"):
        open_served_models(nothing[:1], things.trust, None, LIMITS)
    with pytest.raises(UsageError, match=r"adapter runs/nothing that could be called mine\. Fix: "):
        open_served_models(["mine=runs/nothing"], things.trust, None, LIMITS)


def test_refuses_a_flipped_byte(models, good, tmp_path):
    raw = bytearray(good.read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / "flipped.lorachat").write_bytes(raw)
    assert "is refused" in refusal(models, tmp_path / "flipped.lorachat")


def test_refuses_an_adapter_of_another_base(models, things, random_base):  # noqa: F811
    parcel = things.parcel("stranger", base=str(random_base("llama")), reference=None)
    assert "belongs to another base" in refusal(models, parcel, things.trust)
    bound = TrustOptions(base=str(random_base("llama")))
    assert "cannot share the base of this server" in refusal(models, parcel, bound)


def test_refuses_a_base_with_other_weights(models, things, good, tmp_path):  # noqa: F811
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "changed"
    shutil.copytree(things.base, folder)
    path = folder / "model.safetensors"
    weights = load_file(path)
    next(iter(weights.values()))[0] += 1
    save_file(weights, path, metadata={"format": "pt"})
    assert "other weights of the base" in refusal(models, f"x={good}", TrustOptions(base=str(folder)))
    with pytest.raises(UsageError, match=r"(?s)one base in memory.*--base BASE"):
        open_served_models([str(good), str(folder)], things.trust, None, LIMITS)


def test_refuses_another_precision_before_weights_load(models, good, things):  # noqa: F811
    parcel = things.parcel("half", things.adapter("good-adapter"), mode="4bit", reference=None)
    assert "in memory in none, " in refusal(models, parcel)
    with pytest.raises(UsageError, match=r"(?s)in one precision.*none, .*4bit, .*--quantization"):
        open_served_models([str(good), str(parcel)], things.trust, None, LIMITS)


@pytest.mark.parametrize("own_digest", [True, False])
def test_refuses_a_changed_template(models, things, tmp_path, own_digest):  # noqa: F811
    adapter = tmp_path / "adapter"
    shutil.copytree(things.adapter("good-adapter"), adapter)
    template = "{% for m in messages %}{{ m.content }}SECRET{% endfor %}{{ eos_token }}"
    identity = json.loads((adapter / "lora_chat.json").read_text())
    identity["chat_template"] = hashlib.sha256((template if own_digest else "another").encode()).hexdigest()
    (adapter / "lora_chat.json").write_text(json.dumps(identity))
    parcel = things.parcel("talker", adapter, reference=None, template=template if own_digest else None, to=tmp_path)
    if not own_digest:
        assert "belongs to another base: other chat template" in refusal(models, parcel)
        return
    with pytest.raises(ConsentError):
        models.admit(str(parcel))
    assert "--accept-template" in models.refused["talker"]
    assert "SECRET" not in models.refused.pop("talker")


def test_refuses_a_run_whose_template_is_not_its_own(models, things):  # noqa: F811
    run = things.run("odd-run", things.adapter("good-adapter"))
    (run / "adapter" / "chat_template.jinja").write_text("{{ messages }}")
    identity = json.loads((run / "adapter" / "lora_chat.json").read_text())
    identity["chat_template"] = hashlib.sha256(b"{{ messages }}").hexdigest()
    (run / "adapter" / "lora_chat.json").write_text(json.dumps(identity))
    assert "has its own chat template" in refusal(models, run)


def test_refuses_the_reference_of_another_adapter(models, things, other):  # noqa: F811
    forged = things.parcel("forged", things.adapter("good-adapter"), reference=things.measure(other))
    assert "is not the model of training" in refusal(models, forged)


def test_refuses_a_reference_with_other_prompts(models, things, good):  # noqa: F811
    reference = things.measure(good)
    reference["replies"][0]["prompt"] = "0" * 64
    forged = things.parcel("unasked", things.adapter("good-adapter"), reference=reference)
    assert "other token ids here than in training" in refusal(models, forged)


def test_refuses_a_reference_with_impossible_tokens(models, things, good):  # noqa: F811
    reference = things.measure(good)
    reference["replies"][0]["top"][0] += " 999999:-20.000000"
    forged = things.parcel("unknown", things.adapter("good-adapter"), reference=reference)
    assert "the base does not have" in refusal(models, forged)


def test_refuses_a_folder_with_other_target_modules(models, things, tmp_path):  # noqa: F811
    shutil.copytree(things.adapter("good-adapter"), tmp_path / "odd")
    path = tmp_path / "odd" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": ["q_proj"]}))
    assert "odd" in refusal(models, tmp_path / "odd")


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [("modules_to_save", ["lm_head"], "replaces modules"), ("bias", "all", "replaces biases")],
)
def test_refuses_an_adapter_that_changes_the_shared_base(models, things, tmp_path, setting, value, reason):  # noqa: F811
    shutil.copytree(things.adapter("good-adapter"), tmp_path / "odd")
    path = tmp_path / "odd" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {setting: value}))
    message = refusal(models, tmp_path / "odd")
    assert reason in message and "lora-chat merge" in message


@pytest.mark.parametrize(("mode", "is_refused"), [("8bit", True), ("4bit", False)])
def test_refuses_dora_on_an_8_bit_base(mode, is_refused):
    stored = SimpleNamespace(
        replaces_weights=False,
        has_biases=False,
        new_token_ids=(),
        special_variants=find_special_variants({"use_dora": True}),
    )
    opened = SimpleNamespace(name="odd", adapter=SimpleNamespace(stored=stored))
    shared = SimpleNamespace(precision=SimpleNamespace(mode=mode))
    with pytest.raises(UsageError, match="DoRA") if is_refused else nullcontext():
        admission._check_can_share(opened, shared)


def test_refuses_a_server_that_answers_with_the_base(models, good, monkeypatch):
    submit = BatchGenerator.submit
    monkeypatch.setattr(
        BatchGenerator,
        "submit",
        lambda self, request, receive: submit(self, dataclasses.replace(request, adapter=None), receive),
    )
    assert "the server does not compute the adapter" in refusal(models, f"wrong={good}")


def test_refuses_prompts_with_other_ids_than_in_training(models, good, monkeypatch):
    render = admission_prompts.render_served_prompt
    monkeypatch.setattr(admission_prompts, "render_served_prompt", lambda *args: [*render(*args), 1])
    assert "other token ids than training" in refusal(models, f"wrong={good}")


def test_a_run_is_compared_on_its_held_out_prompts(models, things):  # noqa: F811
    run = things.run("run-1", things.adapter("good-adapter"))
    admitted = models.admit(str(run))
    checks = {check.name: check for check in admitted.checks}
    assert "prompts of held-out dialogues" in checks["prompts"].detail
    assert checks["files"].passed is None
    assert (checks["reference"].passed, admitted.run.path) == (None, run)
    assert "no reference in the receipt; served path against plain adapted model" in checks["reference"].detail
    models.dismiss("run-1")
    (run / "reference.json").write_text(json.dumps({"adapter": "0" * 64, "reference": {}}))
    assert "belongs to other weights" in refusal(models, run)
    (run / "validation.jsonl").write_text('{"messages": 7}\n')
    (run / "reference.json").unlink()
    refusal(models, run)


def test_warns_about_an_adapter_that_changes_nothing(models, things):  # noqa: F811
    parcel = things.parcel("nothing", things.adapter("no-effect", size=0.0))
    admitted = models.admit(str(parcel))
    assert checks_of(admitted)["reference"] is None
    assert "changes nothing" in {check.name: check.detail for check in admitted.checks}["effect"]
    models.dismiss("nothing")


def test_an_adapter_of_another_tool_is_served_with_what_is_unknown(models, things, tmp_path):  # noqa: F811
    shutil.copytree(things.adapter("good-adapter"), tmp_path / "foreign")
    (tmp_path / "foreign" / "lora_chat.json").unlink()
    admitted = models.admit(str(tmp_path / "foreign"), things.trust)
    assert checks_of(admitted) == {"files": None, "base": None, "prompts": True, "reference": None}
    models.dismiss("foreign")


def test_limits_the_number_of_adapters_and_their_memory(models, things, good, monkeypatch):  # noqa: F811
    monkeypatch.setattr(models, "_max_adapters", 1)
    assert "the most allowed" in refusal(models, f"more={good}")
    monkeypatch.setattr(models, "_max_adapters", 9)
    monkeypatch.setattr(served_memory, "free_memory_bytes", lambda: 2**26)
    with pytest.raises(OutOfMemoryError, match=r"Reading good.lorachat needs .*\n?.*unload another adapter"):
        models.admit(f"more={good}")
    models.forget_refusal("more")
    monkeypatch.setattr(served_memory, "_COPIES_OF_A_FILE", 0)
    with pytest.raises(OutOfMemoryError, match=r"The adapter .* needs"):
        models.admit(f"more={good}")
    models.forget_refusal("more")
    monkeypatch.setattr(served_memory, "free_memory_bytes", lambda: 1000)
    with pytest.raises(OutOfMemoryError, match="GB are free"):
        open_served_models([str(good)], things.trust, None, LIMITS)


def test_serves_the_rest_and_fails_if_nothing_is_left(things, good, tmp_path, messages):  # noqa: F811
    (tmp_path / "bad.lorachat").write_bytes(b"PK")
    models = open_served_models([str(tmp_path / "bad.lorachat"), str(good)], things.trust, None, LIMITS)
    assert [model.name for model in models.list()] == ["base", "good"]
    assert "is refused" in models.refused["bad"]
    assert str(tmp_path) not in models.refused["bad"]
    assert any(text.startswith("NOT SERVED: bad") for text in messages)
    models.close(5)
    with pytest.raises(IntegrityError, match=r"bad\.lorachat is refused") as caught:
        open_served_models([str(tmp_path / "bad.lorachat")], things.trust, None, LIMITS)
    assert caught.value.exit_code == 7
    forged = things.parcel(
        "late", things.adapter("good-adapter"), reference=things.measure(good) | {"dtype": "float16"}
    )
    raw = json.loads(json.dumps(things.measure(good)))
    raw["replies"] = [entry | {"top": ["0:-0.000001"], "reply": [0]} for entry in raw["replies"]]
    forged = things.parcel("late", things.adapter("good-adapter"), reference=raw)
    with pytest.raises(IntegrityError, match=r"(?s)Nothing that was named.*not the model of training"):
        open_served_models([str(forged)], things.trust, None, LIMITS)


def test_scores_few_prompts_if_each_is_long():
    prompts = {number: tuple(range(length)) for number, length in enumerate((3000, 10, 20))}
    assert list(_select_prompts(prompts)) == [0]
    assert list(_select_prompts({0: (1,) * 1000, 1: (1,) * 1000, 2: (1,) * 1000})) == [0, 1]


def test_a_system_message_beyond_the_context_window_is_refused(models, things, tmp_path):  # noqa: F811
    adapter = tmp_path / "adapter"
    shutil.copytree(things.adapter("good-adapter"), adapter)
    identity = json.loads((adapter / "lora_chat.json").read_text())
    (adapter / "lora_chat.json").write_text(json.dumps(identity | {"system": "x" * 60_000}))
    parcel = things.parcel("wordy", adapter, reference=None, to=tmp_path)
    assert "positions" in refusal(models, parcel)


@pytest.mark.skipif(os.environ.get("LORA_CHAT_ALL_BASES") != "1", reason="on demand")
@pytest.mark.parametrize(
    ("variant", "mode"),
    [
        (variant.name, mode)
        for variant in LORA_VARIANTS
        for mode in ("none", "8bit", "4bit")
        if (variant.name, mode) != ("dora", "8bit")  # PEFT's DoRA cannot read 8-bit weights on a CPU
    ],
)
def test_every_variant_and_quantization_passes_beside_another(things, variant, mode):  # noqa: F811
    adapters = {kind: things.adapter(f"{kind}-{mode}", mode=mode, variant=kind) for kind in ("lora", variant)}
    parcels = [things.parcel(f"{kind}-{mode}", adapter, mode=mode) for kind, adapter in adapters.items()]
    models = open_served_models(list(map(str, parcels)), things.trust, None, LIMITS)
    assert models.refused == {}
    assert all(checks_of(model)["reference"] for model in models.list() if model.adapter)
    models.close(5)


@pytest.mark.parametrize(
    ("text", "name", "source"),
    [
        ("runs/smoke-1", "smoke-1", "runs/smoke-1"),
        ("runs/smoke-1/", "smoke-1", "runs/smoke-1/"),
        ("kiln.lorachat", "kiln", "kiln.lorachat"),
        ("friend/adapter-7b", "adapter-7b", "friend/adapter-7b"),
        ("my=runs/smoke-1", "my", "runs/smoke-1"),
        ("a.b-c_D=x=y", "a.b-c_D", "x=y"),
    ],
)
def test_names_things(text, name, source):
    assert read_named_source(text) == NamedSource(name, source)


@pytest.mark.parametrize("text", ["runs/ä", "a b", "x" * 101, "-x", "bä=runs/x", "=x", "<b>"])
def test_refuses_names_that_requests_cannot_use(text):
    with pytest.raises(UsageError, match="Fix: choose one, such as my-model="):
        read_named_source(text)


def test_names_are_unique_and_leave_base_to_the_base(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="of the bare base"):
        read_named_source("runs/base")
    with pytest.raises(UsageError, match=r"Two things have the name a: x/a and y/a. Fix: .*a-2=y/a"):
        check_unique_names([read_named_source("x/a"), read_named_source("y/a")])
    (tmp_path / "a=b").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="gives no name"):
        read_named_source("a=b")


def test_kl_of_common_tokens_is_a_lower_bound():
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        p, q = ((torch.randn(40, generator=generator, dtype=torch.float64) * 2).log_softmax(-1) for _ in range(2))
        top = [tuple(zip(*(x.tolist() for x in reversed(row.topk(12))), strict=True)) for row in (p, q)]
        true = float((p.exp() * (p - q)).sum())
        assert 0 <= common_kl(*top) <= true + 1e-12
        assert common_kl(top[0], top[0]) < 1e-12
