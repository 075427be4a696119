"""The Python API: what the commands do, as functions with typed results.

`from lora_chat import fine_tune` is the way to import it; docs/api.md describes it with examples. A call prints
nothing, ends no program and leaves the process unchanged. Imports are inside the calls, because `import lora_chat` is
quick, and because libraries read protective variables when they are imported (lora_chat/in_process/call.py).
"""

from collections.abc import Collection, Mapping, Sequence
from os import fspath
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from typing_extensions import Unpack

from lora_chat.in_process.call import api_call

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_chat.config.bundled_recipes import BundledRecipe
    from lora_chat.in_process.arguments import Consent, PathText, RecipeLike
    from lora_chat.in_process.loaded_model import LoadedModel
    from lora_chat.in_process.progress import OnProgress
    from lora_chat.in_process.results import FineTuneResult
    from lora_chat.pipeline.evaluate import EvaluationResult
    from lora_chat.pipeline.export_adapter import ExportResult
    from lora_chat.pipeline.inspect_data import DataInspection
    from lora_chat.pipeline.merge_adapters import MergeResult
    from lora_chat.pipeline.pack_run import PackResult
    from lora_chat.pipeline.verify_parcel import ParcelVerification
    from lora_chat.planning.estimate import RunEstimate

Quantization = Literal["4bit", "8bit", "none"]
Thinking = Literal["on", "off"]


def list_recipes() -> "list[BundledRecipe]":
    """Return the recipes that come with lora_chat: `name`, `path` and `summary` of each."""
    from lora_chat.config.bundled_recipes import list_bundled_recipes

    return list_bundled_recipes()


def inspect_data(recipe: "RecipeLike", count: int = 3, *, accept_template: bool = False) -> "DataInspection":
    """Read the data of a recipe as training does; return its statistics and `count` dialogues with their loss mask."""
    with api_call("inspect_data"):
        from lora_chat.in_process.arguments import check_count, read_recipe_like
        from lora_chat.pipeline.inspect_data import show_dialogues

        check_count("count", count)
        return show_dialogues(read_recipe_like(recipe), count, accept_template=accept_template)


def plan(recipe: "RecipeLike", gpu: str | None = None, memory: str | None = None) -> "RunEstimate":
    """Estimate memory, time and disk of a run before any weights load.

    The estimate is for this machine, for a GPU by its name (`"RTX 4090"`), or for a GPU with this much memory
    (`"12GiB"`).
    """
    with api_call("plan"):
        from lora_chat.in_process.arguments import check_text, read_recipe_like
        from lora_chat.pipeline.estimate import estimate_recipe

        check_text("gpu", gpu)
        check_text("memory", memory)
        return estimate_recipe(read_recipe_like(recipe), gpu, memory)


def fine_tune(
    recipe: "RecipeLike",
    *,
    resume: "bool | PathText | None" = None,
    on_progress: "OnProgress | None" = None,
    accept_changes: Collection[str] = (),
    accept_template: bool = False,
    adopt: bool = False,
    catch_signals: bool = False,
) -> "FineTuneResult":
    """Fine-tune a base and compare it with the adapted model.

    `resume` continues a run, or with True the newest run of the recipe; `accept_changes` names settings that may
    differ from it, such as `training.epochs`. `on_progress` receives a ProgressEvent for each stage, message and step.
    An error that it raises stops the run after a checkpoint and reaches the caller. Ctrl-C raises KeyboardInterrupt at
    once; its message says how to continue from the last checkpoint. With `catch_signals`, for which handlers are
    installed during training, Ctrl-C and SIGTERM stop after the present step with a checkpoint and raise StoppedError.
    """
    with api_call("fine_tune", catches_signals=catch_signals):
        from lora_chat.in_process.arguments import read_list, read_recipe_like, read_resume
        from lora_chat.in_process.run import run_fine_tuning

        return run_fine_tuning(
            read_recipe_like(recipe),
            read_resume(resume),
            on_progress,
            read_list("accept_changes", accept_changes),
            accept_template=accept_template,
            adopt=adopt,
        )


def load(
    source: "PathText",
    *,
    quantization: Quantization | None = None,
    thinking: Thinking | None = None,
    **consent: "Unpack[Consent]",
) -> "LoadedModel":
    """Load a run, a parcel, an adapter folder or a base, ready for `model.generate` of Transformers.

    The base is quantized as in training unless `quantization` says otherwise. `model, tokenizer = load(...)` works.
    """
    with api_call("load"):
        from lora_chat.in_process.arguments import check_choices, read_consent
        from lora_chat.in_process.loaded_model import load_model
        from lora_chat.pipeline.open_chat import find_chat_model

        check_choices(quantization, thinking)
        trust = read_consent(consent)
        return load_model(find_chat_model(fspath(source), quantization, trust, thinking, shows_system=True))


def generate(
    source: "LoadedModel | PathText",
    prompt: str | Sequence[Mapping[str, object]],
    *,
    chat: bool = True,
    system: str | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    on_text: "Callable[[str], object] | None" = None,
    quantization: Quantization | None = None,
    thinking: Thinking | None = None,
    **consent: "Unpack[Consent]",
) -> str:
    """Answer a message of a user or a dialogue; with `chat=False`, continue a plain text.

    `prompt` is the user's message, or a list of messages with `role` and `content`. The system message of training
    comes first unless the list has one or `system` is given. `on_text` receives the reply piece by piece.
    """
    with api_call("generate"):
        from lora_chat.in_process.arguments import check_choices, read_consent
        from lora_chat.in_process.reply import make_request, reply

        check_choices(quantization, thinking)
        sampling = {"temperature": temperature, "top_p": top_p, "seed": seed}
        request = make_request(prompt, max_new_tokens, sampling, system, chat=chat)
        return reply(source, request, quantization, read_consent(consent), thinking, on_text)


