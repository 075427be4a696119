"""Cached results depend on code, so a key has a digest of all code that decides the result."""

import ast
from pathlib import Path

import pytest

import lora_chat.data.storage.cache as dialogue_cache
import lora_chat.pipeline.audit_data as audit_cache
from lora_chat.system.hashing import digest_code

PACKAGE = Path(dialogue_cache.__file__).parents[2]

# Modules that are reached from the code of a cache and left out of its digest, with the reason.
UNDIGESTED = {
    "config/base.py": "checks settings, whose values are in the key",
    "errors.py": "classes and exit codes",
    "system/activity.py": "counts work for other processes",
    "system/atomic_write.py": "writes what it is given",
    "system/cache_dir.py": "chooses the folder of the cache",
    "system/environment.py": "environment of processes",
    "system/hashing.py": "a changed digest is another key anyway",
    "system/memory_usage.py": "measures the memory of processes",
    "system/process_limits.py": "can only stop a worker",
    "system/regular_files.py": "can only refuse a file",
    "system/strict_yaml.py": "reads the card that chooses the files, which are in the key",
    "system/shared_folders.py": "checks the owner of a folder",
}
UNDIGESTED_OF_DIALOGUES = UNDIGESTED | {
    **dict.fromkeys(
        [f"system/hub_{name}.py" for name in ("answers", "cache", "client", "guard", "origin", "pending")],
        "transfers the bytes of a file of one commit, which are in the key, unchanged or not at all",
    ),
    "system/file_lock.py": "waits for another process",
    "system/received_folder.py": "can only refuse a folder",
    "config/data.py": "the settings that matter are in the key",
    "config/data_loss.py": "the settings that it resolves are in the key",
    "config/system_message.py": "the text that matters is in the key",
    "system/bounded_call.py": "can only stop a call",
    "system/strict_yaml.py": "helps to find the files, whose content is in the key",
    "system/console.py": "shows the progress of a download",
    "system/frames.py": "carries values between processes unchanged",
    "system/worker.py": "starts processes",
    "system/worker_start.py": "can only end a process whose parent has ended",
}
UNDIGESTED_OF_AUDITS = UNDIGESTED | {
    "evaluation/questions.py": "the questions are in the key",
    "system/bounded_files.py": "reads the questions, which are in the key, and the cached report",
    "system/strict_json.py": "reads the questions, which are in the key",
}


def imported_files(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in for_types_only:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        files = [PACKAGE.parent / f"{name.replace('.', '/')}.py" for name in names if name.startswith("lora_chat.")]
        yield from filter(Path.is_file, files)


def reached_files(start, stop_at=()):
    """Modules that `start` imports, directly or through others; modules in the folders `stop_at` are left out."""
    reached, pending = set(), [start]
    while pending:
        path = pending.pop()
        if path not in reached and not any(path.is_relative_to(folder) for folder in stop_at):
            reached.add(path)
            pending += imported_files(path)
    return {path.relative_to(PACKAGE).as_posix() for path in reached}


def is_digested(name, places):
    return any((PACKAGE / name).is_relative_to(place) for place in places)


@pytest.mark.parametrize(
    ("start", "places", "undigested", "stop_at"),
    [
        (dialogue_cache.__file__, dialogue_cache.CODE_PATHS, UNDIGESTED_OF_DIALOGUES, ()),
        (audit_cache.__file__, audit_cache.CODE_PATHS, UNDIGESTED_OF_AUDITS, (PACKAGE / "data",)),
    ],
    ids=["dialogues", "audits"],  # the key of an audit names the stores, whose names contain the digest of data/
)
def test_key_covers_all_code_that_decides_the_result(start, places, undigested, stop_at):
    reached = reached_files(Path(start), stop_at)
    assert len(reached) > 10
    missing = {name for name in reached if not is_digested(name, places)}
    assert missing <= set(undigested), "digest the module, or name the reason why it cannot change the result"
    assert not any(is_digested(name, places) for name in undigested)


def test_digest_changes_with_code_and_with_data_files(tmp_path):
    (tmp_path / "inner").mkdir()
    digests = [digest_code(tmp_path)]
    for name, content in [("a.py", "1"), ("inner/b.py", "2"), ("inner/words.txt", "3"), ("a.py", "4")]:
        (tmp_path / name).write_text(content)
        digests.append(digest_code(tmp_path))
    assert len(set(digests)) == len(digests)


def test_digest_ignores_compiled_files(tmp_path):
    (tmp_path / "a.py").write_text("1")
    before = digest_code(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.cpython-311.pyc").write_bytes(b"compiled")
    assert digest_code(tmp_path) == before
