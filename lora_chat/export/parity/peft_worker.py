"""Compute outputs of an adapter with PEFT in a separate process that imports nothing of lora_chat.

It shows the outputs that a user without lora_chat gets. The argument is a folder: the worker reads `request.json` and
writes its answers there.
"""

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import save_file

OUT_OF_MEMORY_EXIT_CODE = 5
"""Exit code if the GPU is too small, as of lora_chat."""


def load_adapted_model(request: dict[str, Any]) -> peft.PeftModel:
    """Load base and adapter with the usual calls of Transformers and PEFT."""
    dtype = getattr(torch, request["dtype"])
    quantization = {
        "4bit": {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": request["double_quantization"],
            "bnb_4bit_compute_dtype": dtype,
        },
        "8bit": {"load_in_8bit": True},
        "none": None,
    }[request["mode"]]
    if quantization and request["unquantized"]:
        quantization["llm_int8_skip_modules"] = request["unquantized"]
    settings: dict[str, Any] = (
        {"quantization_config": transformers.BitsAndBytesConfig(**quantization)} if quantization else {}
    )
    if request.get("stored"):  # the files are quantized already
        dequantized = {"fp8": transformers.FineGrainedFP8Config, "mxfp4": transformers.Mxfp4Config}
        make = dequantized.get(request["stored"])
        settings = {"quantization_config": make(dequantize=True)} if make else {}
    base, loading_info = getattr(transformers, request["auto_class"]).from_pretrained(
        request["base"],
        dtype=dtype,
        device_map={"": request["device"]},
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        **settings,
    )
    if loading_info["missing_keys"] or loading_info["mismatched_keys"]:  # Transformers makes them random
        raise RuntimeError(f"the base lacks weights, such as {min(loading_info['missing_keys'], default='')}")
    if request["rows"] and request["rows"] > base.get_input_embeddings().weight.shape[0]:
        base.resize_token_embeddings(request["rows"], mean_resizing=False)  # the adapter has the values of new rows
    if request.get("stored") == "bitsandbytes":  # Transformers leaves the other weights in the dtype of the files
        for weight in base.parameters():
            weight.data = weight.data.to(dtype) if weight.is_floating_point() else weight.data
    # Without a device, PEFT reads the adapter onto a GPU even if the base is on the CPU.
    return peft.PeftModel.from_pretrained(
        base, request["adapter"], local_files_only=True, torch_device=request["device"]
    ).eval()


def generate_reply(
    model: peft.PeftModel, prompt: list[int], stop_ids: list[int], max_new_tokens: int, pad: int
) -> list[int]:
    """Generate a greedy reply to a prompt, without the stop token."""
    settings = transformers.GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=max_new_tokens, eos_token_id=stop_ids, pad_token_id=pad
    )
    ids = torch.tensor([prompt], device=model.device)
    # `generate` takes fields that are not set from the model, such as the base's `repetition_penalty`.
    model.generation_config = model.get_base_model().generation_config = transformers.GenerationConfig()
    with torch.inference_mode():
        output_ids = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    reply_ids: list[int] = output_ids[0, len(prompt) :].tolist()
    end = next((i for i, token in enumerate(reply_ids) if token in stop_ids), len(reply_ids))
    return reply_ids[:end]


def main(folder: Path) -> None:
    """Run the request; the answer file is written last, so that it marks success."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    model = load_adapted_model(request)
    replies = []
    for number, sample in enumerate(request["probes"]):
        places = torch.tensor(sample["places"], device=model.device)
        selects = "logits_to_keep" in inspect.signature(model.get_base_model().forward).parameters
        with torch.inference_mode():
            output = model(
                input_ids=torch.tensor([sample["ids"]], device=model.device),
                use_cache=False,
                **({"logits_to_keep": places} if selects else {}),
            )
        logits = output.logits[0] if len(output.logits[0]) == len(places) else output.logits[0, places]
        save_file({"logits": logits.float().cpu()}, folder / f"logits-{number}.safetensors")
        replies.append(generate_reply(model, sample["prompt"], request["stop_ids"], request["most"], request["pad"]))
    if "lora_chat" in sys.modules:
        raise RuntimeError("lora_chat was imported in the process that checks PEFT without it")
    (folder / "answer.json").write_text(json.dumps({"replies": replies, "peft": peft.__version__}), encoding="utf-8")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except Exception as error:
        # Transformers reports an out-of-memory error during quantization without its cause, but PyTorch counts it.
        num_ooms = torch.cuda.memory_stats().get("num_ooms", 0) if torch.cuda.is_available() else 0
        if not (num_ooms or isinstance(error, torch.OutOfMemoryError)):
            raise
        sys.exit(OUT_OF_MEMORY_EXIT_CODE)
