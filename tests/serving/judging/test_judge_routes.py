"""The judge's routes need a key, and no answer before a vote depends on which model is on the left."""

import json
import threading
import time

import pytest

pytest.importorskip("starlette")

from judge_models import ScriptedGenerator, ScriptedModels, make_plan
from starlette.testclient import TestClient

from lora_chat.errors import UsageError
from lora_chat.runs.judgement_log import read_judgements
from lora_chat.serving.app import create_app
from lora_chat.serving.judging import judge_session, routes
from lora_chat.serving.judging.judge_desk import NO_RUN, JudgeDesk
from lora_chat.serving.judging.judge_requests import MAX_BODY_BYTES
from lora_chat.serving.judging.judge_session import JudgeSession
from lora_chat.serving.server_options import ServerOptions

ADDRESS = "http://127.0.0.1:8000"


class Judge:
    """A client of the judge page."""

    def __init__(self, session, generator, **desk_options):
        self.desk = JudgeDesk(lambda: session, is_only_page=True, **desk_options)
        self.desk.announce(ADDRESS)
        app = create_app(ScriptedModels(generator), ServerOptions(), judging=self.desk)
        self.client = TestClient(app, base_url=ADDRESS)
        self.headers = {}

    def enter(self):
        token = self.desk.access.fragment.partition("=")[2]
        answer = self.post("enter", {"token": token})
        self.headers["x-judge-key"] = answer.json()["key"]
        return self

    def get(self, route, **headers):
        return self.client.get(f"/judge/{route}", headers=self.headers | headers)

    def post(self, route, body, **headers):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = self.headers | {"content-type": "application/json"} | headers
        return self.client.post(f"/judge/{route}", content=content, headers=headers)


@pytest.fixture
def generator(tiny_tokenizer):
    return ScriptedGenerator(tiny_tokenizer)


@pytest.fixture
def make_judge(tmp_path, tiny_tokenizer, generator):
    def make(name="run", prompts=4, secret=None):
        (tmp_path / name).mkdir(exist_ok=True)
        plan = make_plan(tmp_path / name, tiny_tokenizer, prompts)
        return Judge(JudgeSession(plan, ScriptedModels(generator), secret=secret), generator)

    return make


def find_secrets(make_plan_of):
    """Return two secrets that give the first pairs opposite orders."""
    by_order = {}
    for number in range(200):
        session = make_plan_of(bytes([number]))
        order = "".join(session._show(session._pairs.find(prompt)).left for prompt in session.plan.prompts)
        if (other := order.translate(str.maketrans("ab", "ba"))) in by_order:
            return by_order[other], bytes([number])
        by_order[order] = bytes([number])
    raise AssertionError


def test_no_answer_before_a_vote_shows_the_order(make_judge, tmp_path, tiny_tokenizer, generator, monkeypatch):
    monkeypatch.setattr(judge_session.secrets, "token_urlsafe", lambda _: f"id-{next(numbers)}")
    numbers = iter(range(10_000))
    plan = make_plan(tmp_path, tiny_tokenizer, 4)
    chosen = find_secrets(lambda secret: JudgeSession(plan, ScriptedModels(generator), secret=secret))
    answers = []
    for number, secret in enumerate(chosen):
        numbers = iter(range(10_000))
        judge = make_judge(f"run-{number}", secret=secret).enter()
        made = [judge.get("state")]
        for _ in range(4):
            pair = judge.get("next")
            name = pair.json()["pair"]
            made += [pair, judge.get("state"), judge.post("vote", {"pair": name, "choice": "tie"})]
        made += [judge.post("undo", {}), judge.get("next"), judge.get("state")]
        answers.append(made)
    swapped = 0
    for first, second in zip(*answers, strict=True):
        assert first.headers == second.headers
        assert first.status_code == second.status_code == 200
        one, two = first.json(), second.json()
        if "left" in one:
            assert one["left"] == two["right"] and one["right"] == two["left"] and one["left"] != one["right"]
            two["left"], two["right"] = two["right"], two["left"]
            swapped += 1
        assert json.dumps(one) == json.dumps(two)
    assert swapped == 5


def test_a_pair_has_neither_names_nor_digests(make_judge):
    judge = make_judge().enter()
    answer = judge.get("next")
    assert set(answer.json()) == {"state", "progress", "pair", "number", "context", "left", "right"}
    for secret in ("run-1", "base", "1" * 64, "adapter", '"a"', '"b"', "winner"):
        assert secret not in answer.text
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-type"] == "application/json"
    voted = judge.post("vote", {"pair": answer.json()["pair"], "choice": "left"})
    assert set(voted.json()) == {"stored", "progress"}


ROUTES = [("get", "state"), ("get", "next"), ("post", "vote"), ("post", "undo"), ("post", "finish")]


@pytest.mark.parametrize(("method", "route"), ROUTES)
@pytest.mark.parametrize("key", [None, "", "x", "\u00e9", "0" * 5000])
def test_every_route_needs_the_key(make_judge, method, route, key):
    judge = make_judge()
    judge.headers = {"x-judge-key": key.encode("latin-1")} if key is not None else {}
    answer = judge.get(route) if method == "get" else judge.post(route, {})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "judge_key_needed"
    assert not judge.desk.find_session().plan.run.judgements.exists()


