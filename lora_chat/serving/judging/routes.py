"""The routes below /judge/, which only a page with a key may use."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from lora_chat.errors import LoraChatError, first_line
from lora_chat.serving.api_errors import ApiError
from lora_chat.serving.judging.judge_desk import JudgeDesk, JudgeUnavailableError
from lora_chat.serving.judging.judge_requests import KEY_HEADER, EmptyRequest, EnterRequest, VoteRequest, read_request
from lora_chat.serving.judging.judge_session import JudgeSession, ShownPair, VoteRefusedError

_WAIT_SECONDS = 20.0
"""Longest time of an answer while replies are generated; the page asks again."""
_POLL_SECONDS = 0.1
_NO_STORE = {"Cache-Control": "no-store"}
_KEY_NEEDED = (
    "The judge page opens with the link on the terminal of the server, which works once. After that, use the newest "
    "link there."
)
_Result = TypeVar("_Result")


async def enter(request: Request) -> JSONResponse:
    """Exchange the token of a link for a key."""
    body = await read_request(request, EnterRequest)
    key = _get_desk(request).access.exchange(body.token)
    if key is None:
        raise ApiError(403, _KEY_NEEDED, "permission_error", code="judge_link_spent")
    return _answer({"key": key})


async def show_state(request: Request) -> JSONResponse:
    """Return how far the judge is, or why nothing can be judged."""
    desk = _get_desk(request)
    if not desk.is_available:
        return _answer({"available": False, "reason": desk.reason})
    _check_key(request)
    try:
        session = await asyncio.to_thread(desk.find_session)
    except JudgeUnavailableError as error:
        return _answer({"available": False, "reason": str(error)})
    return _answer({"available": True, **await _run(session.describe_progress)})


async def show_next(request: Request) -> JSONResponse:
    """Return the next pair when both replies are complete, or after some seconds that they are not."""
    session = await _open(request)
    end = time.monotonic() + _WAIT_SECONDS
    while (shown := await _run(session.next_pair)) == "waiting" and time.monotonic() < end:
        if request.app.state.guard.is_stopping or await request.is_disconnected():
            break
        await asyncio.sleep(_POLL_SECONDS)
    progress = await _run(session.describe_progress)
    if isinstance(shown, ShownPair):
        return _answer({"state": "pair", "progress": progress, **shown.as_dict()})
    return _answer({"state": shown, "progress": progress})


async def vote(request: Request) -> JSONResponse:
    """Store a vote."""
    session = await _open(request)
    body = await read_request(request, VoteRequest)
    await _run(lambda: session.vote(body.pair, body.choice, body.note))
    return _answer({"stored": True, "progress": await _run(session.describe_progress)})


async def undo(request: Request) -> JSONResponse:
    """Withdraw the last vote."""
    session = await _open(request)
    await read_request(request, EmptyRequest)
    await _run(session.undo)
    return _answer({"undone": True, "progress": await _run(session.describe_progress)})


async def finish(request: Request) -> JSONResponse:
    """End the judgement and return the result with the names."""
    session = await _open(request)
    await read_request(request, EmptyRequest)
    result = await _run(session.finish)
    from lora_chat.pipeline.report_runs import try_write_report

    await asyncio.to_thread(try_write_report, session.plan.run)
    return _answer(result)


def _get_desk(request: Request) -> JudgeDesk:
    desk: JudgeDesk = request.app.state.judging
    return desk


def _check_key(request: Request) -> None:
    """Raise ApiError for a request without a key."""
    if not _get_desk(request).access.is_key(request.headers.get(KEY_HEADER, "")):
        raise ApiError(403, _KEY_NEEDED, "permission_error", code="judge_key_needed")


async def _open(request: Request) -> JudgeSession:
    """Return the session for a request with a key. Raise ApiError without one, or if there is nothing to judge."""
    _check_key(request)
    try:
        return await asyncio.to_thread(_get_desk(request).find_session)
    except JudgeUnavailableError as error:
        raise ApiError(409, str(error), code="nothing_to_judge") from error


async def _run(function: Callable[[], _Result]) -> _Result:
    """Run a function of the session on another thread, because it may read and write files."""
    try:
        return await asyncio.to_thread(function)
    except VoteRefusedError as error:
        raise ApiError(409, str(error), code="vote_refused") from error
    except LoraChatError as error:
        raise ApiError(503, f"Nothing was saved: {first_line(error)}", "server_error", code="not_saved") from error


def _answer(content: dict[str, object]) -> JSONResponse:
    return JSONResponse(content, headers=_NO_STORE)


ROUTES = (
    Route("/judge/enter", enter, methods=["POST"]),
    Route("/judge/state", show_state, methods=["GET"]),
    Route("/judge/next", show_next, methods=["GET"]),
    Route("/judge/vote", vote, methods=["POST"]),
    Route("/judge/undo", undo, methods=["POST"]),
    Route("/judge/finish", finish, methods=["POST"]),
)
