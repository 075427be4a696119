import pytest

from lora_chat.errors import UnavailableError, UsageError
from lora_chat.pipeline.named_base import find_named_base


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "smoke-1"
    run.mkdir(parents=True)
    for name in ("plan.json", "recipe.yaml"):
        (run / name).touch()
    return run


def test_a_missing_run_is_not_searched_on_the_hub(runs, messages):
    with pytest.raises(UsageError, match=r"There is no run runs/smoke-2\. Runs here: runs/smoke-1\."):
        find_named_base("runs/smoke-2")
    assert not any("ownload" in message for message in messages)


def test_the_fix_for_an_unknown_base_names_no_option_of_sft(cache_home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnavailableError) as caught:
        find_named_base("nothing-here")
    assert "There is no run, parcel, adapter or folder nothing-here." in str(caught.value)
    assert "--set" not in str(caught.value)
