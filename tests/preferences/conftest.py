"""A real HTTP server that speaks OpenAI's chat completions and judges by a rule, or misbehaves on request."""

from __future__ import annotations

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

ANSWERS = re.compile(r"=== Answer A ===\n(.*?)\n\n=== Answer B ===\n(.*?)\n\n=== Your verdict", re.DOTALL)


def longer(first: str, second: str) -> str:
    """Judge by length: a verdict that does not hang on the order."""
    return "A" if len(first) > len(second) else "B" if len(second) > len(first) else "TIE"


class Endpoint:
    """The server. ``taste(first, second)`` gives the verdict; ``mishap(number)`` may answer a request otherwise.

    A mishap is None, or a tuple (status, body, headers); ``delay`` is the time an answer takes.
    """

    def __init__(self):
        self.taste, self.mishap, self.delay, self.usage = longer, lambda number: None, 0.0, True
        self.questions, self.keys, self.bodies, self.active, self.most_active = [], [], [], 0, 0
        self._lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                endpoint.answer(self)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        with self._lock:
            self.bodies.append(body)
            self.keys.append(handler.headers.get("authorization"))
            self.questions.append(body["messages"][-1]["content"])
            number = len(self.questions)
            self.active += 1
            self.most_active = max(self.most_active, self.active)
        try:
            time.sleep(self.delay)
            status, text, headers = self.mishap(number) or (200, self.reply(body), {})
        finally:
            with self._lock:
                self.active -= 1
        data = text.encode()
        try:
            handler.send_response(status)
            for name, value in {"content-type": "application/json", **headers}.items():
                handler.send_header(name, value)
            handler.send_header("content-length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)
        except OSError:
            pass  # the client has gone: it timed out

    def reply(self, body):
        question = body["messages"][-1]["content"]
        found = ANSWERS.search(question)
        verdict = self.taste(found[1], found[2]) if found else "TIE"
        return self.completion(f"It is as it is.\nVerdict: {verdict}", len(question) if self.usage else None)

    @staticmethod
    def completion(text, tokens=10, finish="stop"):
        """Return the body of a chat completion."""
        content = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}],
        }
        if tokens is not None:
            content["usage"] = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
        return json.dumps(content)


class ModelEndpoint(Endpoint):
    """The server with a real language model behind it; ``guided_choice`` in the request restricts it, as in vLLM."""

    def __init__(self, folder):
        from lmrl.models.loading import load
        from lmrl.models.policy import PolicyModel

        self.model = load(str(folder), device="cpu")
        self.policy = PolicyModel(self.model.model)
        self._one_at_a_time = threading.Lock()
        super().__init__()

    def reply(self, body):
        from lmrl.engines.settings import SamplingSettings
        from lmrl.engines.texts import sample_texts, sampling_spec
        from lmrl.judges.local import response_logprobs

        card, choices = self.model.card, body.get("guided_choice")
        most = body.get("max_completion_tokens", body.get("max_tokens", 16))
        ids = card.codec.encode(body["messages"][-1]["content"])[-(card.context_length - most) :]
        with self._one_at_a_time:
            if choices:
                scores = response_logprobs(self.policy, [(ids, card.codec.encode_plain(one)) for one in choices])
                return self.completion(choices[scores.index(max(scores))], len(ids))
            settings = SamplingSettings(temperature=body.get("temperature", 1.0), max_new_tokens=most)
            (found,) = sample_texts(self.model, [ids], sampling_spec(settings, card), 0)
        return self.completion(found.text, len(ids), "stop" if found.ended else "length")


@pytest.fixture(scope="session")
def model_endpoint(shared):
    """Return a running endpoint with the 260K story model behind it."""
    running = ModelEndpoint(shared / "data" / "models" / "stories260K-llama")
    yield running
    running.server.shutdown()
    running.server.server_close()


@pytest.fixture
def endpoint():
    """Return a running endpoint."""
    running = Endpoint()
    yield running
    running.server.shutdown()
    running.server.server_close()
