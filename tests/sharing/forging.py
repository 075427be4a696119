"""Build a parcel of a few kilobytes by hand, and forge changed ones."""

import hashlib
import json
import math

import torch
from safetensors.torch import save

from lora_chat.sharing.build import PLACEHOLDER_DIGEST, build_members
from lora_chat.sharing.container import CARD, CONFIG, RECEIPT, WEIGHTS, pack_members
from lora_chat.sharing.receipt import Receipt

LAYER = "base_model.model.model.layers.0.self_attn.q_proj."


def make_weights(rank=2, inner=8, outer=6):
    generator = torch.Generator().manual_seed(3)
    return {
        f"{LAYER}lora_A.weight": torch.randn(rank, inner, generator=generator),
        f"{LAYER}lora_B.weight": torch.randn(outer, rank, generator=generator),
    }


def facts(**changed):
    digest = "ab" * 32
    proof = dict.fromkeys(("mean_kl", "largest_kl", "largest_logit_difference", "same_top_token", "control_kl"), 0.0)
    proof |= dict.fromkeys(("loss_adapted", "loss_delivered", "equal_replies"), 0.5)
    proof |= dict.fromkeys(("dialogues", "tokens", "replies", "reply_tokens"), 3)
    fields = {
        "format": "lora_chat parcel",
        "version": 2,
        "name": "kiln-1",
        "license": None,
        "base": {
            "base": "friend/tiny",
            "revision": "5" * 40,
            "weights": digest,
            "tokenizer": digest,
            "chat_template": digest,
            "system": "You help at a kiln.",
            "version": 2,
            "files": digest,
            "config": {"hidden_act": "silu", "rms_norm_eps": 1e-06, "rope_parameters": {"rope_theta": 10000.0}},
            "generation": None,
            "tokenizer_parts": {"backend": digest, "class": "TokenizersBackend", "normalizer": None},
            "stops": [2],
        },
        "precision": {"mode": "4bit", "double_quantization": True, "dtype": "bfloat16"},
        "architecture": "llama",
        "adapter": {"rank": 2, "alpha": 4.0, "dropout": 0.0, "target_modules": ["q_proj"], "variant": "lora"},
        "parameters": 28,
        "recipe": {"data": {"train": "dialogues.jsonl"}},
        "data": {
            "rows": digest,
            "held_out": None,
            "train_dialogues": 9,
            "train_rows": 9,
            "validation_dialogues": 1,
            "duplicates": 0,
            "sources": [{"name": "dialogues.jsonl", "weight": 1.0, "formats": ["messages"], "counts": {"lines": 10}}],
            "audit": {"secret": 0},
        },
        "seed": 0,
        "versions": {"lora-chat": "0.1.0"},
        "training": {"steps": 3, "planned_steps": 3, "supervised_tokens": 90, "seconds": 1.5},
        "comparison": {
            "validation_loss": {"base": 3.5, "adapted": 1.25},
            "validation_dialogues": 1,
            "facts": {"base": 0.0, "adapted": 0.75, "questions": 4},
        },
        "proof": {"what": "PEFT adapter", "reader": "PEFT 0", "failures": [], "accepted": False, **proof},
        "chat_template": None,
        "signer": None,
        "members": {},
        "digest": PLACEHOLDER_DIGEST,
    }
    return fields | changed


def figure(base, adapted, items, verdict="better", p_value=0.001, **changed):
    """Return a figure of version 4."""
    values = {"base": base, "adapted": adapted, "difference": adapted - base}
    intervals = {f"{name}_interval": [value - 0.1, value + 0.1] for name, value in values.items()}
    return {
        "base": base,
        "adapted": adapted,
        "items": items,
        **intervals,
        "p_value": p_value,
        "verdict": verdict,
        "needed_items": None,
        "constant": None,
        "constant_p_value": None,
    } | changed