def test_a_link_works_once_and_the_next_is_shown(make_judge, messages):
    judge = make_judge()
    links = [message.split()[1] for message in messages]
    assert links == [judge.desk.link] and links[0].startswith(f"{ADDRESS}/#judge=")
    token = links[0].partition("=")[2]
    first = judge.post("enter", {"token": token}).json()["key"]
    spent = judge.post("enter", {"token": token})
    assert (spent.status_code, spent.json()["error"]["code"]) == (403, "judge_link_spent")
    assert any(judge.desk.link in message for message in messages[1:]) and judge.desk.link != links[0]
    second = judge.enter().headers["x-judge-key"]
    for key in (first, second):  # a second tab does not end the first
        judge.headers["x-judge-key"] = key
        assert judge.get("state").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9"},
        {"host": "evil.example"},
        {"sec-fetch-site": "cross-site"},
    ],
)
def test_another_page_cannot_vote(make_judge, headers):
    judge = make_judge().enter()
    name = judge.get("next").json()["pair"]
    answer = judge.post("vote", {"pair": name, "choice": "left"}, **headers)
    assert answer.status_code in (400, 403, 421)
    assert not judge.desk.find_session().plan.run.judgements.exists()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        ({"pair": "x"}, 400),
        ({"pair": "x", "choice": "best"}, 400),
        ({"pair": "x", "choice": "left", "winner": "a"}, 400),
        ({"pair": 1, "choice": "left"}, 400),
        ({"pair": "../x", "choice": "left"}, 400),
        ({"pair": "x" * 200, "choice": "left"}, 400),
        ({"pair": "x", "choice": "left", "note": "n" * 2001}, 400),
        ({"pair": "x", "choice": "left", "note": "\ud800"}, 400),
        ({"pair": "x", "choice": "left", "note": None}, 400),
        ({"pair": "x", "choice": "left"}, 409),
        (b" " * (MAX_BODY_BYTES + 1), 413),
    ],
)
def test_a_malformed_vote_is_refused(make_judge, body, status):
    judge = make_judge().enter()
    judge.get("next")
    answer = judge.post("vote", body)
    assert answer.status_code == status
    assert not judge.desk.find_session().plan.run.judgements.exists()


def test_ten_pairs_are_judged_with_notes_and_revealed_at_the_end(make_judge):
    judge = make_judge(prompts=10).enter()
    hostile = "<script>alert(1)</script>\u202e\n{{7*7}} %s"
    while (pair := judge.get("next").json())["state"] == "pair":
        choice = "left" if "trained" in pair["left"]["text"] else "right"
        assert judge.post("vote", {"pair": pair["pair"], "choice": choice, "note": hostile}).status_code == 200
    result = judge.post("finish", {}).json()
    assert (result["wins"], result["losses"], result["votes"], result["word"]) == (10, 0, 10, "better")
    assert result["names"] == {"a": "run-1", "b": "base"}
    assert len(result["reveal"]) == 10
    assert "script" not in json.dumps(result)  # notes stay in the run
    run = judge.desk.find_session().plan.run
    assert [record.note for record in read_judgements(run.judgements).records] == [hostile] * 10
    assert judge.get("state").json()["finished"] is True
    assert judge.post("vote", {"pair": result["reveal"][0]["left"], "choice": "tie"}).status_code == 409


def test_the_page_asks_again_while_replies_are_written(make_judge, generator, monkeypatch):
    monkeypatch.setattr(routes, "_WAIT_SECONDS", 0.05)
    monkeypatch.setattr(routes, "_POLL_SECONDS", 0.01)
    generator.is_slow = True
    judge = make_judge().enter()
    assert judge.get("next").json()["state"] == "waiting"
    monkeypatch.setattr(routes, "_WAIT_SECONDS", 60.0)
    threading.Timer(0.1, generator.release).start()
    assert judge.get("next").json()["state"] == "pair"


def test_a_server_that_stops_does_not_wait_for_replies(make_judge, generator):
    generator.is_slow = True
    judge = make_judge().enter()
    guard = judge.client.app
    threading.Timer(0.2, lambda: setattr(guard, "is_stopping", True)).start()
    begin = time.monotonic()
    assert judge.get("next").json()["state"] == "waiting"
    assert time.monotonic() - begin < 10


def test_a_full_disk_is_a_failed_request_and_not_a_vote(make_judge, monkeypatch):
    judge = make_judge().enter()
    name = judge.get("next").json()["pair"]

    def fail(*_):
        raise UsageError("no space")

    monkeypatch.setattr(judge_session, "append_judgement", fail)
    answer = judge.post("vote", {"pair": name, "choice": "left"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_saved")
    assert judge.get("state").json()["judged"] == 0


def test_a_judging_server_has_no_other_routes(make_judge):
    judge = make_judge()
    page = judge.client.get("/")
    assert "judge_main.js" in page.text and 'id="tab-chat"' not in page.text
    assert "content-security-policy" in page.headers
    assert judge.client.get("/v1/models").status_code == 404
    assert judge.client.post("/v1/chat/completions", json={}).status_code == 404


def test_a_server_without_a_run_says_why_nothing_can_be_judged(generator):
    client = TestClient(create_app(ScriptedModels(generator), ServerOptions()), base_url=ADDRESS)
    assert client.get("/judge/state").json() == {"available": False, "reason": NO_RUN}
    assert 'id="tab-chat"' in client.get("/").text


def test_an_error_of_the_run_is_the_reason(generator):
    def fail():
        raise UsageError("the run has no held-out prompts")

    desk = JudgeDesk(fail)
    client = TestClient(create_app(ScriptedModels(generator), ServerOptions(), judging=desk), base_url=ADDRESS)
    key = desk.access.exchange(desk.access.fragment.partition("=")[2])
    headers = {"x-judge-key": key}
    assert client.get("/judge/state").status_code == 403
    assert "no held-out" in client.get("/judge/state", headers=headers).json()["reason"]
    assert client.get("/judge/next", headers=headers).status_code == 409
