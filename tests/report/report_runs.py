"""Run folders with every file that the report reads, written by hand."""

import json
import math

SCORES = {
    "exact_match": [[0, 1], [1, 0], [1, 1], [0, 0]],
    "chrf": [[20.5, 61.0], [40.0, 31.5], [90.0, 90.0], [3.0, 9.5]],
}


def figures_of(base, adapted, items=120, word="better", needed=None):
    spread = abs(adapted - base) / 3 + 0.02
    return {
        "base": base,
        "adapted": adapted,
        "items": items,
        "base_interval": [base - spread, base + spread],
        "adapted_interval": [adapted - spread, adapted + spread],
        "difference": adapted - base,
        "difference_interval": [adapted - base - spread, adapted - base + spread],
        "p_value": 0.0004 if word == "better" else 0.31,
        "verdict": word,
        "needed_items": needed,
    }


def make_comparison(items=12):
    figures = {
        "validation_loss": figures_of(3.58, 1.83),
        "perplexity": figures_of(35.9, 6.23),
        "exact_match": figures_of(0.25, 0.41, word="no difference shown", needed=340),
        "chrf": figures_of(38.2, 48.1),
        "facts": {**figures_of(0.0, 0.5, items=2), "questions": 2},
    }
    rows = []
    for i in range(items):
        rows.append(
            {
                "prompt": f"How do I brew coffee number {i}?",
                "reference": f"Use {i + 10} grams of coffee and hot water.",
                "base": "I am a helpful assistant. " * (40 if i == 1 else 2),
                "adapted": f"Use {i + 10} grams of coffee and wait." if i % 2 else "请用热水。\nمرحبا بالعالم",
                "scores": {name: pairs[i % 4] for name, pairs in SCORES.items()},
            }
        )
    return {
        "validation_loss": {"base": 3.58, "adapted": 1.83},
        "perplexity": {"base": 35.9, "adapted": 6.23},
        "figures": figures,
        "verdict": {
            "word": "better",
            "metric": "exact_match",
            "text": "Better at the task: exact match 25 % -> 41 %; 4 points worse in general (1 to 7).",
            "needed_items": None,
        },
        "set": "test",
        "validation_dialogues": 120,
        "items": rows,
        "samples": [],
        "questions": 2,
        "answers": [
            {
                "question": "When do you open?",
                "base": "At 9.",
                "adapted": "At 10:20.",
                "base_right": False,
                "adapted_right": True,
            },
            {
                "question": "When do you close?",
                "base": "At 9.",
                "adapted": "At 8.",
                "base_right": False,
                "adapted_right": False,
            },
        ],
        "confusion": {
            "labels": ["refund", "delivery", "其他"],
            "base": [[4, 3, 3], [2, 5, 3], [1, 2, 7]],
            "adapted": [[9, 1, 0], [1, 8, 1], [0, 2, 8]],
        },
        "general": {
            "text": "4 points worse in general (1 to 7).",
            "kinds": {
                "facts": {"items": 40, "base": 0.5, "adapted": 0.45},
                "arithmetic": {"items": 30, "base": 0.3, "adapted": 0.27},
            },
            "same_replies": 0.62,
        },
        "recital": {"text": "2 of 100 training replies are recited.", "base": 0.0, "adapted": 0.02, "items": 100},
        "overlap": {"exact": 1, "near": 2, "dialogues": 120},
    }


def write_run(folder, comparison=None, steps=200, name="full-1", learning_rate=0.001, broken=()):
    """Write a run folder of the newest kind; `broken` names files that are damaged."""
    run = folder / name
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("base: {name: tiny-random}\ntraining: {epochs: 2}\n", encoding="utf-8")
    plan = {
        "base": {"name": "tiny-random"},
        "precision": {"device": "cpu", "mode": "none", "dtype": "bfloat16"},
        "adapter": {"rank": 8, "variant": "lora"},
        "audit": {"secret": "refuse", "personal_data": "redact"},
        "training": {"learning_rate": learning_rate, "epochs": 2.0},
        "output": {"name": name},
    }
    ledger = {"lines": 600, "accepted": 590, "refused": 10, "replies": 700, "tokens": 80000, "supervised_tokens": 30000}
    ledger |= {"longest": 512, "cut": 3, "dropped": 1, "dialogues": 590, "rows": 590}
    ledger["roles"] = {"user": [40000, 0], "assistant": [36000, 30000], "system": [4000, 0]}
    files = {
        "plan.json": plan,
        "versions.json": {"python": "3.11.7", "torch": "2.13.0", "lora-chat": "0.1.0"},
        "data.json": {
            "sources": [{"name": "data/dialogues.jsonl", "weight": 1.0, **ledger}],
            "total": ledger,
            "duplicates": 4,
            "train_dialogues": 470,
            "train_rows": 470,
            "validation_dialogues": 120,
            "histogram": [[i * 40, i * 40 + 39, round(90 * math.exp(-((i - 4) ** 2) / 6))] for i in range(12)],
            "packing": {"padded": 0.67, "micro_batch_size": 4, "packed": 0.98, "packed_to": 512},
        },
        "audit.json": {
            "dialogues": 590,
            "counts": {"personal_data": 12, "near_duplicate": 3},
            "findings": [],
            "refused": [],
            "redacted": ["personal_data"],
            "dropped": {"near_duplicate": 3},
        },
        "forecast.json": {
            "device": {"device": "cpu", "name": "AMD EPYC"},
            "phases": [{"name": "train", "total": 762321445, "weights": 279552, "adapter": 32768}],
            "notes": ["The time is from a benchmark of this machine."],
        },
        "result.json": {
            "run": str(run),
            "seconds": {"load": 1.0, "train": 95.5, "total": 131.0},
            "steps": steps,
            "planned_steps": steps,
            "peak_memory_bytes": 1_673_882_112,
            "adapter_bytes": 2_225_390,
            "trainable_parameters": 4_884_480,
            "kept_step": steps // 2,
            "kept_reason": f"Step {steps // 2} was kept, because its validation loss was lowest.",
            "forecast": {
                "device": "AMD EPYC",
                "planned": {"peak_bytes": 1_762_321_445, "seconds": 120.0, "train_seconds": 90.0},
                "measured": {"peak_bytes": 1_673_882_112, "seconds": 131.0, "train_seconds": 95.5},
            },
        },
        "comparison.json": comparison or make_comparison(),
        "generations.json": {
            "child_data": {"dialogues": 3, "validation_loss": {"base": 3.2, "parent": 2.5, "child": 1.9}},
            "parent_data": None,
        },
    }
    for file, value in files.items():
        (run / file).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    rows = []
    for step in range(1, steps + 1):
        share = step / steps
        noise = math.sin(step * 12.9898) * 43758.5453 % 1 - 0.5
        loss = 1.6 + 2.0 * math.exp(-4 * share) + 0.35 * noise
        rate = learning_rate * min(1, share * 20) * (0.5 + 0.5 * math.cos(math.pi * share))
        rows.append({"step": step, "epoch": 2 * share, "loss": loss, "learning_rate": rate, "gradient_norm": 1.0})
        if step % max(1, steps // 4) == 0:
            rows.append({"step": step, "epoch": 2 * share, "validation_loss": 1.7 + 1.2 * (share - 0.6) ** 2})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for file in broken:
        (run / file).write_text("{ not JSON")
    return run
