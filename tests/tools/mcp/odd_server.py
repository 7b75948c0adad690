"""An MCP server over stdio whose tools are named after what they do, which is mostly wrong. Starts fast: it is of the
standard library alone.

    python odd_server.py [silent | dead | flood]
"""

import json
import os
import sys
import time

ANY = {"type": "object", "properties": {}}
TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
PAGES = [
    [{"name": "echo", "description": "Give it back.", "inputSchema": TEXT}, {"name": "die", "inputSchema": ANY}],
    [
        {"name": "hang", "inputSchema": ANY, "annotations": {"readOnlyHint": True}},
        {"name": "flood", "inputSchema": ANY},
        {"name": "line", "inputSchema": ANY},
        {"name": "broken.schema", "inputSchema": {"type": "object", "properties": {"a": {"type": "strange"}}}},
        {"name": "lies", "inputSchema": ANY, "outputSchema": {"type": "object", "required": ["number"]}},
        {"name": "nonsense", "inputSchema": ANY},
    ],
    [
        {"name": "files/read", "inputSchema": ANY},
        {"name": "fail", "inputSchema": ANY, "annotations": {"destructiveHint": True}},
        {"name": "environment", "inputSchema": ANY},
    ],
]


def text(words):
    return {"content": [{"type": "text", "text": words}]}


def called(name, arguments):
    match name:
        case "echo":
            return text(arguments["text"])
        case "die":
            os._exit(3)
        case "hang":
            time.sleep(60)
        case "flood":
            return text("x" * 1_500_000)
        case "line":
            while True:
                os.write(1, b"x" * 65536)
        case "lies":
            return text("{}") | {"structuredContent": {"word": "a"}}
        case "nonsense":
            return {"content": "none"}
        case "files/read":
            image = {"type": "image", "data": "iVBORw==", "mimeType": "image/png"}
            resource = {"type": "resource", "resource": {"uri": "notes://today", "text": "remember the milk"}}
            return {"content": [{"type": "text", "text": "see:"}, image, resource]}
        case "fail":
            return text("no luck") | {"isError": True}
        case "environment":
            return text(",".join(sorted(os.environ)))


def answer(method, params):
    match method:
        case "initialize":
            return {
                "protocolVersion": "2025-06-18",
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "odd", "version": "1"},
            }
        case "tools/list":
            page = int(params.get("cursor") or 0)
            more = {"nextCursor": str(page + 1)} if page + 1 < len(PAGES) else {}
            return {"tools": PAGES[page], **more}
        case "tools/call":
            return called(params["name"], params.get("arguments") or {})


def main():
    for line in sys.stdin:
        message = json.loads(line)
        if "id" not in message:
            continue
        result = answer(message["method"], message.get("params") or {})
        outcome = {"error": {"code": -32601, "message": "unknown method"}} if result is None else {"result": result}
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], **outcome}), flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["silent"]:
            sys.stdin.read()
        case ["dead"]:
            sys.exit(1)
        case ["flood"]:
            while True:
                os.write(1, b"x" * 65536)
        case _:
            main()
