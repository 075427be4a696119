"""The watch sees each way in which another process can be lost, and all processes agree on the first failure."""

import signal
import time
from dataclasses import replace

import pytest
import torch.distributed as dist

from lora_chat.processes import watch as watch_module
from lora_chat.processes.beats import LEFT, WatchLimits
from lora_chat.processes.failure import (
    Failure,
    OtherProcessError,
    describe_disappearance,
    describe_end,
    record_failure,
)
from lora_chat.processes.peers import Peer, describe_this_process, remove_leftovers
from lora_chat.processes.rank import Rank
from lora_chat.processes.watch import Watch
from lora_chat.system.activity import note_activity
from lora_chat.system.signals import SignalInterrupt, raise_on_signals

LIMITS = WatchLimits(beat=0.02, silence=0.3, stall=0.3, interrupt=0.2, grace=30, root_cause=0.3)
HERE = describe_this_process()


@pytest.fixture
def start(monkeypatch):
    """Return a function that starts the watches of a group whose processes are this one."""
    monkeypatch.setattr(watch_module, "clone_store", lambda store: store)
    handler = signal.getsignal(signal.SIGUSR1)
    watches = []

    def begin(count, peers=None, limits=LIMITS, running=None):
        store = dist.HashStore()
        for number in range(count):
            store.set(f"beat/{number}", "0 0 works")
        peers = peers or [HERE] * count
        group = [Watch(Rank(number, count), store, peers, limits) for number in range(count)]
        watches.extend(group)
        for watch in group if running is None else [group[number] for number in running]:
            watch.start()
        return group

    yield begin
    for watch in watches:
        watch._state = LEFT
        if watch._thread.is_alive():
            watch.stop()
    signal.signal(signal.SIGUSR1, handler)
    raise_on_signals()
    for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        signal.signal(number, default)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def wait_for_failure(watch, seconds=5):
    """Return the failure, while the main thread is as busy as in a collective."""
    deadline = time.monotonic() + seconds
    while watch.failure is None and time.monotonic() < deadline:
        time.sleep(0.01)
    watch._noticed = True
    return watch.failure


def test_processes_that_live_and_work_have_no_failure(start):
    first, second = start(2)
    with first.waiting():
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            note_activity()
            time.sleep(0.02)
            first.check()
    assert first.failure is None and second.failure is None
    first.leave()
    second.leave()
    time.sleep(0.1)
    assert first.have_all_left() and second.have_all_left()


def test_the_first_failure_ends_all_processes(start):
    first, second = start(2)
    own = second.fail(Failure(1, 3, "Line 3 is not JSON."))
    assert first.fail(Failure(0, 1, "later")) == own == wait_for_failure(first)
    with pytest.raises(OtherProcessError) as error:
        first.check()
    assert error.value.exit_code == 3
    assert first.failure.format(2, 0) == "Error: Process 2 of 2: Line 3 is not JSON."
    assert first.failure.format(2, 1) == "Error: Line 3 is not JSON."


def test_a_signal_of_one_process_stops_all_as_if_they_had_received_it(start):
    first, second = start(2)
    second.fail(Failure(1, 143, "Stopped.", label="", signal_number=15))
    wait_for_failure(first)
    with pytest.raises(SignalInterrupt) as error:
        first.check()
    assert error.value.number == 15


@pytest.mark.parametrize(
    ("peer", "problem"),
    [
        (Peer(HERE.machine, 2**22 + 1, "17"), "Process 2 of 2 ended without a message"),
        (replace(HERE, started="17"), "Process 2 of 2 ended without a message"),
        (Peer("another machine", HERE.pid, "17"), "Process 2 of 2 has not answered for 0 s"),
    ],
    ids=["no such process", "its number has a new owner", "silent on another machine"],
)
def test_a_lost_process_is_noticed(start, peer, problem):
    first = start(2, [HERE, peer], running=[0])[0]
    failure = wait_for_failure(first)
    assert failure.text.startswith(problem)
    assert failure.exit_code == 11 and "--resume" in failure.text


