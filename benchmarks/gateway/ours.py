"""The gateway with a scripted engine that gives the mock's replies, served like by `midstream gateway`.

    python benchmarks/gateway/ours.py '{"latency_s": 0.1, "durability": "full", "store": "calls.sqlite"}'

Prints its URL, and serves until it is killed. `tokens_per_s` makes streams slow.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from conversation import MODEL, REPLY

from midstream.engines.chat import load_tokenizer
from midstream.engines.models import resolve
from midstream.engines.scripted import ScriptedEngine
from midstream.gateway.config import GatewayConfig, LimitsConfig
from midstream.gateway.limits.tokens import TokenSigner
from midstream.gateway.server import listen, run, serve
from midstream.gateway.service import Gateway
from midstream.record.recorder import RoleEngine
from midstream.record.store import Store


def main() -> None:
    asked = json.loads(sys.argv[1])
    tokenizer = load_tokenizer(resolve(asked.get("tokenizer", "smollm2-135m")))
    engine = ScriptedEngine(tokenizer, REPLY, asked["latency_s"], asked.get("tokens_per_s"))
    config = GatewayConfig(port=0, model=MODEL, limits=LimitsConfig(**asked.get("limits", {})))
    listening = listen(config.host, config.port)

    async def serving() -> None:
        with Store(Path(asked["store"]), asked["durability"]) as store:
            gateway = Gateway(
                config, RoleEngine(engine, tokenizer, True), store, TokenSigner(b"a secret of the benchmark's")
            )
            await serve(gateway, listening, lambda url: print(url, flush=True))

    run(serving())


if __name__ == "__main__":
    main()