def evaluate(
    source: "PathText",
    data: "PathText | None" = None,
    *,
    questions: "PathText | None" = None,
    general: "PathText | None" = None,
    metrics: Sequence[str] = (),
    settings: Mapping[str, object] | None = None,
    parent: "PathText | None" = None,
    **consent: "Unpack[Consent]",
) -> "EvaluationResult":
    """Compare an adapter with its base: a run on its held-out dialogues, any adapter on the dialogues of `data`.

    `metrics` are own functions as FILE:FUNCTION, whose code runs. `settings` changes `evaluation.KEY` for this
    comparison, which then does not enter the run.
    """
    with api_call("evaluate"):
        from lora_chat.config.load import format_setting
        from lora_chat.in_process.arguments import name_files, optional_text, read_consent, read_list
        from lora_chat.pipeline.evaluate import evaluate_adapter

        changes = [format_setting(name, value) for name, value in (settings or {}).items()]
        files, functions = name_files(data, questions, general), read_list("metrics", metrics)
        trust = read_consent(consent)
        return evaluate_adapter(fspath(source), files, trust, optional_text(parent), functions, changes)


def merge(
    sources: "PathText | Sequence[PathText]",
    to: "PathText",
    weights: Sequence[float] | None = None,
    *,
    into: Literal["trained", "original"] = "trained",
    accept: bool = False,
    data: "PathText | None" = None,
    **consent: "Unpack[Consent]",
) -> "MergeResult":
    """Merge one or several adapters of one base into a 16-bit model in a new folder, and check it.

    `into="original"` uses the original weights of the base, not the dequantized ones that training used. `accept`
    keeps a model that fails its parity check.
    """
    with api_call("merge"):
        from lora_chat.in_process.arguments import check_choice, name_files, read_consent, read_sources
        from lora_chat.pipeline.merge_adapters import merge_adapters

        check_choice("into", into, ("trained", "original"))
        return merge_adapters(
            read_sources(sources),
            weights,
            Path(to),
            name_files(data),
            read_consent(consent),
            original=into == "original",
            accept=accept,
        )


def export(
    source: "PathText",
    format: str,
    out: "PathText | None" = None,
    *,
    types: Sequence[str] = (),
    accept: bool = False,
    data: "PathText | None" = None,
    **consent: "Unpack[Consent]",
) -> "ExportResult":
    """Write an adapter for another program, and check each file with the program that reads it.

    `format` is one of `lora-chat export --to`, such as `gguf` or `peft`; `types` are GGUF types, such as `q4_k_m`.
    `accept` keeps files that fail their parity check.
    """
    with api_call("export"):
        from lora_chat.export.formats import EXPORT_FORMATS
        from lora_chat.in_process.arguments import check_choice, name_files, optional_path, read_consent, read_list
        from lora_chat.pipeline.export_adapter import export_adapter

        to, files, trust = optional_path(out), name_files(data), read_consent(consent)
        check_choice("format", format, tuple(EXPORT_FORMATS))
        return export_adapter(fspath(source), format, read_list("types", types), to, files, trust, accept=accept)


def pack(
    run: "PathText",
    out: "PathText | None" = None,
    *,
    license: str | None = None,
    key: "PathText | None" = None,
    accept_findings: bool = False,
    statement: "PathText | None" = None,
    languages: Sequence[str] = (),
    **consent: "Unpack[Consent]",
) -> "PackResult":
    """Write adapter, model card and receipt of a run as one file, signed if a private key is given.

    `accept_findings` shares secrets that the audit of the run only warned about. `statement` is the path of an in-toto
    statement that is written too. `languages` are ISO 639 codes for the model card, such as `en`.
    """
    with api_call("pack"):
        from lora_chat.in_process.arguments import check_languages, optional_path, read_consent
        from lora_chat.pipeline.pack_run import pack_run

        return pack_run(
            fspath(run),
            optional_path(out),
            license,
            optional_path(key),
            read_consent(consent),
            accept_findings=accept_findings,
            statement=optional_path(statement),
            languages=check_languages(languages),
        )


def verify(
    parcel: "PathText",
    *,
    repeat: bool = False,
    data: "PathText | None" = None,
    questions: "PathText | None" = None,
    parents: "Sequence[PathText]" = (),
    raises: bool = True,
    **consent: "Unpack[Consent]",
) -> "ParcelVerification":
    """Run every check of a parcel. Raise IntegrityError if one fails, or with `raises=False` return it as failed.

    `repeat` loads the base and repeats the measurements, and with the sender's `data` also the comparison.
    """
    with api_call("verify"):
        from lora_chat.in_process.arguments import name_files, read_consent, read_list
        from lora_chat.pipeline.verify_parcel import verify_parcel

        files, sources = name_files(data, questions), [fspath(parent) for parent in read_list("parents", parents)]
        trust = read_consent(consent)
        result = verify_parcel(fspath(parcel), files, trust, repeat_measurements=repeat, parents=sources)
        if raises:
            result.raise_if_refused()
        return result
