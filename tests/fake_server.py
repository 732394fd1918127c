"""An OpenAI-compatible server on this machine, which knows its rule, guesses, fails, stalls, or answers nonsense."""

import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import log

# What a question comes to: a text, from what the system and the user say.
Brain = Callable[[str, str], str]
# How a request is answered instead: (status, headers, body), seconds of silence, or nothing.
Fault = tuple[int, dict[str, str], str] | float | None
SERVICE_KEY = "sk-proj-THIS-is-secret-0123456789"


@dataclass
class Fake:
    """A server that runs, and what it was asked."""

    brain: Brain
    faults: list[Fault] = field(default_factory=list)
    prompts: list[tuple[str, str]] = field(default_factory=list)
    bodies: list[dict] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    logprobs: bool = True
    usage: bool = True
    at_once: int = 0
    most_at_once: int = 0
    slow_s: float = 0.0
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)


def oracle(system: str, user: str) -> str:
    """Finds the marked text that is commonest, says so, and judges by whether it is there."""
    if "LABEL:" in system:
        marked = Counter(re.findall(r"<<(.*?)>>", user))
        return f"LABEL: the letter {marked.most_common(1)[0][0]}"
    letter = re.search(r"Description: the letter (.)", user)[1]
    if "0 (not at all)" in system:
        tokens = re.findall(r"^\d+\. '(.*)'$", user, re.MULTILINE)
        return json.dumps([9 if token == letter else 0 for token in tokens])
    texts = re.findall(r"^Text \d+: (.*)$", user, re.MULTILINE)
    if "between" in system:
        return json.dumps([int(letter in "".join(re.findall(r"<<(.*?)>>", text))) for text in texts])
    return f"Let me see... {json.dumps([int(letter in text) for text in texts])}"


def coin(system: str, user: str) -> str:
    """Says something as a label, and guesses."""
    if "LABEL:" in system:
        return "LABEL: something"
    dice = random.Random(user)
    return json.dumps([dice.randrange(2) for _ in re.findall(r"^Text \d+:", user, re.MULTILINE)])


@contextmanager
def serving(brain: Brain = oracle, **options: object) -> Iterator[Fake]:
    """A server that is there while the block runs."""
    fake = Fake(brain, **options)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(fake))
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()


def _handler(fake: Fake) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with fake.lock:
                fake.at_once += 1
                fake.most_at_once = max(fake.most_at_once, fake.at_once)
                fake.bodies.append(body)
                fake.times.append(time.monotonic())
                fake.keys.append(self.headers["Authorization"])
                prompt = tuple(message["content"] for message in body["messages"])
                fake.prompts.append(prompt)
                fault = fake.faults.pop(0) if fake.faults else None
            time.sleep(fault if isinstance(fault, float) else fake.slow_s)
            status, headers, text = fault if isinstance(fault, tuple) else (200, {}, _answer(fake, body, prompt))
            with fake.lock:
                fake.at_once -= 1
            self._send(status, headers, text.encode())

        def _send(self, status: int, headers: dict[str, str], content: bytes) -> None:
            try:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)
            except OSError:
                # Whoever asked has given up.
                return

        def log_message(self, *_: object) -> None:
            return

    return Handler


def _answer(fake: Fake, body: dict, prompt: tuple[str, str]) -> str:
    said = fake.brain(*prompt)
    choice: dict = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
    if body.get("logprobs") and fake.logprobs:
        tokens = re.findall(r"\d|[^\d]+", said)
        choice["logprobs"] = {"content": [_place(token) for token in tokens]}
    usage = {"prompt_tokens": sum(map(len, prompt)) // 4, "completion_tokens": 1 + len(said) // 4}
    return json.dumps({"choices": [choice]} | ({"usage": usage} if fake.usage else {}))


def _place(token: str) -> dict:
    others = [{"token": token, "logprob": log(0.9)}, {"token": " x", "logprob": log(0.1)}]
    return {"token": token, "logprob": log(0.9), "top_logprobs": others}
