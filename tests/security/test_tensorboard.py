"""TensorBoard gets only the tags of training; no name of a file, source or run becomes a tag."""

import json
import re

import pytest

from lora_chat.cli import main

EVIL = "x..%2f..%2f<script>alert(1)</script> a|b\u202e"


@pytest.mark.slow
def test_names_of_data_become_neither_tags_nor_paths(cache_home, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    data = tmp_path / "data"
    data.mkdir()
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"question {i}"},
                {"role": "assistant", "content": f"answer {i} {EVIL}"},
            ]
        }
        for i in range(12)
    ]
    (data / f"{EVIL.replace('/', '_')}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"base: {{name: tiny-random}}\nquantization: {{mode: none}}\ndata: {{train: '{data}'}}\n"
        "audit: {leak: ignore, near_leak: ignore}\ntraining: {max_steps: 2, effective_batch_size: 2}\n"
        f"evaluation: {{samples: 0}}\noutput: {{directory: '{tmp_path}/runs', name: t, tensorboard: true}}\n"
    )
    assert main(["sft", str(recipe)]) == 0
    folders = {path.parent for path in (tmp_path / "runs").rglob("events.out*")}
    assert folders == {tmp_path / "runs" / "t-1" / "tensorboard"}
    events = EventAccumulator(str(folders.pop()))
    events.Reload()
    found = events.Tags()
    assert found["scalars"]
    named = [*found["scalars"], *found["tensors"], *found["images"], *found["histograms"]]
    assert all(
        re.fullmatch(r"[a-z_]+/[a-zA-Z_]+(/text_summary)?|args/text_summary|model_config/text_summary", t)
        for t in named
    ), "\n".join(named)
