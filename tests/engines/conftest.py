"""Real HTTP servers that imitate chat completions and vLLM, with configurable faults."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from midstream.engines.chat import ChatTokenizer


@dataclass
class ChatServer:
    """Answers each request with the next of `answers`, repeating the last one; records the requests."""

    url: str = ""
    answers: list[Any] = field(default_factory=list)
    """(status, body), where the body is what was said, a JSON value, or raw bytes; a number sleeps that long first."""
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


def reply(text: Any, reason: str = "stop") -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": reason}]}


@pytest.fixture
def chat_server() -> Iterator[ChatServer]:
    server = ChatServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.asked.append({"path": self.path, **body})
            server.headers.append(dict(self.headers))
            answer = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
            if isinstance(answer, float):
                time.sleep(answer)
                answer = "late"
            status, response = answer if isinstance(answer, tuple) else (200, answer)
            payload = reply(response) if isinstance(response, str) else response
            raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)
            except BrokenPipeError:
                pass  # the client did not wait

        def log_message(self, format: str, *args: Any) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    http.shutdown()
    http.server_close()


@dataclass
class VLLMServer:
    """Speaks vLLM's API over a made-up model: of a few tokens the next is drawn by the seed, and how likely each is
    depends on the three before it. `faults` are what to do wrong, one for each generating call, in turn."""

    tokenizer: ChatTokenizer
    url: str = ""
    mode: str = "processed_logprobs"
    context_length: int = 512
    adapters: bool = True
    resets: bool = True
    faults: list[str] = field(default_factory=list)
    token_s: float = 0.0
    asked: list[dict[str, Any]] = field(default_factory=list)
    """The generating calls, with their `path`."""
    loaded: list[str] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    """What calls sent as `Authorization`."""
    done: int = 0
    """Generating calls answered to their end, or broken off by the client."""
    under_way: int = 0

    def log_probs(self, before: Sequence[int], temperature: float, top_k: int = 0) -> dict[int, float]:
        """Log-probabilities of the possible next tokens, by token."""
        drawn = random.Random(str((tuple(before[-3:]), tuple(self.loaded))))
        size = len(self.tokenizer)
        logits = {drawn.randrange(3, size): drawn.uniform(0, 3) / temperature for _ in range(7)}
        logits[min(self.tokenizer.end_ids)] = 0.2 / temperature
        if top_k:
            logits = dict(sorted(logits.items(), key=lambda one: -one[1])[:top_k])
        total = math.log(sum(math.exp(value) for value in logits.values()))
        return {token: value - total for token, value in logits.items()}

    def sample(self, prompt: Sequence[int], body: dict[str, Any]) -> Iterator[tuple[int, dict[int, float], str | None]]:
        """Token by token: the token, what is reported there, and why it was the last."""
        temperature = body.get("temperature", 1.0)
        drawn = random.Random(body.get("seed"))
        processed = self.mode == "processed_logprobs"
        response: list[int] = []
        while True:
            # Greedily, vLLM cuts nothing.
            true = self.log_probs([*prompt, *response], temperature or 1.0, body.get("top_k", 0) if temperature else 0)
            token = max(true, key=lambda one: true[one])
            if temperature:
                token = drawn.choices(list(true), [math.exp(value) for value in true.values()])[0]
            response.append(token)
            reported = true if processed else self.log_probs([*prompt, *response[:-1]], 1.0)
            text = self.tokenizer.decode(response)
            end = token in body.get("stop_token_ids", ()) or any(stop in text for stop in body.get("stop", ()))
            reason = "stop" if end else "length" if len(response) >= body.get("max_tokens", 16) else None
            yield token, reported, reason
            if reason:
                return


def _named(log_probs: dict[int, float], token: int, top: int) -> dict[str, float]:
    """Log-probabilities in vLLM's format: the sampled token first, then the most likely."""
    likeliest = sorted(log_probs, key=lambda one: -log_probs[one])[:top]
    return {f"token_id:{one}": log_probs[one] for one in dict.fromkeys([token, *likeliest])}


