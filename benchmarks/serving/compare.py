"""Tokens per second and time to the first token of several servers, side by side, one measured at a time.

python benchmarks/serving/compare.py --tokenizer FOLDER --ours BASE --ours RUN --model base NAME
    [--transformers PYTHON --folder FOLDER] [--llama-server PROGRAM] [--llama-cpp-python PYTHON] [--gguf FILE]
    [--clients 1 4 16] [--rounds 3] [--new-tokens 64] [--json FILE]

All servers start first. In every round each of them answers the same new prompts, in an order that changes, while the
others are stopped with SIGSTOP, so that they take no time of the processor. Ratios are made within a round, because the
speed of a machine changes between rounds. Replies are greedy and streamed; their tokens are counted with one tokenizer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import platform
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from transformers import AutoTokenizer

START_SECONDS, REQUEST_SECONDS = 300, 600
TOPICS = (
    *("a lighthouse", "a train in winter", "two cats", "an old map", "a storm", "the first snow", "a lost letter"),
    *("a bakery", "the sea", "a clock", "a mountain hut", "a violin", "a garden", "a desert", "a night bus", "a kite"),
)
REQUESTS_OF_A_CLIENT = {1: 3}


@dataclass(frozen=True)
class Measurement:
    """The figures of one server with one number of clients in one round."""

    server: str
    clients: int
    round: int
    tokens: int
    seconds: float
    first_token_seconds: float
    """Median over the requests."""
    failures: int

    @property
    def rate(self) -> float:
        """Return the tokens per second of all clients together."""
        return self.tokens / self.seconds


class Server:
    """A server process on a free port of this machine, stopped except while it is measured."""

    def __init__(self, name: str, command: Sequence[str], model: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.name, self.model = name, model
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the process
        words = [word.replace("PORT", str(self.port)) for word in command]
        self._process = subprocess.Popen(words, stdout=self._log, stderr=self._log)  # noqa: S603
        self._wait()
        self.suspend()

    def _wait(self) -> None:
        """Wait until the server answers."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                    return
            except urllib.error.HTTPError as error:
                if error.code == 404:  # a server without this route
                    return
                time.sleep(0.5)  # llama-server answers 503 while it loads
            except OSError:
                time.sleep(0.5)
        self._log.seek(0)
        raise SystemExit(f"{self.name} did not start:\n{self._log.read().decode(errors='replace')[-3000:]}")

    def _processes(self) -> list[psutil.Process]:
        process = psutil.Process(self._process.pid)
        return [process, *process.children(recursive=True)]

    def suspend(self) -> None:
        """Stop the process until `resume`."""
        for process in self._processes():
            process.suspend()

    def resume(self) -> None:
        """Let the process continue."""
        for process in self._processes():
            process.resume()

    def end(self) -> None:
        """End the process."""
        self.resume()
        for process in self._processes():
            process.terminate()
        self._process.wait(60)


