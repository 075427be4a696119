"""Build a parcel of a few kilobytes by hand, and forge changed ones."""

import hashlib
import json

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