class _VLLMHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: VLLMServer

    def do_GET(self) -> None:
        self.server_of.keys.add(self.headers.get("Authorization"))
        known = self.path == "/v1/models"
        cards = [{"id": "base", "max_model_len": self.server_of.context_length}]
        self._answer(200 if known else 404, {"data": cards} if known else {"error": {"message": "Not Found"}})

    def do_POST(self) -> None:
        server = self.server_of
        server.keys.add(self.headers.get("Authorization"))
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/load_lora_adapter" and server.adapters:
            assert not server.under_way, "an adapter is swapped under a call"
            server.loaded.append(f"{body['lora_name']}={body['lora_path']}")
            self._answer(200, b"Success: LoRA adapter 'policy' added successfully.")
        elif self.path == "/reset_prefix_cache" and server.resets:
            server.loaded.append("reset")
            self._answer(200, {"success": True})
        elif self.path in ("/v1/completions", "/v1/chat/completions"):
            server.asked.append({"path": self.path, **body})
            server.under_way += 1
            try:
                self._generate(body, server.faults.pop(0) if server.faults else "")
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client did not wait
            finally:
                server.under_way -= 1
                server.done += 1
        else:
            self._answer(404, {"error": {"message": "Not Found"}})

    def _generate(self, body: dict[str, Any], fault: str) -> None:
        server = self.server_of
        if fault == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if fault.isdigit():
            return self._answer(int(fault), {"error": {"message": f"fault {fault}"}})
        if body["model"] != "base" and body["model"] not in " ".join(server.loaded):
            return self._answer(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
        if "/" in body.get("cache_salt", ""):
            return self._answer(400, {"error": {"message": "Parameter 'cache_salt' must not contain '/'."}})
        if "structured_outputs" in body and "outlandish" in str(body["structured_outputs"]):
            return self._answer(400, {"error": {"message": "The grammar is not supported."}})
        chat = "messages" in body
        prompt = server.tokenizer.encode(json.dumps(body["messages"])) if chat else body["prompt"]
        if len(prompt) + body["max_tokens"] > server.context_length:
            return self._answer(400, {"error": {"message": "This model's maximum context length is exceeded"}})
        if "prompt_logprobs" in body:
            return self._answer(200, {"choices": [self._scored(prompt, body["prompt_logprobs"])]})
        pieces: list[dict[str, Any]] = []
        if body.get("stream"):
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
        for token, reported, reason in server.sample(prompt, body):
            time.sleep(server.token_s)
            piece = self._piece(body, token, reported, reason, fault)
            if body.get("stream"):
                first = {"prompt_token_ids": list(prompt)} if not pieces else {}
                whole = {"choices": [piece], **first} if chat else {"choices": [piece | first]}
                self._chunk(f"data: {json.dumps(whole)}\n\n".encode())
                if fault == "die" and len(pieces) == 1:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                if fault == "error" and len(pieces) == 1:
                    self._chunk(b'data: {"error": {"message": "Internal server error"}}\n\n')
                    break
            pieces.append(piece)
            if reason:
                break
        if body.get("stream"):
            self._chunk(b"data: [DONE]\n\n")
            self._chunk(b"")
        else:
            whole = {**_joined(pieces), "prompt_token_ids": list(prompt)}
            self._answer(200, {"choices": [whole], "prompt_token_ids": list(prompt)})

    def _piece(
        self, body: dict[str, Any], token: int, reported: dict[int, float], reason: str | None, fault: str
    ) -> dict[str, Any]:
        if "messages" in body:
            named = _named(reported, token, body["top_logprobs"])
            top = [{"token": name, "logprob": value} for name, value in list(named.items())[: body["top_logprobs"]]]
            response: dict[str, Any] = {"content": [{"logprob": reported[token], "top_logprobs": top}]}
        else:
            response = {
                "token_logprobs": [reported[token]],
                "top_logprobs": [_named(reported, token, body["logprobs"])],
            }
        if fault == "no ids":
            return {"logprobs": response, "finish_reason": reason}
        return {"token_ids": [token], "logprobs": response, "finish_reason": "abort" if fault == "abort" else reason}

    def _scored(self, prompt: Sequence[int], top: int) -> dict[str, Any]:
        places: list[Any] = [None]
        for at in range(1, len(prompt)):
            known = self.server_of.log_probs(prompt[:at], 1.0)
            named = _named({prompt[at]: -9.0, **known}, prompt[at], top)
            places.append({name.removeprefix("token_id:"): {"logprob": value} for name, value in named.items()})
        return {"prompt_logprobs": places}

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _answer(self, status: int, response: Any) -> None:
        raw = response if isinstance(response, bytes) else json.dumps(response).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None: ...


def _joined(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    """Join the pieces of a stream to one choice."""
    response: dict[str, list[Any]] = {}
    for piece in pieces:
        for name, values in piece["logprobs"].items():
            response.setdefault(name, []).extend(values)
    ids = [token for piece in pieces for token in piece.get("token_ids", ())]
    reasons = [piece["finish_reason"] for piece in pieces]
    return {**({"token_ids": ids} if ids else {}), "logprobs": response, "finish_reason": reasons[-1]}


@pytest.fixture
def start_vllm(tiny_tokenizer: ChatTokenizer) -> Iterator[Callable[..., VLLMServer]]:
    """Start servers that imitate vLLM's; settings are those of `VLLMServer`."""
    running: list[ThreadingHTTPServer] = []

    def start(**settings: Any) -> VLLMServer:
        server = VLLMServer(tiny_tokenizer, **settings)
        handler = type("Handler", (_VLLMHandler,), {"server_of": server})
        http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        http.daemon_threads = True
        server.url = f"http://127.0.0.1:{http.server_address[1]}"
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        running.append(http)
        return server

    yield start
    for http in running:
        http.shutdown()
        http.server_close()


@dataclass(frozen=True)
class RealVLLM:
    """A vLLM server with SmolLM2 in fp32, and the same model in this process."""

    url: str
    mode: str
    folder: Path
    tokenizer: ChatTokenizer


class _Started:
    """The running real server, if any. Starting one takes a minute."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._now: RealVLLM | None = None

    def __call__(self, mode: str) -> RealVLLM:
        if self._now is None or self._now.mode != mode:
            self.stop()
            self._now = self._start(mode)
        return self._now

    def _start(self, mode: str) -> RealVLLM:
        from midstream.engines.chat import load_tokenizer
        from midstream.engines.models import resolve

        python = Path(os.environ.get("MIDSTREAM_VLLM") or pytest.skip("MIDSTREAM_VLLM names no interpreter with vLLM"))
        model, log = resolve("smollm2-135m"), self._folder / f"{mode}.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        settings = "--dtype float32 --enforce-eager --enable-lora --max-loras 2 --max-lora-rank 16 --max-model-len 512"
        settings += f" --max-num-seqs 8 --logprobs-mode {mode} --host 127.0.0.1 --port {port}"
        environment = {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "LD_PRELOAD": ":".join(map(str, (python.parent.parent / "lib").glob("libiomp5.so"))),
        }
        with log.open("w") as out:
            self._process = subprocess.Popen(
                [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model, *settings.split()],
                env={**os.environ, **environment},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            if self._process.poll() is not None:
                break
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/health").status_code == 200:
                    return RealVLLM(url, mode, model, load_tokenizer(model))
            time.sleep(0.5)
        pytest.fail("vLLM did not start; its last words:\n" + log.read_text()[-3000:])

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def start_real_vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], RealVLLM]]:
    """Start a server with that `--logprobs-mode`, one at a time. MIDSTREAM_VLLM is a Python interpreter with vLLM."""
    started = _Started(tmp_path_factory.mktemp("vllm"))
    yield started
    started.stop()
