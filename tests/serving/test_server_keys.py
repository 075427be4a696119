import asyncio
import base64
import os
import time

import pytest
from guarded_app import ask, build_app

from lora_chat.errors import IntegrityError, UsageError
from lora_chat.serving.api_errors import ApiError
from lora_chat.serving.app import create_app
from lora_chat.serving.guards import key_file, key_guard
from lora_chat.serving.guards.key_file import KeyFile, parse_keys, write_new_key
from lora_chat.serving.guards.key_guard import KeyGuard, read_key
from lora_chat.serving.server_options import ServerOptions

KEY, OTHER = "first-key-0123456789", "other-key-0123456789"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "keys.txt"
    path.write_text(f"# keys of the team\n{KEY} # Ada\n\n  {OTHER}\t# Grace\r\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(key_file, "_CHECK_SECONDS", 0.0)
    monkeypatch.setattr(key_guard, "_DELAY_SECONDS", 0.001)


def basic(user, password):
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


HEADERS = [
    (f"Bearer {KEY}", 200),
    (f"bearer   {KEY}  ", 200),
    (f"Bearer {OTHER}", 200),
    (basic("anyone", KEY), 200),
    (basic("", KEY), 200),
    (basic("a", f"{KEY}x"), 401),
    (basic(KEY, ""), 401),
    (f"Bearer {KEY[:-1]}", 401),
    (f"Bearer {KEY}0", 401),
    (f"Bearer {KEY.upper()}", 401),
    ("Bearer", 401),
    ("Bearer ", 401),
    (f"Token {KEY}", 401),
    (KEY, 401),
    ("Basic !!!", 401),
    ("Basic /////w==", 401),
    ("Bearer \xff\xfe", 401),
    ("Bearer # keys of the team", 401),
    ("Bearer " + "x" * 5000, 401),
    (None, 401),
]


@pytest.mark.parametrize(("header", "status"), HEADERS)
def test_every_route_but_health_needs_a_key(path, fast, header, status):
    app = build_app(keys=KeyFile(path))
    headers = [("authorization", header)] if header is not None else []
    for asked in ("/echo", "/metrics", "/nothing"):
        answer = ask(app, path=asked, headers=headers)
        assert answer.status == (404 if status == 200 and asked == "/nothing" else status)
        assert status == 200 or answer.headers["www-authenticate"].startswith('Basic realm="lora_chat"')
    assert ask(app, path="/health").status == 200


def test_two_authorization_headers_are_refused(path):
    headers = [("authorization", f"Bearer {KEY}"), ("authorization", "Bearer x")]
    assert ask(build_app(keys=KeyFile(path)), path="/echo", headers=headers).status == 400


def test_keys_are_neither_logged_nor_in_metrics(path, fast, messages):
    app = build_app(keys=KeyFile(path))
    for key in (KEY, "wrong-key-0123456789"):
        ask(app, path="/echo", headers=[("authorization", f"Bearer {key}")])
    text = ask(app, path="/metrics", headers=[("authorization", f"Bearer {KEY}")]).body.decode() + "".join(messages)
    assert "0123456789" not in text


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "0"])
def test_an_address_of_other_machines_needs_a_key_file(host):
    with pytest.raises(UsageError, match="needs a key"):
        create_app(None, ServerOptions(host=host))


def test_a_changed_file_is_read_without_a_restart(path, fast, messages):
    keys = KeyFile(path)
    path.write_text(f"{OTHER}\nthird-key-0123456789\n")
    assert [keys.accepts(key) for key in (KEY, OTHER, "third-key-0123456789")] == [False, True, True]
    assert any("Read 2 keys" in message for message in messages)


@pytest.mark.parametrize("content", [b"", b"# nothing\n", b"short\n", b"two words-0123456789\n", b"\xff" * 20, None])
def test_a_broken_file_leaves_the_keys_and_is_reported_once(path, fast, messages, content):
    keys = KeyFile(path)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    for _ in range(3):
        assert keys.accepts(KEY)
    assert sum("the earlier keys stay" in message for message in messages) == 1
    path.write_text(f"{OTHER}\n")
    assert (keys.accepts(KEY), keys.accepts(OTHER)) == (False, True)


