"""Commands that use an adapter in lora_chat and in other programs, for its model card."""

from collections.abc import Sequence

from lora_chat.models.architectures import find_architecture
from lora_chat.sharing.compatibility import Portability, smallest_vllm_rank
from lora_chat.sharing.markdown import format_code_block
from lora_chat.sharing.receipt import Receipt


def format_usage(receipt: Receipt, portability: Sequence[Portability]) -> list[str]:
    """Return the commands for lora_chat and four other programs, as lines of Markdown.

    The text is part of the card, which belongs to the version of the receipt.
    """
    name, base = receipt.name, receipt.base.base
    if "/" not in base:  # no hub id: a folder, or a base that comes with lora_chat
        base = "FOLDER_OF_THE_BASE"
    merged = {p.program for p in portability if p.answer == "merged"}
    quantized = {
        "4bit": "BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4', bnb_4bit_compute_dtype=torch."
        f"{receipt.precision.dtype}, bnb_4bit_use_double_quant={receipt.precision.double_quantization})",
        "8bit": "BitsAndBytesConfig(load_in_8bit=True)",
        "none": "None",
    }[receipt.precision.mode]
    config_class, arguments = "BitsAndBytesConfig", [f"    quantization_config={quantized})"]
    if stored := receipt.precision.stored:  # its config.json says how it is read
        config_class = {"fp8": "FineGrainedFP8Config", "mxfp4": "Mxfp4Config"}.get(stored.method, config_class)
        is_dequantized = stored.mode == "none"
        arguments = [f"    quantization_config={config_class}(dequantize=True))" if is_dequantized else "    )"]
    auto_class = find_architecture(str((receipt.base.config or {}).get("model_type"))).auto_class
    python = [
        "import torch",
        "from peft import PeftModel",
        f"from transformers import {auto_class}, {config_class}",
        f"base = {auto_class}.from_pretrained('{base}', dtype=torch.{receipt.precision.dtype},",
        *arguments,
        *(
            [f"base.resize_token_embeddings(max({rows}, base.get_input_embeddings().weight.shape[0]))"]
            if (rows := max((receipt.base.new_tokens or {}).values(), default=-1) + 1)
            else []
        ),
        "model = PeftModel.from_pretrained(base, 'FOLDER_OR_HUB_ID_OF_THIS_ADAPTER')",
    ]
    llama = (
        [
            f"lora-chat export {name}.lorachat --to gguf --type f16 --out {name}-gguf",
            f"llama-cli -m {name}-gguf/{name}-f16.gguf",
        ]
        if "llama.cpp" in merged
        else [
            f"lora-chat export {name}.lorachat --to gguf-adapter --out {name}-lora",
            f"llama-cli -m BASE.gguf --lora {name}-lora/adapter.gguf",
        ]
    )
    vllm = (
        [f"lora-chat merge {name}.lorachat --to {name}-merged", f"vllm serve {name}-merged"]
        if "vLLM" in merged
        else [
            f"vllm serve {base} --enable-lora --max-lora-rank {smallest_vllm_rank(receipt.adapter.rank)} \\",
            f"    --lora-modules {name}=FOLDER_OF_THIS_ADAPTER",
        ]
    )
    ollama = [
        f"lora-chat export {name}.lorachat --to ollama --out {name}-ollama",
        f"ollama create {name} -f {name}-ollama/Modelfile",
    ]
    parts = [
        ("lora_chat", [f"lora-chat verify {name}.lorachat", f"lora-chat chat {name}.lorachat"]),
        ("PEFT", python),
        ("llama.cpp", llama),
        ("Ollama", ollama),
        ("vLLM", vllm),
    ]
    lines: list[str] = []
    for program, commands in parts:
        lines += [f"{program}:", "", *format_code_block("\n".join(commands)), ""]
    return lines[:-1]
