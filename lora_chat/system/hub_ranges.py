"""Parts of files of the hub, read without storing the files; every response passes `hub_guard`."""

import re
import time

from lora_chat.system.hub_answers import refused_response
from lora_chat.system.hub_client import HubFailureError, RepoType, file_url, hub_request

_MAX_FAILURES = 8
"""Failed requests without a new byte between them after which reading stops."""
_FIRST_WAIT_SECONDS, _MAX_WAIT_SECONDS = 1.0, 30.0
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")


def read_range(name: str, file: str, commit: str, size: int, begin: int, count: int, kind: RepoType) -> bytes:
    """Return `count` bytes of a file of a commit, whose size is `size`, from an offset.

    A connection that breaks is continued at the byte where it stopped. Raise HubFailureError if the hub does not answer
    after several attempts, and HubResponseError for a part that was not requested.
    """
    received = bytearray()
    failures = 0
    while len(received) < count:
        before = len(received)
        try:
            with hub_request({file: size}, name, commit, kind):
                _receive(received, file_url(name, file, commit, kind), size, begin, count)
        except HubFailureError as error:
            failures = failures + 1 if len(received) == before else 1
            if error.reason != "unreachable" or failures >= _MAX_FAILURES:
                raise
            time.sleep(min(_MAX_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2 ** (failures - 1)))
    return bytes(received)


def _receive(received: bytearray, url: str, size: int, begin: int, count: int) -> None:
    """Append the bytes that are missing, as far as the connection lasts."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]

    first, before = begin + len(received), len(received)
    headers = build_hf_headers() | {"Range": f"bytes={first}-{begin + count - 1}"}
    with get_session().stream("GET", url, headers=headers) as response:
        hf_raise_for_status(response)
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        is_part = response.status_code == 206
        if is_part and (not match or int(match[1]) != first or int(match[3]) != size):
            raise refused_response("it is another part of a file than was requested")
        if not is_part and (response.status_code != 200 or first):
            raise refused_response("it is a whole file, but a part of it was requested")
        for part in response.iter_raw():
            received += part[: count - len(received)]
            if len(received) == count:
                return
    if len(received) == before:
        raise HubFailureError("unreachable", "the connection ended without a byte")