def test_a_change_with_the_same_time_and_length_is_seen(path, fast):
    keys = KeyFile(path)
    keys.accepts(KEY)
    status = path.stat()
    path.write_text(path.read_text().replace(KEY, KEY[::-1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not keys.accepts(KEY)


BAD_FILES = {
    "empty": b"",
    "comments only": b"# a\n   # b\n",
    "short key": b"123456789012345\n",
    "long key": b"x" * 513,
    "two words": b"first-key-0123456789 second\n",
    "not ASCII": "schlüssel-0123456789\n".encode(),
    "control character": b"first-key-\x1b0123456789\n",
    "too many": b"".join(b"key-%016d\n" % number for number in range(1001)),
    "too large": b"#" * (2**18 + 1),
}


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES)
def test_refuses_a_bad_key_file_without_quoting_it(tmp_path, content):
    path = tmp_path / "keys.txt"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(UsageError) as refused:
        KeyFile(path)
    assert "0123456789" not in str(refused.value)
    assert str(path) in str(refused.value)


def test_checks_who_may_change_the_file(path, messages):
    path.chmod(0o644)
    KeyFile(path)
    assert any("Other users may read the key file" in message for message in messages)
    path.chmod(0o602)
    with pytest.raises(IntegrityError, match="chmod 600"):
        KeyFile(path)


def test_refuses_what_is_not_a_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(IntegrityError):
            KeyFile(path)
    with pytest.raises(UsageError, match="--new-key"):
        KeyFile(tmp_path / "missing")


def test_new_keys_are_appended(tmp_path):
    path = tmp_path / "keys.txt"
    for number in (1, 2):
        write_new_key(path)
        assert KeyFile(path).count == number
    assert oct(path.stat().st_mode & 0o777) == "0o600"
    path.write_text(KEY)  # without a line feed
    write_new_key(path)
    assert KEY in parse_keys(path.read_bytes(), path)
    assert KeyFile(path).count == 2


def check(guard, key, client):
    start = time.monotonic()
    try:
        asyncio.run(guard.check("/v1/models", {b"authorization": f"Bearer {key}"}, client))
    except ApiError as error:
        return error.status, time.monotonic() - start
    return 200, time.monotonic() - start


def test_wrong_keys_are_answered_late_and_block_their_address(path, monkeypatch):
    monkeypatch.setattr(key_guard, "_DELAY_SECONDS", 0.02)
    guard = KeyGuard(KeyFile(path))
    answers = [check(guard, "wrong-key-0123456789", "192.0.2.1") for _ in range(12)]
    assert [status for status, _ in answers] == [401] * 10 + [429] * 2
    assert all(seconds >= 0.02 for _, seconds in answers[:10])
    assert check(guard, KEY, "192.0.2.1")[0] == 429
    assert check(guard, KEY, "192.0.2.2")[0] == 200
    monkeypatch.setattr(key_guard, "_WINDOW_SECONDS", 0.0)
    assert check(guard, KEY, "192.0.2.1")[0] == 200


def test_wrong_keys_of_this_machine_block_nobody(path, fast):
    guard = KeyGuard(KeyFile(path))
    assert [check(guard, "wrong-key-0123456789", "127.0.0.1")[0] for _ in range(30)] == [401] * 30
    assert check(guard, KEY, "127.0.0.1")[0] == 200


def test_many_wrong_keys_at_once_wait_only_for_a_bounded_number(path):
    guard = KeyGuard(KeyFile(path))

    async def ask_once(number):
        try:
            await guard.check("/x", {b"authorization": "Bearer wrong-key-0123456789"}, f"192.0.2.{number}")
        except ApiError as error:
            return error.status

    async def ask_all():
        return await asyncio.gather(*map(ask_once, range(200)))

    statuses = asyncio.run(ask_all())
    assert statuses.count(401) == key_guard._MAX_DELAYED
    assert statuses.count(429) == 200 - key_guard._MAX_DELAYED


def test_memory_for_wrong_keys_is_bounded(path, fast, monkeypatch):
    monkeypatch.setattr(key_guard, "_MAX_CLIENTS", 8)
    guard = KeyGuard(KeyFile(path))
    for number in range(20):
        check(guard, "wrong-key-0123456789", f"192.0.2.{number}")
    assert len(guard._wrong) == 8


def test_comparison_visits_every_key(path, monkeypatch):
    compared = []
    monkeypatch.setattr(key_file.hmac, "compare_digest", lambda one, other: compared.append(one) or one == other)
    keys = KeyFile(path)
    for key in (KEY, OTHER, "wrong-key-0123456789"):
        keys.accepts(key)
    assert len(compared) == 6


def test_reads_a_password_with_a_colon():
    assert read_key(basic("user", "a:b:c")) == "a:b:c"
