"""Unpack a kit of wheels into an environment on top of the host's packages, without pip and without a network."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def make_environment(kit: Path, folder: Path) -> str:
    """Create an environment with the wheels of the kit and return its interpreter.

    It is an environment, not a folder on PYTHONPATH, because child processes of lora_chat ignore that variable. The
    host's own packages follow the kit's on the search path.
    """
    wheels = sorted(kit.glob("*.whl"))
    if not wheels:
        raise SystemExit(f"No wheels in {kit}. Fix: make gpu-kit.")
    venv.create(folder, symlinks=True, with_pip=False)
    interpreter = folder / "bin" / "python"
    site = Path(
        subprocess.run(  # noqa: S603 - the interpreter that was just created
            [str(interpreter), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    )
    for wheel in wheels:
        unpack(wheel, site)
    host_folders = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *_site_folders()))
    (site / "host.pth").write_text("\n".join([str(_ROOT), *host_folders]) + "\n", encoding="utf-8")
    return str(interpreter)


def _site_folders() -> list[str]:
    """Return the folders of packages on this interpreter's search path."""
    return [folder for folder in sys.path if folder.endswith(("site-packages", "dist-packages"))]


def unpack(wheel: Path, site: Path) -> None:
    """Unpack a wheel into a folder of packages, as pip does."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            _, data, rest = member.filename.partition(".data/")
            scheme, _, inner = rest.partition("/")
            if data and scheme not in ("purelib", "platlib"):
                continue  # scripts and headers
            target = site / (inner if data else member.filename)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(member))
