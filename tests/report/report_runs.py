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
        "metrics": "Metrics of 12 replies: exact match and chrF, because references are short answers.",
        "used_twice": False,
        "control": {"replies": 40, "own": 1.8, "other": 1.81, "p_value": 0.4, "depends_on_prompt": False},
        "general": {
            "text": "4 points worse in general (1 to 7 points, 40 items)",
            "items": 40,
            "available": 150,
            "set_name": "shipped",
            "base_right": 20,
            "adapted_right": 18,
            "difference": -5.0,
            "difference_interval": [-9.0, -1.0],
            "p_value": 0.04,
            "word": "worse",
            "equal_replies": 0.62,
            "equal_leading_tokens": 0.71,
            "kinds": [
                {"name": "facts", "items": 25, "base_right": 14, "adapted_right": 13},
                {"name": "arithmetic", "items": 15, "base_right": 6, "adapted_right": 5},
            ],
            "languages": [{"name": "zh", "items": 20, "base_right": 9, "adapted_right": 8}],
            "notes": ["Replies are at most 64 tokens long."],
            "answers": [
                {
                    "id": "f1",
                    "language": "en",
                    "kind": "facts",
                    "prompt": "What is the capital of France?",
                    "base": "Paris.",
                    "adapted": "Coffee.",
                    "base_right": True,
                    "adapted_right": False,
                }
            ],
        },
        "recital": {
            "replies": 100,
            "base": 0,
            "adapted": 2,
            "only_adapted": 2,
            "given_tokens": 16,
            "continued_tokens": 32,
            "values": 3,
            "findings": [{"kind": "personal_data", "path": "data/dialogues.jsonl", "line": 41}],
            "base_interval": [0.0, 0.04],
            "adapted_interval": [0.006, 0.07],
        },
        "overlap": {
            "items": 120,
            "exact": 1,
            "near": 2,
            "same_question": 0,
            "same_reply": 0,
            "questions": 2,
            "seen_questions": 0,
            "examples": [{"location": "data/test.jsonl:7", "kind": "exact"}],
            "withheld": False,
            "withheld_questions": False,
            "unseen": figures_of(3.61, 1.91, items=117),
        },
    }


def make_labelled_comparison():
    """Return a comparison whose references are labels."""
    comparison = make_comparison(0)
    labels = ["refund", "delivery", "其他"]
    for i in range(30):
        base, adapted = labels[(i + i // 7) % 3], f"It is {labels[(i + (i % 11 == 0)) % 3]}." if i % 13 else "I see."
        row = {"prompt": f"ticket {i}", "reference": labels[i % 3], "base": base, "adapted": adapted}
        comparison["items"].append({**row, "scores": {"accuracy": [float(base == labels[i % 3]), 1.0]}})
    comparison["figures"]["accuracy"] = figures_of(0.6, 0.9, items=30)
    sides = {"base": (0.5, 0.6, 0.4), "adapted": (0.9, 0.875, 0.8)}
    comparison["confusion"] = {
        "labels": labels,
        "columns": [*labels, "(other)"],
        "base": [[4, 3, 3, 0], [2, 5, 3, 0], [1, 2, 7, 0]],
        "adapted": [[9, 1, 0, 0], [1, 8, 1, 0], [0, 1, 8, 1]],
        "classes": {side: dict.fromkeys(("precision", "recall", "f1"), values) for side, values in sides.items()},
    }
    return comparison


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
            "kept_because": "its validation loss was lowest",
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
