"""Build the image of a Dockerfile, with Docker or Buildah, and run it: for `make container-test`.

Buildah builds without a daemon, as root. Its base is Debian with its Python, as a stand-in for the image
of Python. A container of Docker is `docker run`; of Buildah, namespaces of their own, a read-only root and chroot.
"""

import os
import re
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
WHEELS = os.environ.get("LORA_CHAT_TORCH_WHEELS")
"""Folder with a wheel of PyTorch in place of its index."""
ENVIRONMENT = re.findall(r"^(?:ENV)? +(\w+)=(\S+)", (ROOT / "Dockerfile").read_text().split("\nFROM")[2], re.M)
CERTIFICATES = "/etc/ssl/certs"
PACKAGES = "ca-certificates,python3,python3-venv"
STAND_IN = "localhost/lora-chat-stand-in"
START = """
root=$1 data=$2 user=$3; shift 3
mount --make-rprivate / && mount --bind "$root" "$root" && mount --bind "$data" "$root/data"
mount -t tmpfs tmpfs "$root/tmp" && mount -t proc proc "$root/proc" && mount --bind /dev "$root/dev"
mount -o remount,ro,bind "$root" && ip link set lo up
exec chroot --userspec="$user" "$root" /usr/bin/env -i -C /data "$@"
"""


def find_builder():
    """Return `docker`, `buildah`, or None."""
    if shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True).returncode == 0:
        return "docker"
    is_there = all(shutil.which(name) for name in ("buildah", "debootstrap", "unshare", "ip"))
    return "buildah" if is_there and os.geteuid() == 0 else None


def build_arguments(folder):
    """Return arguments that replace the index of PyTorch by a folder of wheels."""
    if not WHEELS:
        return []
    index = folder / "index" / "torch"
    index.mkdir(parents=True)
    for wheel in Path(WHEELS).glob("torch-*.whl"):
        shutil.copyfile(wheel, index / wheel.name)
    (index / "index.html").write_text("".join(f'<a href="{p.name}">{p.name}</a>' for p in index.glob("*.whl")))
    return ["--build-arg", "PYTORCH_INDEX=file:///index", "--volume", f"{index.parent}:/index:ro"]


class BuildahImage:
    """An image in a folder, built from Debian in place of the image of Python."""

    def __init__(self, folder):
        self.folder = folder
        self.buildah = ["buildah", "--storage-driver", "vfs", "--root", folder / "images", "--runroot", folder / "run"]

    def build(self, name):
        """Build a Dockerfile, and unpack the image into a folder."""
        base = self._call("from", "scratch")
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", self.folder / "debian"],
            check=True,
            capture_output=True,
        )
        (self.folder / "debian/usr/local/bin/python").symlink_to("/usr/bin/python3")
        self._call("add", "--quiet", base, self.folder / "debian", "/")
        self._call("commit", "--quiet", "--rm", base, STAND_IN)
        given = ["--build-arg", f"PYTHON_IMAGE={STAND_IN}", "--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro"]
        given += build_arguments(self.folder)
        network = ["--isolation", "chroot", "--network", "host", "--pull-never"]
        self._call("build", *network, "--file", ROOT / name, *given, "--tag", name.lower(), ROOT)
        self.container = self._call("from", "--pull-never", f"localhost/{name.lower()}")
        self.root = self._call("mount", self.container)

    def command(self, data, user, *arguments):
        """Return the command of a container without network, with the entry point as process 1 and a read-only root."""
        spaces = ["unshare", "--mount", "--pid", "--net", "--ipc", "--fork", "--kill-child"]
        variables = [f"{name}={value}" for name, value in ENVIRONMENT]
        variables += ["OMP_NUM_THREADS=1"]  # on a busy machine, threads of one product wait for each other
        variables[0] = "PATH=/opt/lora-chat/bin:/usr/local/bin:/usr/bin:/bin"
        return [*spaces, "bash", "-ec", START, "start", self.root, data, user, *variables, "lora-chat", *arguments]

    def signal(self, process, number):
        """Send a signal to process 1 of a container."""
        os.kill(int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()), number)

    def close(self):
        self._call("rm", "--all")

    def _call(self, *arguments):
        done = subprocess.run([*self.buildah, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.split()[-1] if done.stdout.split() else ""


class DockerImage:
    """An image of the daemon."""

    def __init__(self, folder):
        self.folder = folder

    def build(self, name):
        """Build a Dockerfile."""
        subprocess.run(["docker", "build", "--file", ROOT / name, "--tag", "lora-chat-test", ROOT], check=True)

    def command(self, data, user, *arguments):
        """Return the command of a container without network and with a read-only root."""
        limits = [
            "--rm",
            "--network",
            "none",
            "--read-only",
            "--tmpfs",
            "/tmp",
            "--user",
            user,
            "--env",
            "OMP_NUM_THREADS=1",
        ]
        limits += ["--cidfile", self.folder / f"{len(list(self.folder.iterdir()))}.cid"]
        return ["docker", "run", *limits, "--volume", f"{data}:/data", "lora-chat-test", *arguments]

    def signal(self, process, number):
        """Send a signal to process 1 of the newest container."""
        name = max(self.folder.glob("*.cid"), key=lambda path: path.stat().st_mtime).read_text()
        subprocess.run(["docker", "kill", "--signal", str(int(number)), name], check=True)

    def close(self):
        subprocess.run(["docker", "rmi", "lora-chat-test"], check=False)


@contextmanager
def built_image(folder, name="Dockerfile"):
    """Build an image with the builder of this machine and yield it."""
    image = DockerImage(folder) if find_builder() == "docker" else BuildahImage(folder)
    try:
        image.build(name)
        yield image
    finally:
        image.close()
