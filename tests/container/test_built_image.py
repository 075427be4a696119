"""The built image trains without network and with a read-only root, for any user, and stops at a signal."""

import os
import signal
import subprocess
import time

import pytest
from image import built_image, find_builder

pytestmark = [
    pytest.mark.skipif(not os.environ.get("LORA_CHAT_HADOLINT"), reason="on demand: make container-test"),
    pytest.mark.skipif(not find_builder(), reason="neither Docker nor, as root, Buildah and debootstrap"),
    pytest.mark.timeout(3600),
]
USERS = ["1000:1000", "4242:4242"]
"""The user of the image, and another one, as with `--user`."""


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    with built_image(tmp_path_factory.mktemp("image")) as image:
        yield image


@pytest.fixture
def make_volume(tmp_path):
    def make(user):
        folder = tmp_path / "data"
        folder.mkdir()
        os.chown(folder, *map(int, user.split(":")))
        for path in [tmp_path, *tmp_path.parents][:3]:
            path.chmod(0o755)
        return folder

    return make


def run_container(image, *arguments):
    return subprocess.run(image.command(*arguments), capture_output=True, text=True)


@pytest.mark.parametrize("user", USERS)
def test_run_is_in_the_volume(image, make_volume, user):
    data = make_volume(user)
    done = run_container(image, data, user, "sft", "smoke")
    assert done.returncode == 0, done.stderr
    assert (data / "runs/smoke-1/adapter/adapter_model.safetensors").is_file()
    assert {path.stat().st_uid for path in data.rglob("*")} == {int(user.split(":")[0])}


def test_embedded_base_needs_no_network(image, make_volume):
    data = make_volume(USERS[0])
    done = run_container(image, data, USERS[0], "generate", "smollm2-135m-instruct", "Once", "--max-new-tokens", "4")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_process_one_keeps_a_checkpoint_at_a_signal(image, make_volume, number, code):
    data = make_volume(USERS[0])
    words = ["sft", "smoke", "--set", "training.epochs=100000"]
    process = subprocess.Popen(image.command(data, USERS[0], *words), stderr=subprocess.PIPE, text=True)
    log = data / "runs/smoke-1/metrics.jsonl"
    while process.poll() is None and not (log.is_file() and log.stat().st_size):
        time.sleep(0.5)
    image.signal(process, number)
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == code, errors
    assert list((data / "runs/smoke-1").glob("checkpoints/*")), errors


def test_a_server_for_others_needs_keys(image, make_volume):
    done = run_container(image, make_volume(USERS[0]), USERS[0], "serve", "tiny-random", "--host", "0.0.0.0")
    assert done.returncode == 2
    assert "--key-file" in done.stderr


def test_last_stage_has_no_compiler(image, make_volume):
    if not hasattr(image, "root"):
        pytest.skip("only for a folder")
    names = ("gcc", "cc", "g++", "make", "ld")
    folders = ("usr/bin", "usr/local/bin", "opt/lora-chat/bin")
    assert not [name for name in names for folder in folders if os.path.lexists(f"{image.root}/{folder}/{name}")]
