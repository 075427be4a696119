"""A server on loopback whose answers a test chooses."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

from lora_chat.data.encoding.chat_template import render_ids


@contextmanager
def serving(answer):
    """Serve `answer(path, body)`, which returns a status, headers and bytes or JSON. Yield the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self._answer(None)

        def do_POST(self):
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body):
            status, headers, content = answer(self.path, body)
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class ServedModel:
    """A model that answers chat completions: greedy, with probabilities if asked, without anything else."""

    def __init__(self, model, tokenizer, *, tells_logprobs=True, tells_ids=True, system=None, prefix=(), stop_ids=(2,)):
        self.model, self.tokenizer = model, tokenizer
        self.tells_logprobs, self.tells_ids = tells_logprobs, tells_ids
        self.system, self.prefix = system, list(prefix)
        self.stop_ids = stop_ids
        self.asked = []

    def answer(self, path, body):
        if path == "/v1/models":
            return 200, {}, {"object": "list", "data": [{"id": "tiny"}]}
        if path == "/v1/tokenize" and self.tells_ids:
            return 200, {}, {"tokens": [{"id": number} for number in self.encode(body["messages"])]}
        if path != "/v1/chat/completions":
            return 404, {}, {"error": {"message": "no such route"}}
        if body.get("logprobs") and not self.tells_logprobs:
            return 422, {}, {"detail": "unexpected field"}
        self.asked.append(body)
        return 200, {}, self.complete(body)

    def encode(self, messages):
        if self.system:
            messages = [{"role": "system", "content": self.system}, *messages]
        return [*self.prefix, *render_ids(self.tokenizer, messages, add_generation_prompt=True)]

    def complete(self, body):
        ids = self.encode(body["messages"])
        prompt, tokens, finish = len(ids), [], "length"
        with torch.inference_mode():
            for _ in range(body["max_tokens"]):
                row = self.model(input_ids=torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
                values, top = row.topk(body.get("top_logprobs", 1))
                names = [self.tokenizer.decode([number]) for number in top.tolist()]
                pairs = [{"token": n, "logprob": v} for n, v in zip(names, values.tolist(), strict=True)]
                if int(top[0]) in self.stop_ids:
                    finish = "stop"
                    break
                tokens.append({**pairs[0], "top_logprobs": pairs})
                ids.append(int(top[0]))
        choice = {"index": 0, "finish_reason": finish}
        text = self.tokenizer.decode(ids[prompt:], skip_special_tokens=True)
        choice["message"] = {"role": "assistant", "content": text}
        if body.get("logprobs"):
            choice["logprobs"] = {"content": tokens}
        return {"choices": [choice], "usage": {"prompt_tokens": prompt}}
