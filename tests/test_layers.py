"""A module imports only from a lower layer, each library has its importers, and nothing banned is used."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "lora_chat"

# A module imports only from a lower layer. A unit is a package or a module right under lora_chat.
LAYERS = [
    ["errors"],
    ["system"],
    ["processes"],
    ["config"],
    ["data", "runs"],
    ["models"],
    ["inference"],
    ["planning"],
    ["training", "evaluation", "export", "audit"],
    ["sharing", "report"],
    ["pipeline"],
    ["serving"],
    ["commands"],
    ["in_process"],
    ["api", "cli"],
    ["__main__"],
]
LAYER = {unit: number for number, units in enumerate(LAYERS) for unit in units}
FROM_THE_ROOT = {"__version__"}
LIBRARY_IMPORTERS = {
    "trl": ["training/"],
    "peft": [
        "models/adapter.py",
        "models/adapter_initialization.py",
        "models/expert_targets.py",
        "export/parity/peft_worker.py",
    ],
    "bitsandbytes": [
        "models/quantization/dequantize.py",
        "models/quantization/quantize_on_card.py",
        "models/quantization/self_test.py",
        "planning/dry_run/quantized_layers.py",
    ],
    "model_signing": ["sharing/signature.py"],
    "huggingface_hub": [
        "system/hub_client.py",
        "system/hub_guard.py",
        "system/hub_origin.py",
        "system/hub_ranges.py",
    ],
    "httpx2": [
        "system/http_client.py",
        "system/hub_guard.py",
        "system/hub_origin.py",
        "system/index_client.py",
    ],
    "shtab": ["commands/completion.py"],
    "evaluate": ["evaluation/harness_model.py"],
    "lm_eval": ["evaluation/harness_model.py"],
    "llama_cpp": ["export/parity/llama_cpp_worker.py"],
    "starlette": ["serving/"],
    "uvicorn": ["serving/"],
    "regex": ["config/metric_choice.py", "evaluation/scores/"],
    "rich": ["system/bar.py"],
    "sacrebleu": ["evaluation/scores/translation.py"],
    "filelock": ["system/file_lock.py"],
    "psutil": ["system/memory_usage.py"],
    "pynvml": ["system/nvidia_driver.py"],
    "subprocess": ["system/worker.py"],
    "multiprocessing": ["system/worker.py"],
    "runpy": ["system/worker_start.py", "export/llama_cpp_converter_worker.py"],
}
CONSOLE = "system/console.py"
PRINTERS = {"print", "pprint", "print_exc", "print_exception", "print_stack", "print_last", "print_tb", "showwarning"}
TERMINALS = {"1", "2", "'/dev/tty'", "'/dev/stdout'", "'/dev/stderr'"}
STREAMS = {"stdout", "stderr", "__stdout__", "__stderr__"}
HARMLESS_USES = {"isatty", "fileno"}
BANNED_MODULES = {"pickle", "cPickle", "dill", "cloudpickle"}
BANNED_CALLS = {"eval", "exec"}
BANNED_ATTRIBUTES = {("torch", "load"), ("yaml", "load"), ("yaml", "load_all"), ("yaml", "full_load")}
BANNED_METHODS = {"extractall", "unsafe_load", "unsafe_load_all"}
# Only the worker starts interpreters and programs: another call might import from the working directory. os.fork may be
# used, because it starts no interpreter.
STARTER = "system/worker.py"
STARTING = {
    *("executable", "_base_executable", "Popen", "popen", "startfile", "set_executable", "set_start_method"),
    *("create_subprocess_exec", "create_subprocess_shell", "subprocess_exec", "subprocess_shell", "fork_exec"),
    *(f"exec{kind}" for kind in ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")),
    *(f"spawn{kind}" for kind in ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")),
    *("posix_spawn", "posix_spawnp", "forkpty"),
}
STARTING_OF_OS = {("os", "system"), ("torch", "multiprocessing"), ("pty", "spawn")}
STARTING_MODULES = {"pty", "torch.multiprocessing", "_posixsubprocess", "asyncio.subprocess", "distutils.spawn"}
MUST_BE_FALSE = {"shell", "trust_remote_code"}


def find_offenders(root):
    offenders = []
    for path in sorted(root.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        printing = [] if path.relative_to(root).as_posix() == CONSOLE else dict(printing_offenders(tree)).items()
        starter = path.relative_to(root).as_posix() == STARTER
        for line, text in [
            *import_offenders(tree, path, root),
            *call_offenders(tree),
            *printing,
            *([] if starter else starting_offenders(tree)),
        ]:
            offenders.append(f"{path}:{line}: {text}")
    return offenders


def import_offenders(tree, path, root):
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, "imports relatively; write the module's whole name"
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, text) for text in own_import_offenders(node.module, node.names, path, root))
            yield from (
                (node.lineno, text) for text in library_offenders(node.module, path, root, id(node) in typing_only)
            )
            if any((node.module, alias.name) in BANNED_ATTRIBUTES for alias in node.names):
                yield node.lineno, f"imports {node.module}.load"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield from ((node.lineno, text) for text in own_import_offenders(alias.name, None, path, root))
                yield from (
                    (node.lineno, text) for text in library_offenders(alias.name, path, root, id(node) in typing_only)
                )


def unit_of(path, root):
    return path.relative_to(root).parts[0].removesuffix(".py")


def own_import_offenders(module, names, path, root):
    head, *rest = module.split(".")
    if head != root.name:
        return
    units = [rest[0]] if rest else [alias.name for alias in names or []]
    if not rest:
        if names is None or not {alias.name for alias in names} <= FROM_THE_ROOT:
            yield f"imports from {module} itself, not from a module"
        units = [unit for unit in units if unit in LAYER]
    elif root.joinpath(*rest).is_dir():
        yield f"imports from the package {module}, not from a module of it"
    here = unit_of(path, root)
    for unit in units:
        if here in LAYER and unit in LAYER and unit != here and LAYER[unit] >= LAYER[here]:
            yield f"{here} (layer {LAYER[here]}) imports {unit} (layer {LAYER[unit]})"


def library_offenders(module, path, root, typing_only):
    name = module.split(".")[0]
    if name in BANNED_MODULES:
        yield f"imports {name}"
    importers = LIBRARY_IMPORTERS.get(name)
    relative = path.relative_to(root).as_posix()
    if (
        importers
        and not typing_only
        and not any(relative == importer or relative.startswith(importer) for importer in importers)
    ):
        yield f"imports {name}, which only {' and '.join(importers)} may import"


def call_offenders(tree):
    # torch.load is allowed only with weights_only=True, because then no pickle runs code.
    weights_only = {
        id(node.func)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "torch.load"
        and any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in node.keywords)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in weights_only:
            if isinstance(node.value, ast.Name) and (node.value.id, node.attr) in BANNED_ATTRIBUTES:
                yield node.lineno, f"uses {node.value.id}.{node.attr}"
            elif node.attr in BANNED_METHODS:
                yield node.lineno, f"uses {node.attr}"
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in BANNED_CALLS:
                yield node.lineno, f"calls {node.func.id}"
            for keyword in node.keywords:
                harmless = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg in MUST_BE_FALSE and not harmless:
                    yield node.lineno, f"passes {keyword.arg}"


def printing_offenders(tree):
    """Yield code that writes to the terminal or takes its streams, except for `isatty` and `fileno`."""
    harmless = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in HARMLESS_USES:
            harmless.add(id(node.value))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "is_terminal":
            harmless.update(map(id, node.args))
        elif isinstance(node, ast.Compare) and all(isinstance(op, ast.Is | ast.IsNot) for op in node.ops):
            harmless.update(map(id, node.comparators))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in PRINTERS:
            yield node.lineno, f"uses {node.id}"
        elif isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            if node.attr in STREAMS and owner == "sys" and id(node) not in harmless:
                yield node.lineno, f"uses sys.{node.attr}"
            elif node.attr in PRINTERS and owner in {"builtins", "pprint", "traceback", "warnings", "rich"}:
                yield node.lineno, f"uses {owner}.{node.attr}"
            elif node.attr in {"StreamHandler", "basicConfig", "lastResort"} and owner == "logging":
                yield node.lineno, f"uses logging.{node.attr}"
        elif isinstance(node, ast.ImportFrom) and node.module == "sys":
            names = [alias.name for alias in node.names if alias.name in STREAMS]
            yield from ((node.lineno, f"imports sys.{name}") for name in names)
        elif isinstance(node, ast.ImportFrom) and node.module in {"builtins", "pprint", "traceback", "warnings"}:
            names = [alias.name for alias in node.names if alias.name in PRINTERS]
            yield from ((node.lineno, f"imports {node.module}.{name}") for name in names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"os.write", "open", "os.fdopen"} and node.args:
            target = ast.unparse(node.args[0])
            yield from [(node.lineno, f"writes to {target}")] if target in TERMINALS else []


def starting_offenders(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            pair = (node.value.id, node.attr) if isinstance(node.value, ast.Name) else ()
            if node.attr in STARTING or pair in STARTING_OF_OS:
                yield node.lineno, f"uses {ast.unparse(node)}; processes are started by {STARTER}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in STARTING_MODULES:
                    yield node.lineno, f"imports {alias.name}; processes are started by {STARTER}"
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                named = alias.name in STARTING or (node.module, alias.name) in STARTING_OF_OS
                if named or node.module in STARTING_MODULES or whole in STARTING_MODULES:
                    yield node.lineno, f"imports {whole}; processes are started by {STARTER}"
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).split(".")[-1] == "ProcessPoolExecutor"
            and len(node.args) < 2
            and not any(keyword.arg == "mp_context" for keyword in node.keywords)
        ):
            yield node.lineno, "makes a pool without a context; pool_context() gives a safe one"


def test_every_unit_has_one_layer():
    units = {unit_of(path, ROOT) for path in ROOT.rglob("*.py")} - {"__init__"}
    assert units == set(LAYER)


def test_no_module_imports_upwards_or_does_anything_banned():
    assert find_offenders(ROOT) == []


def test_every_listed_importer_group_still_imports_its_library():
    for name, importers in LIBRARY_IMPORTERS.items():
        patterns = [f"{importer}*.py" if importer.endswith("/") else importer for importer in importers]
        texts = [path.read_text(encoding="utf-8") for pattern in patterns for path in ROOT.glob(pattern)]
        assert any(f"from {name}" in text or f"import {name}" in text for text in texts), name


@pytest.fixture
def build_package(tmp_path):
    root = tmp_path / "lora_chat"

    def write_and_check(path, source):
        for file in ("__init__.py", "errors.py", "planning/__init__.py", "config/plan.py", path):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).touch()
        (root / path).write_text(source)
        return [offender.removeprefix(f"{root}/") for offender in find_offenders(root)]

    return write_and_check


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("errors.py", "from lora_chat.config.plan import x"),
        ("config/recipe.py", "from lora_chat.planning.plan import x"),
        ("data/parsing/rows.py", "from lora_chat.models.adapter import x"),
        ("training/sft.py", "import lora_chat.evaluation.loss"),
        ("evaluation/loss.py", "from lora_chat.cli import main"),
        ("evaluation/format.py", "from lora_chat.pipeline import prepare"),
        ("cli.py", "from lora_chat.planning import plan"),
        ("cli.py", "import lora_chat.planning"),
        ("cli.py", "from lora_chat import errors"),
        ("cli.py", "import lora_chat"),
        ("data/parsing/rows.py", "from .dialogue import x"),
        ("data/parsing/rows.py", "from .. import errors"),
        ("models/bound_adapter.py", "import trl"),
        ("models/bound_adapter.py", "from peft.tuners import lora"),
        ("training/sft.py", "from peft import LoraConfig"),
        ("training/sft.py", "import bitsandbytes as bnb"),
        ("models/adapter.py", "import pickle"),
        ("models/adapter.py", "torch.load('x')"),
        ("models/adapter.py", "torch.load('x', weights_only=False)"),
        ("models/adapter.py", "torch.load('x', weights_only=choice)"),
        ("models/adapter.py", "from torch import load"),
        ("models/adapter.py", "eval('1')"),
        ("models/adapter.py", "exec('1')"),
        ("models/adapter.py", "yaml.load('x', Loader=y)"),
        ("models/adapter.py", "yaml.unsafe_load('x')"),
        ("models/adapter.py", "subprocess.run('x', shell=True)"),
        ("models/adapter.py", "AutoModel.from_pretrained('x', trust_remote_code=True)"),
        ("models/adapter.py", "AutoModel.from_pretrained('x', trust_remote_code=trusted)"),
        ("models/adapter.py", "tarfile.open('x').extractall('y')"),
        ("models/adapter.py", "zipfile.ZipFile('x').extractall()"),
        ("cli.py", "print('x')"),
        ("cli.py", "print('x', file=sys.stderr)"),
        ("cli.py", "print(json.dumps({}))"),
        ("pipeline/fine_tune.py", "prepare_run(plan, on_message=print)"),
        ("pipeline/fine_tune.py", "builtins.print('x')"),
        ("pipeline/fine_tune.py", "sys.stdout.write('x')"),
        ("pipeline/fine_tune.py", "sys.stderr.writelines(['x'])"),
        ("pipeline/fine_tune.py", "sys.__stderr__.write('x')"),
        ("pipeline/fine_tune.py", "sys.stdout.buffer.write(b'x')"),
        ("pipeline/fine_tune.py", "json.dump({}, sys.stdout)"),
        ("pipeline/fine_tune.py", "out = sys.stdout"),
        ("pipeline/fine_tune.py", "from sys import stderr"),
        ("pipeline/fine_tune.py", "os.write(2, b'x')"),
        ("pipeline/fine_tune.py", "open('/dev/tty', 'w')"),
        ("pipeline/fine_tune.py", "traceback.print_exc()"),
        ("pipeline/fine_tune.py", "from traceback import print_exc"),
        ("pipeline/fine_tune.py", "pprint.pprint({})"),
        ("pipeline/fine_tune.py", "logging.basicConfig()"),
        ("training/progress_bar.py", "from rich import print as show"),
        ("training/progress_bar.py", "from rich.console import Console"),
        ("evaluation/format.py", "print('x')"),
        ("pipeline/machine_benchmark.py", "import subprocess"),
        ("export/gguf.py", "from subprocess import run"),
        ("export/gguf.py", "import runpy"),
        ("system/sanitize.py", "import multiprocessing"),
        ("data/storage/build.py", "from multiprocessing.pool import Pool"),
        ("data/storage/build.py", "ProcessPoolExecutor(2)"),
        ("data/storage/build.py", "concurrent.futures.ProcessPoolExecutor(max_workers=2)"),
        ("pipeline/machine_benchmark.py", "words = [sys.executable]"),
        ("pipeline/machine_benchmark.py", "from sys import executable"),
        ("pipeline/machine_benchmark.py", "os.execv('x', [])"),
        ("pipeline/machine_benchmark.py", "from os import execvpe"),
        ("pipeline/machine_benchmark.py", "o.spawnlp(0, 'x')"),
        ("pipeline/machine_benchmark.py", "os.posix_spawn('x', [], {})"),
        ("pipeline/machine_benchmark.py", "os.system('x')"),
        ("pipeline/machine_benchmark.py", "from os import system"),
        ("pipeline/machine_benchmark.py", "os.popen('x')"),
        ("pipeline/machine_benchmark.py", "import pty"),
        ("training/sft.py", "import torch.multiprocessing as mp"),
        ("training/sft.py", "from torch import multiprocessing"),
        ("training/sft.py", "torch.multiprocessing.spawn(x)"),
        ("inference/chat.py", "await asyncio.create_subprocess_exec('x')"),
    ],
)
def test_finds_a_planted_offender_with_file_and_line(build_package, path, line):
    offenders = build_package(path, f"import os\n\n\nasync def inside():\n    {line}\n")
    assert len(offenders) == 1
    assert offenders[0].startswith(f"{path}:5: ")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("data/parsing/rows.py", "from lora_chat.data.dialogue import x\nfrom lora_chat.errors import y"),
        ("errors.py", "from lora_chat import __version__"),
        ("cli.py", "import lora_chat.config.plan"),
        ("training/sft.py", "from trl import SFTConfig"),
        ("models/adapter.py", "import peft"),
        ("evaluation/x.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from peft import PeftModel"),
        ("system/console.py", "print('x')\nsys.stdout.write('x')"),
        ("system/bar.py", "from rich.console import Console"),
        ("cli.py", "sys.stderr.isatty()\nis_terminal(sys.stdout)\nos.dup2(null, sys.stdout.fileno())"),
        ("cli.py", "say('x')\nself.print(x)\nif file is sys.stdout:\n    pass"),
        (
            "system/worker.py",
            "import subprocess\nfrom multiprocessing import get_context\nsubprocess.Popen([sys.executable])",
        ),
        ("data/storage/build.py", "ProcessPoolExecutor(2, pool_context())\nsay(options.system)"),
        ("pipeline/machine_benchmark_worker.py", "os.fork()"),
        ("models/adapter.py", "torch.load('x', weights_only=True)"),
        ("models/adapter.py", "model.eval()\njson.load(file)\nrun('x', shell=False)"),
    ],
)
def test_accepts_allowed_code(build_package, path, source):
    assert build_package(path, source) == []


def test_finds_a_runtime_import_beside_a_type_only_one(build_package):
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import peft\nelse:\n    import peft\n"
    assert [offender.split(": ")[0] for offender in build_package("evaluation/x.py", source)] == ["evaluation/x.py:5"]
