"""Answer the questions of a run with its GGUFs in llama.cpp: `python benchmarks/gguf_questions.py RUN [TYPE ...]`.

The same prompts go to the adapted model and to llama.cpp; a reply is right if it contains an accepted answer. The
exit code is 1 if a GGUF of 16 or 8 bits has more than 3 % fewer right answers.
"""

import argparse
import tempfile
from pathlib import Path

from lora_chat.config.limits import PARITY_MAX_NEW_TOKENS
from lora_chat.data.encoding.chat_template import render_ids
from lora_chat.export.exporter import ExportJob, export_and_check
from lora_chat.export.gguf import GgufExporter
from lora_chat.export.parity.llama_cpp_runner import LlamaCppRunner
from lora_chat.export.parity.samples import make_parity_sample, select_parity_samples
from lora_chat.inference.generation import generate_ids
from lora_chat.pipeline.held_out import EvaluationFiles, prepare_evaluation
from lora_chat.pipeline.merge_adapters import open_blend
from lora_chat.pipeline.open_adapter import TrustOptions

NEAR = 0.03


def main() -> int:
    """Print a table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run")
    parser.add_argument("types", nargs="*", default=["f16", "q8_0", "q4_k_m"])
    options = parser.parse_args()
    blend, _, opened = open_blend([options.run], None, EvaluationFiles(), TrustOptions())
    held_out = prepare_evaluation(opened, EvaluationFiles())
    head = [{"role": "system", "content": opened.system}] if opened.system is not None else []
    samples = []
    for question in held_out.questions:
        chat = [*head, {"role": "user", "content": question.question}]
        prompt, end = render_ids(blend.tokenizer, chat, add_generation_prompt=True), blend.stop_ids[0]
        samples.append(make_parity_sample([*prompt, end], [-100] * len(prompt) + [end], chat))

    def right(replies: list[list[int]]) -> list[bool]:
        texts = [blend.tokenizer.decode(reply, skip_special_tokens=True) for reply in replies]
        return [question.is_answered_by(text) for question, text in zip(held_out.questions, texts, strict=True)]

    pad = int(blend.tokenizer.pad_token_id)
    prompts = [sample.prompt for sample in samples]
    adapted_replies = generate_ids(blend.load_adapted_model(), pad, prompts, blend.stop_ids, PARITY_MAX_NEW_TOKENS)
    expected = right(adapted_replies)
    print(f"| {len(samples)} questions | right | replies equal to the adapted model's |\n|---|---|---|")
    print(f"| adapted model | {sum(expected) / len(expected):.1%} | |", flush=True)
    worst = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "out"
        folder.mkdir()
        parity_samples = select_parity_samples(held_out.validation, 2)
        job = ExportJob(blend, parity_samples, folder, "model", options.types)
        export_and_check(GgufExporter, job, accept=True)
        for kind in options.types:
            runner = LlamaCppRunner(folder / f"model-{kind}.gguf", None, samples, blend.stop_ids)
            replies = runner.replies(prompts, blend.stop_ids, PARITY_MAX_NEW_TOKENS)
            share = sum(right(replies)) / len(replies)
            same = sum(a == b for a, b in zip(adapted_replies, replies, strict=True)) / len(replies)
            print(f"| GGUF {kind} | {share:.1%} | {same:.0%} |", flush=True)
            if kind in ("f32", "f16", "bf16", "q8_0"):
                worst = max(worst, sum(expected) / len(expected) - share)
    return int(worst > NEAR)


if __name__ == "__main__":
    raise SystemExit(main())