def facts_of_version_4(**changed):
    """Return a receipt with a verdict, and everything that a comparison can have."""
    digest = "cd" * 32
    evaluation = {
        "set": "validation",
        "digest": digest,
        "dialogues": 40,
        "used_twice": True,
        "figures": {
            "validation_loss": figure(3.5, 1.25, 40),
            "perplexity": figure(math.exp(3.5), math.exp(1.25), 40),
            "facts": figure(0.0, 0.75, 4, "no difference shown", 0.25, needed_items=9),
            "exact_match": figure(0.1, 0.75, 40, constant=0.25, constant_p_value=0.001),
        },
        "verdict": {"word": "better", "metric": "exact_match", "needed_items": None},
        "overlap": {
            "items": 40,
            "exact": 0,
            "near": 2,
            "same_question": 1,
            "same_reply": 3,
            "questions": 4,
            "seen_questions": 0,
        },
        "control": {"replies": 40, "own": 1.25, "other": 2.5, "difference_interval": [1.0, 1.5], "p_value": 0.001},
        "general": {
            "items": 40,
            "available": 147,
            "shipped": True,
            "set_digest": digest,
            "base_right": 20,
            "adapted_right": 10,
            "difference": -25.0,
            "difference_interval": [-38.0, -10.0],
            "p_value": 0.002,
            "word": "worse",
            "equal_replies": 0.25,
            "equal_leading_tokens": 0.5,
        },
        "recital": {
            "replies": 60,
            "base": 1,
            "adapted": 12,
            "only_adapted": 11,
            "given_tokens": 8,
            "continued_tokens": 32,
            "values": 3,
            "sensitive": {"email_address": 1},
        },
        "kept_step": {"step": 2, "last_step": 3},
    }
    fields = facts(version=4, lineage=None, generations=None, evaluation=evaluation)
    fields["data"] |= {"train_dialogues": 60, "train_rows": 60, "validation_dialogues": 40}
    fields["data"]["sources"][0]["counts"] = {"lines": 100}
    return fields | changed


def reference(**changed):
    """Return outputs of an adapted model, as a receipt of version 5 has them."""
    top = "7:-0.100000 9:-2.500000 3:-6.000000"
    replies = [{"question": n, "prompt": "ef" * 32, "reply": [7, 9], "top": [top, top]} for n in (0, 2)]
    return {"mode": "4bit", "dtype": "bfloat16", "device": "cpu", "replies": replies} | changed


def facts_of_version_5(**changed):
    """Return a receipt with a verdict and a reference."""
    return facts_of_version_4(version=5, reference=reference()) | changed


def hub_metadata(**changed):
    """Return the metadata for the hub, as a receipt of version 6 has it."""
    base = {"base_model": "friend/tiny", "quantization": None}
    return {**base, "datasets": ["friend/kilns"], "held_out": "friend/kilns", "languages": ["en", "de"]} | changed


def facts_of_version_6(**changed):
    """Return a receipt with everything that version 5 has, and with metadata for the hub."""
    return facts_of_version_5(version=6, hub=hub_metadata()) | changed


def make_members(weights=None, key=None, **changed):
    raw = save(weights or make_weights(), metadata={"format": "pt"})
    return build_members(Receipt.model_validate_json(json.dumps(facts(**changed))), raw, key)


def raw_of(members):
    return b"".join(bytes(piece) for piece in pack_members(members))


def canonical(value):
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def forge(members, change=lambda receipt: None, **others):
    """Return changed members with a receipt whose digests fit them, as a forger would make them."""
    forged = {**members, **{name: body for name, body in others.items() if body is not None}}
    receipt = json.loads(members[RECEIPT])
    for name in (CONFIG, WEIGHTS, CARD):
        receipt["members"][name] = {"size": len(forged[name]), "sha256": hashlib.sha256(forged[name]).hexdigest()}
    change(receipt)
    receipt.pop("digest", None)
    receipt["digest"] = hashlib.sha256(canonical(receipt)).hexdigest()
    return {**forged, RECEIPT: canonical(receipt)}