def test_only_a_process_for_which_others_wait_must_make_progress(start):
    first, second = start(2, limits=replace(LIMITS, silence=10))
    with first.waiting():
        failure = wait_for_failure(first)
    assert failure.text.startswith("Process 2 of 2 has made no progress for 0.005 minutes")
    assert wait_for_failure(second) == failure


def test_processes_that_hang_inside_of_their_work_end(start):
    first, second = start(2, limits=replace(LIMITS, silence=10))
    assert wait_for_failure(first).text.startswith("No process has made progress for 0.005 minutes")
    assert wait_for_failure(second) == first.failure


def test_processes_that_wait_for_each_other_end(start):
    first, second = start(2, limits=replace(LIMITS, silence=10))
    with first.waiting(), second.waiting():
        assert "wait for each other" in wait_for_failure(first).text


def test_a_process_that_left_early_ends_those_that_wait(start):
    first, second = start(2, limits=replace(LIMITS, silence=10))
    second.leave()
    with first.waiting():
        assert "ended its work while others wait" in wait_for_failure(first).text


def test_a_main_thread_that_does_not_look_is_interrupted(start):
    first, second = start(2, limits=replace(LIMITS, stall=10))
    second.fail(Failure(1, 3, "Line 3 is not JSON."))
    with pytest.raises(SignalInterrupt):
        time.sleep(5)  # stands for a long call
    assert first.failure.exit_code == 3


def test_a_process_that_was_suspended_itself_blames_nobody(start, monkeypatch):
    first, second = start(2)
    time.sleep(0.1)
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 3600)
    time.sleep(0.2)
    assert first.failure is None and second.failure is None


def test_a_lost_store_is_a_failure(start):
    first = start(2, running=[])[0]

    class LostStore:
        def __getattr__(self, name):
            raise RuntimeError("Connection was likely closed")

    first._store = LostStore()
    first.start()
    assert "lost its connection" in wait_for_failure(first).text
    assert first.have_all_left()


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"rank": 0}',
        '{"rank": 0, "exit_code": 0, "text": "", "label": "", "signal_number": 0, "is_named": false}',
        '{"rank": "0", "exit_code": 3, "text": "", "label": "", "signal_number": 0, "is_named": false}',
        '{"rank": 0, "exit_code": 3, "text": "", "label": "", "signal_number": 0, "is_named": false, "more": 1}',
        "not json",
        "9" * 200_000,
    ],
)
def test_a_store_is_not_trusted(text):
    with pytest.raises(ValueError):
        Failure.from_json(text)


def test_a_failure_survives_the_store():
    store = dist.HashStore()
    failure = describe_end(2, 4, -signal.SIGKILL)
    assert record_failure(store, failure) == failure
    assert record_failure(store, describe_disappearance(1, 4)) == failure
    long = Failure(0, 1, "a" * 100_000)
    assert len(Failure.from_json(long.to_json()).text) == 20_000


@pytest.mark.parametrize(
    ("code", "exit_code", "text"),
    [
        (-signal.SIGKILL, 11, "Process 2 of 2 was ended by SIGKILL, usually because the system ran out of memory"),
        (-signal.SIGSEGV, 11, "Process 2 of 2 was ended by SIGSEGV, a crash in native code"),
        (-signal.SIGXCPU, 11, "Process 2 of 2 was ended by SIGXCPU."),
        (-250, 11, "Process 2 of 2 was ended by signal 250."),
        (-signal.SIGTERM, 143, "Stopped"),
        (7, 7, "Process 2 of 2 ended with exit code 7 before its work was done."),
    ],
)
def test_the_end_of_a_process_is_explained(code, exit_code, text):
    failure = describe_end(1, 2, code)
    assert failure.exit_code == exit_code
    assert failure.text.startswith(text)


def test_only_own_folders_of_an_ended_process_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    target = tmp_path / "target"
    for folder in (target, tmp_path / "lora-chat-process-77-a", tmp_path / "lora-chat-process-771-a"):
        folder.mkdir()
        (folder / "file").touch()
    (tmp_path / "lora-chat-process-77-link").symlink_to(target)
    remove_leftovers(77)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["lora-chat-process-77-link", "lora-chat-process-771-a", "target"]
    assert (target / "file").exists()