async def ask(port: int, model: str, prompt: str, new_tokens: int) -> tuple[str, float]:
    """Return the text of a streamed reply, and the seconds until its first text."""
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": new_tokens}
    content = json.dumps({**body, "temperature": 0, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{head}Content-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode() + content)
    await writer.drain()
    text, first = "", 0.0
    while line := await _read_line(reader):
        if not line.startswith(b"data: {"):
            continue
        for choice in json.loads(line[6:]).get("choices", []):
            piece = choice.get("delta", {}).get("content") or ""
            first = first or (time.perf_counter() - started if piece else 0.0)
            text += piece
    writer.close()
    return text, first


async def _read_line(reader: asyncio.StreamReader) -> bytes:
    """Return the next line, empty at the end or where the connection breaks off."""
    try:
        return await asyncio.wait_for(reader.readline(), REQUEST_SECONDS)
    except ConnectionError:
        return b""


async def measure(server: Server, clients: int, number: int, new_tokens: int, tokenizer: Any) -> Measurement:
    """Let clients ask at the same time, each one request after another."""
    replies: list[tuple[str, float]] = []

    async def client(index: int) -> None:
        for request in range(REQUESTS_OF_A_CLIENT.get(clients, 1)):
            topic = TOPICS[(index + request) % len(TOPICS)]
            prompt = f"Story {number}.{index}.{request}: write a very long story about {topic}, with many details."
            replies.append(await ask(server.port, server.model, prompt, new_tokens))

    started = time.perf_counter()
    await asyncio.gather(*(client(index) for index in range(clients)))
    seconds = time.perf_counter() - started
    good = [(text, first) for text, first in replies if text]
    tokens = sum(len(tokenizer.encode(text, add_special_tokens=False)) for text, _ in good)
    first = statistics.median([first for _, first in good] or [0.0])
    return Measurement(server.name, clients, number, tokens, seconds, first, len(replies) - len(good))


def format_table(measured: Sequence[Measurement], servers: Sequence[str], clients: Sequence[int]) -> str:
    """Format medians with ranges; ratios are to the first server, made in each round."""
    heads = [f"{n} client{'s' * (n > 1)}: tokens/s | {servers[0]} is x | first token, s" for n in clients]
    lines = [f"| | {' | '.join(heads)} |", f"|---|{'---|---|---|' * len(clients)}"]
    for name in servers:
        cells = []
        for count in clients:
            own = [m for m in measured if (m.server, m.clients) == (name, count)]
            ours = {m.round: m.rate for m in measured if (m.server, m.clients) == (servers[0], count)}
            ratios = [ours[m.round] / m.rate for m in own if m.tokens]
            ratio = "1" if name == servers[0] else _format_range(ratios, ".2f")
            cells += [_format_range([m.rate for m in own], ".1f"), ratio]
            cells.append(_format_range([m.first_token_seconds for m in own], ".2f"))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _format_range(values: Sequence[float], form: str) -> str:
    if not values:
        return "-"
    return f"{statistics.median(values):{form}} ({min(values):{form}}..{max(values):{form}})"


def start_servers(options: argparse.Namespace) -> list[Server]:
    """Start all servers that are named, ours first."""
    here = str(Path(sys.executable).parent / "lora-chat")
    servers = [
        Server(f"lora_chat ({model})", [here, "serve", *words, "--port", "PORT"], model)
        for words, model in zip(options.ours, options.model, strict=True)
    ]
    if options.transformers:
        cli = [options.transformers, "-c", "from transformers.cli.transformers import main; main()", "serve"]
        words = [*cli, options.folder, "--port", "PORT", "--host", "127.0.0.1", "--device", "cpu"]
        servers.append(Server("transformers serve", words, options.folder))
        # Otherwise it takes most of the free memory for keys and values.
        batching = [*words, "--continuous-batching", "--cb-num-blocks", "128"]
        servers.append(Server("transformers serve --continuous-batching", batching, options.folder))
    if options.llama_server:
        words = [options.llama_server, "-m", options.gguf, "--port", "PORT", "--host", "127.0.0.1"]
        words += ["-t", str(psutil.cpu_count()), "-np", "16", "-c", "8192", "--jinja"]
        servers.append(Server(f"llama-server ({Path(options.gguf).stem})", words, "any"))
    if options.llama_cpp_python:
        words = [options.llama_cpp_python, "-m", "llama_cpp.server", "--model", options.gguf, "--port", "PORT"]
        words += ["--n_ctx", "2048", "--n_threads", str(psutil.cpu_count()), "--host", "127.0.0.1"]
        words += ["--interrupt_requests", "false"]  # otherwise a new request ends the one before
        servers.append(Server(f"llama-cpp-python's server ({Path(options.gguf).stem})", words, options.gguf))
    return servers


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="folder of the base, whose tokenizer counts tokens")
    parser.add_argument(
        "--ours", nargs="+", action="append", required=True, help="things for `lora-chat serve`; once for each server"
    )
    parser.add_argument("--model", nargs="+", default=["base"], help="the measured model of each of these servers")
    parser.add_argument("--transformers", metavar="PYTHON", help="Python with transformers[serving]")
    parser.add_argument("--folder", help="model for `transformers serve`")
    parser.add_argument("--llama-server", metavar="PROGRAM", help="llama.cpp's server")
    parser.add_argument("--llama-cpp-python", metavar="PYTHON", help="Python with llama-cpp-python[server]")
    parser.add_argument("--gguf", help="model for llama.cpp")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--json", type=Path, help="file for all measurements")
    options, others = parser.parse_known_args()
    options.ours[-1] += others  # flags of `lora-chat serve`
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    servers = start_servers(options)
    measured: list[Measurement] = []
    order = random.Random(1)  # an order, not a secret
    try:
        for number in range(options.rounds + 1):  # the first round warms up and is left out
            for count in options.clients if number else options.clients[:1]:
                for server in order.sample(servers, len(servers)):
                    server.resume()
                    result = asyncio.run(measure(server, count, number, options.new_tokens, tokenizer))
                    server.suspend()
                    measured += [result] if number else []
                    print(
                        f"round {number}: {server.name}, {count} clients: {result.rate:.1f} tokens/s, "
                        f"first {result.first_token_seconds:.2f} s, {result.failures} failed",
                        file=sys.stderr,
                    )
    finally:
        for server in servers:
            with contextlib.suppress(psutil.NoSuchProcess):
                server.end()
    load = ", ".join(f"{value:.1f}" for value in psutil.getloadavg())
    print(
        f"{platform.platform()}, {psutil.cpu_count()} cores, load at the end {load}; Python {platform.python_version()}"
    )
    print(format_table(measured, [server.name for server in servers], options.clients))
    if options.json:
        options.json.write_text(json.dumps([asdict(m) for m in measured], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
