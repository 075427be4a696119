"""Load on a real server: many clients, honest and rude, while memory, statuses and greedy replies are compared.

python benchmarks/serving/load.py THING... [--base BASE] [--clients 64] [--seconds 60] [--json FILE]

Exits with 1 if an answer has another status than 200, 4xx, 429 and 503, if memory grows, if a greedy reply differs from
that of `lora-chat chat`, if the server counts a fault of its own, or if it does not end with exit code 0.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from actions import ACTIONS, NEW_TOKENS, QUESTIONS, Load
from expected_replies import collect_replies
from server_process import ServerProcess

SAMPLE_SECONDS = 0.5
WARM_SHARE = 1 / 3
"""Time of the first load as a share of the second one."""
REST_SECONDS = 12.0
"""Time after which the server has returned freed memory to the system, which it does every ten seconds."""
MAX_GROWTH_SHARE, SHORT_SECONDS = 0.02, 30
"""Largest growth of memory at rest, as a share of memory, and the time of a load that is too short to measure it."""
BARE_BASE = "base"
"""Name of the base without an adapter."""
CLOSED = 0
"""Status of a connection that was closed without an answer."""


@dataclass(frozen=True)
class Memory:
    """Resident memory of the server in bytes."""

    before: int
    """Memory at rest after a first, shorter load, which fills caches."""
    after: int
    """Memory at rest after the load."""
    samples: list[int]
    """Memory during the load."""

    @property
    def growth_share(self) -> float:
        """Return the growth from rest to rest as a share of memory."""
        return (self.after - self.before) / self.before


def run_load(server: ServerProcess, load: Load, clients: int, seconds: float) -> Memory:
    """Put a first and a second load on the server, and return its memory."""
    asyncio.run(run_clients(server, load, clients, seconds * WARM_SHARE))
    time.sleep(REST_SECONDS)
    before = server.resident_bytes()
    samples = asyncio.run(run_clients(server, load, clients, seconds))
    time.sleep(REST_SECONDS)
    return Memory(before, server.resident_bytes(), samples)


async def run_clients(server: ServerProcess, load: Load, clients: int, seconds: float) -> list[int]:
    """Let the clients act until the time is over, and return the memory of the server over time."""
    end = time.monotonic() + seconds
    samples: list[int] = []

    async def watch() -> None:
        while time.monotonic() < end:
            samples.append(server.resident_bytes())
            await asyncio.sleep(SAMPLE_SECONDS)

    async def act(number: int) -> None:
        chance = random.Random(number)
        while time.monotonic() < end:
            action = chance.choices(list(ACTIONS), list(ACTIONS.values()))[0]
            try:
                answer = await action(load, chance)
            except (OSError, asyncio.TimeoutError) as error:
                load.mismatches.append(f"{action.__name__}: {type(error).__name__}: {error}")
                continue
            load.count(action.__name__, answer.status)
            if answer.status in (429, 503):
                if "retry-after" not in answer.headers:
                    load.mismatches.append(f"{action.__name__}: {answer.status} without Retry-After")
                await asyncio.sleep(chance.random())

    await asyncio.gather(watch(), *map(act, range(clients)))
    return samples


def is_allowed(action: str, status: int) -> bool:
    """Return whether an answer may have this status. Only clients that leave or send garbage may get none."""
    if status in (200, 429, 503, -1) or 400 <= status < 500:
        return True
    return status == CLOSED and action in ("send_too_much", "send_malformed")


def main() -> int:
    """Run the load, print and write the figures, and return 1 if one is wrong."""
    parser = argparse.ArgumentParser(description="Put load on a server and check its answers.")
    parser.add_argument("things", nargs="+", help="runs, parcels, adapters or a base")
    parser.add_argument("--base", help="base of the adapters")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--serve-option", action="append", default=[], metavar="WORD", help="word for lora-chat serve")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()

    words = [*options.things, *(["--base", options.base] if options.base else []), *options.serve_option]
    by_thing = {
        Path(thing).name: collect_replies(thing, QUESTIONS, NEW_TOKENS, options.base) for thing in options.things
    }
    with ServerProcess(words) as server:
        replies = {name if name in server.models else BARE_BASE: texts for name, texts in by_thing.items()}
        if len(replies) < len(options.things):
            raise SystemExit(f"Not everything is served:\n{server.messages()}")
        load = Load(server.port, list(replies))
        load.expected = {(name, text): reply for name, by_text in replies.items() for text, reply in by_text.items()}
        memory = run_load(server, load, options.clients, options.seconds)
        metrics = server.metrics()
        quiet = {name: metrics[f"lora_chat_{name}"] for name in ("requests_now", "running_replies", "waiting_replies")}
        faults = server.metric("lora_chat_faults_total")
    figures = summarize(load, memory, options.clients, options.seconds)
    figures |= {"faults": faults, "after_load": quiet, "exit_code": server.exit_code, "cpus": os.cpu_count()}
    problems = find_problems(load, memory, figures, options.seconds)
    figures["problems"] = problems
    print(json.dumps(figures, indent=2))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    if problems:
        print(server.messages()[-3000:], file=sys.stderr)
    return 1 if problems else 0


def summarize(load: Load, memory: Memory, clients: int, seconds: float) -> dict[str, object]:
    """Return the figures of a load."""
    totals: dict[str, int] = {}
    for by_status in load.statuses.values():
        for status, number in by_status.items():
            totals[str(status)] = totals.get(str(status), 0) + number
    return {
        "clients": clients,
        "seconds": seconds,
        "requests": sum(totals.values()),
        "statuses": totals,
        "by_action": {action: {str(s): n for s, n in sorted(by.items())} for action, by in load.statuses.items()},
        "compared_replies": load.compared,
        "mismatches": len(load.mismatches),
        "reply_seconds": quantiles(load.seconds),
        "first_text_seconds": quantiles(load.first_text_seconds),
        "memory_mb": {name: getattr(memory, name) / 1e6 for name in ("before", "after")},
        "largest_memory_mb": max(memory.samples) / 1e6,
        "memory_mb_over_time": [round(size / 1e6) for size in memory.samples[:: max(1, len(memory.samples) // 24)]],
        "memory_growth_share": memory.growth_share,
    }


def quantiles(values: list[float]) -> dict[str, float]:
    """Return median and 95th percentile."""
    if len(values) < 2:
        return {}
    return {"median": statistics.median(values), "p95": statistics.quantiles(values, n=20)[-1]}


def find_problems(load: Load, memory: Memory, figures: dict[str, object], seconds: float) -> list[str]:
    """Return everything that must not be."""
    problems = [
        f"{number} answers of {action} have the status {status}"
        for action, by_status in load.statuses.items()
        for status, number in by_status.items()
        if not is_allowed(action, status)
    ]
    problems += load.mismatches[:10]
    if memory.growth_share > MAX_GROWTH_SHARE and seconds >= SHORT_SECONDS:
        problems.append(f"memory at rest grows by {memory.growth_share:.1%}")
    if figures["faults"]:
        problems.append(f"the server counted {figures['faults']} faults of its own")
    if figures["exit_code"] != 0:
        problems.append(f"the server ended with {figures['exit_code']}")
    after = figures["after_load"]
    assert isinstance(after, dict)
    if after["requests_now"] != 1 or after["running_replies"] or after["waiting_replies"]:
        problems.append(f"work remains after the load: {after}")
    if not load.compared:
        problems.append("no reply was compared")
    return problems


if __name__ == "__main__":
    sys.exit(main())
