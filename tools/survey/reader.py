"""What a reader with only Transformers and PEFT makes of a run's adapter and of a merged folder."""

import re
from pathlib import Path
from typing import Any

from survey.small_bases import find_class

TEXT = "Which day comes after Monday? Tuesday. Name a fruit that is green. A pear. The cat sat on the mat."
TOWERS = re.compile(
    r"(?<![a-z])(vision|visual|audio|image|speech|video|codec|encoder)(?![a-z_])|projector|(?<!modality_)router"
)


def check_results(base: Path, adapter: Path, merged: Path) -> dict[str, object]:
    """Compare base, adapter and merged model on one text, in fp32.

    Returns mean KL divergences in nats per token and a list of problems.
    """
    import torch
    from peft import PeftModel
    from safetensors import safe_open
    from transformers import AutoConfig, AutoTokenizer

    ids = torch.tensor([AutoTokenizer.from_pretrained(base)(TEXT).input_ids])
    cut = ids.shape[1] // 2

    def logits(model: Any, ids: Any) -> Any:
        with torch.no_grad():
            return torch.log_softmax(model(input_ids=ids, use_cache=False).logits.float(), -1)[0]

    def divergence(one: Any, other: Any) -> float:
        return float((one.exp() * (one - other)).sum(-1).mean())

    plain = find_class(AutoConfig.from_pretrained(base)).from_pretrained(base, dtype=torch.float32).eval()
    of_base = logits(plain, ids)
    adapted_model = PeftModel.from_pretrained(plain, adapter).eval()
    adapted = logits(adapted_model, ids)
    first_half = logits(adapted_model, ids[:, :cut])
    reopened = find_class(AutoConfig.from_pretrained(merged)).from_pretrained(merged, dtype=torch.float32)
    of_merged = logits(reopened.eval(), ids)
    effect, merging = divergence(adapted, of_base), divergence(adapted, of_merged)
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
        still = [name for name in names if "lora_B" in name and not file.get_tensor(name).any()]
    look_ahead = float((adapted[:cut] - first_half).abs().max())
    problems = []
    # The model's code never reads these layers, or only chooses with them.
    notes = [f"{len(still)} of {len(names)} LoRA tensors get no gradient ({still[0]})."] if still else []
    if look_ahead > 0.01:
        problems.append(f"not causal: later tokens change earlier logits by {look_ahead:.3f}")
    if float((adapted - of_base).abs().max()) < 1e-6:
        problems.append("the adapter changes nothing in plain PEFT")
    if merging > max(0.02 * effect, 2e-3):
        problems.append(f"merged model is {merging:.2g} from the adapter, whose effect is {effect:.2g}")
    if towers := [name for name in names if TOWERS.search(name)]:
        problems.append(f"LoRA outside the text model: {towers[0]}")
    return {
        "effect": effect,
        "merging": merging,
        "look_ahead": look_ahead,
        "tensors": len(names),
        "problems": problems,
        "notes": notes,
    }
