"""Compute outputs of a merged folder in another Python with its own Transformers, which may be an earlier version.

It imports nothing of lora_chat and uses no name that Transformers 4 lacks. The argument is a folder: the worker reads
`request.json` and writes its answers there. Without `model` in the request, it only reports its versions.
"""

import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file


def load_model(request: dict[str, Any]) -> Any:
    """Load the folder with the usual calls of Transformers."""
    options = {"local_files_only": True, "trust_remote_code": False}
    config = transformers.AutoConfig.from_pretrained(request["model"], **options)
    auto_class = transformers.AutoModelForCausalLM
    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:  # a multimodal model
        auto_class = transformers.AutoModelForImageTextToText
        if type(config) not in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:  # a model of sound
            auto_class = getattr(transformers, "AutoModelForMultimodalLM", auto_class)
    dtype_name = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    options |= {"use_safetensors": True, "output_loading_info": True, dtype_name: getattr(torch, request["dtype"])}
    model, loading_info = auto_class.from_pretrained(request["model"], **options)
    for key in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if loading_info[key]:
            raise RuntimeError(f"{len(loading_info[key])} {key.replace('_', ' ')}, such as {min(loading_info[key])}")
    return model.eval()


def compute_logits(model: Any, ids: list[int], positions: list[int]) -> torch.Tensor:
    """Compute the (positions, vocabulary) logits."""
    # All logits, because the argument that selects positions has different names in the versions.
    with torch.inference_mode():
        output = model(input_ids=torch.tensor([ids]), use_cache=False)
    logits: torch.Tensor = output.logits[0, positions]
    return logits.float().contiguous()


def generate_reply(model: Any, prompt: list[int], request: dict[str, Any]) -> list[int]:
    """Generate a greedy reply to a prompt, without the stop token."""
    stop_ids = request["stop_ids"]
    settings = transformers.GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=request["most"], eos_token_id=stop_ids, pad_token_id=request["pad"]
    )
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        output_ids = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    reply_ids: list[int] = output_ids[0, len(prompt) :].tolist()
    end = next((i for i, token in enumerate(reply_ids) if token in stop_ids), len(reply_ids))
    return reply_ids[:end]


def render_prompt(tokenizer: Any, sample: dict[str, Any]) -> list[int]:
    """Return the ids of a prompt under the chat template of the folder."""
    options = {"tools": sample["tools"]} if sample["tools"] else {}
    text = tokenizer.apply_chat_template(sample["messages"], add_generation_prompt=True, tokenize=False, **options)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def main(folder: Path) -> None:
    """Run the request; the answer file is written last, so that it marks success."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    answer: dict[str, Any] = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if "model" in request:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            request["model"], local_files_only=True, trust_remote_code=False
        )
        answer["text_ids"] = tokenizer(request["text"])["input_ids"]
        answer["prompts"] = [
            render_prompt(tokenizer, sample) if sample["messages"] else None for sample in request["probes"]
        ]
        model = load_model(request)
        answer["ends"] = model.generation_config.eos_token_id
        # `generate` takes fields that are not set from the model, such as the base's `repetition_penalty`.
        model.generation_config = transformers.GenerationConfig()
        for number, sample in enumerate(request["probes"]):
            logits = compute_logits(model, sample["ids"], sample["places"])
            save_file({"logits": logits}, folder / f"logits-{number}.safetensors")
        answer["replies"] = [generate_reply(model, sample["prompt"], request) for sample in request["probes"]]
    (folder / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    sys.modules["lora_chat"] = None  # type: ignore[assignment]  # the folder must be readable without it
    main(Path(sys.argv[1]))
