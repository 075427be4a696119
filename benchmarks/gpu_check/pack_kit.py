"""Pack the Python packages that a bare, offline GPU host lacks into one folder: `make gpu-kit`.

    python benchmarks/gpu_check/pack_kit.py gpu-kit [--python 3.12] [--extra NAME==VERSION ...]

The host is Linux x86-64 with torch, NumPy, pandas, Jinja2 and matplotlib. The versions are those of constraints.txt.
Parts of large wheels that such a host never loads are left out, so that the folder stays below one transfer of 64 MiB.
`run_check.py` unpacks the folder on the host.
"""

import argparse
import re
import subprocess
import sys
import zipfile
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
MAX_KIT_MIB = 58
"""Largest size of the kit in MiB; the working tree travels with it, and both together have 64."""
PACKAGES = (
    # The training stack.
    *("accelerate", "bitsandbytes", "datasets", "huggingface-hub", "peft", "pyarrow", "safetensors", "tokenizers"),
    *("transformers", "trl"),
    # The other requirements of lora_chat.
    *("filelock", "gguf", "httpx2", "nvidia-ml-py", "phonenumberslite", "platformdirs", "psutil", "pydantic"),
    *("python-stdnum", "PyYAML", "rich", "sacrebleu", "shtab"),
    # The requirements of the packages above.
    *("annotated-types", "anyio", "certifi", "charset-normalizer", "click", "colorama", "dill", "fsspec", "h11"),
    *("httpcore2", "idna", "lxml", "markdown-it-py", "mdurl", "multiprocess", "packaging", "portalocker"),
    *("pydantic_core", "Pygments", "regex", "requests", "shellingham", "tabulate", "tqdm", "truststore", "typer"),
    *("typing-inspection", "typing_extensions", "urllib3", "xxhash"),
)
"""Packages of the kit. Their requirements are not followed, so this list is complete except for the host's packages."""
HOST_PACKAGES = (
    *("contourpy", "cycler", "fonttools", "hf-xet", "Jinja2", "kiwisolver", "MarkupSafe", "matplotlib", "mpmath"),
    *("networkx", "numpy", "pandas", "pillow", "pyparsing", "python-dateutil", "setuptools", "sympy", "torch"),
    *("annotated-doc", "tzdata"),
)
"""Required packages that the host has, in any version; torch and those that a plot or a table needs."""
_UNUSED_FILES = {
    "bitsandbytes": re.compile(r"/libbitsandbytes_(?!cpu|cuda130)\w+\.so$"),
    "pyarrow": re.compile(
        r"^pyarrow/(include|src|tests)/|\.(h|lib|pxd|pxi|pyx)$"
        r"|/libarrow_(flight|python_flight|python_parquet_encryption|s3)\.so"
        r"|/libarrow_python\.so(\.\d+\.\d+\.\d+)?$"  # copies of libarrow_python.so.2600
        r"|/_(azurefs|flight|gcsfs|hdfs|orc|dataset_orc|parquet_encryption|dataset_parquet_encryption|pyarrow_cpp_tests"
        r"|s3fs|substrait)\."
    ),
}
"""Files of a wheel that the host never loads: kernels of other CUDA versions, and file systems of clouds."""


def find_pins(constraints: str, names: tuple[str, ...], python: str) -> list[str]:
    """Return `name==version` for each package, from the lines of constraints.txt that apply to a Python version.

    Raises SystemExit for a package without a pin.
    """
    pins: dict[str, str] = {}
    for line in constraints.splitlines():
        match = re.match(r"([\w.-]+)==([\w.+-]+)\s*(?:;\s*python_version (<|>=) \"3\.(\d+)\")?$", line.strip())
        if match:
            name, version, operator, minor = match.groups()
            is_older = operator is not None and int(python.split(".")[1]) < int(minor)
            if operator is None or is_older == (operator == "<"):
                pins[_normalize(name)] = version
    missing = [name for name in names if _normalize(name) not in pins]
    if missing:
        raise SystemExit(f"No pin in constraints.txt: {', '.join(missing)}. Fix: add it there.")
    return [f"{name}=={pins[_normalize(name)]}" for name in names]


def _normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def download(requirements: list[str], folder: Path, python: str) -> None:
    """Download one wheel for each requirement, without their requirements."""
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in (17, 24, 26, 27, 28, 31, 34, 35)]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--implementation", "cp", "--python-version", python, "--dest", str(folder)]
    command += [word for platform in platforms for word in ("--platform", platform)]
    subprocess.run([*command, *requirements], check=True)  # noqa: S603 - pip, with names from a table


def shrink(wheel: Path) -> None:
    """Write a wheel again in LZMA, which pip does not read, without the files that the host never loads."""
    unused = _UNUSED_FILES.get(wheel.name.split("-")[0])
    smaller = wheel.with_suffix(".smaller")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(smaller, "w", zipfile.ZIP_LZMA) as new:
        for member in old.infolist():
            if unused is None or not unused.search(member.filename):
                new.writestr(member, old.read(member), zipfile.ZIP_LZMA)
    smaller.replace(wheel)


def folder_mib(folder: Path) -> float:
    """Return the size of the files of a folder, in MiB."""
    return sum(path.stat().st_size for path in folder.iterdir()) / 2**20


def main() -> None:
    """Pack the folder and print its size; exit with 1 if it is too large for one transfer."""
    parser = argparse.ArgumentParser(description="pack the packages that an offline GPU host lacks")
    parser.add_argument("folder", type=Path, help="folder of the kit; its old wheels are deleted")
    parser.add_argument("--python", default="3.12", help="Python version of the host (3.12)")
    parser.add_argument("--extra", nargs="*", default=[], metavar="NAME==VERSION", help="further wheels")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for old in options.folder.glob("*.whl"):
        old.unlink()
    constraints = (_ROOT / "constraints.txt").read_text(encoding="utf-8")
    download([*find_pins(constraints, PACKAGES, options.python), *options.extra], options.folder, options.python)
    wheels = sorted(options.folder.glob("*.whl"))
    for wheel in wheels:
        shrink(wheel)
    size = folder_mib(options.folder)
    print(f"{len(wheels)} wheels, {size:.1f} MiB in {options.folder} (at most {MAX_KIT_MIB})")
    if size > MAX_KIT_MIB:
        raise SystemExit("The kit is too large for one transfer. Fix: leave out --extra, or extend _UNUSED_FILES.")


if __name__ == "__main__":
    main()
