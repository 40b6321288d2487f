"""A WebSocket client. `talk` exchanges messages and leaves; `hold` stays until it is cut off."""

import json
import sys

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import connect

what, url, key = sys.argv[1:4]
headers = {"authorization": f"Bearer {key}"}


def say(**facts):
    print(json.dumps(facts), flush=True)


try:
    with connect(url, additional_headers=headers, subprotocols=["echo.v1"], max_size=None) as socket:
        answer = socket.response.headers
        facts = {
            "request_id": answer["x-request-id"],
            "cost": int(answer.get("tollgate-cost", -1)),
            "subprotocol": socket.subprotocol,
            "seen_by_upstream": socket.recv(),
        }
        if what == "hold":
            say(**facts)
            try:
                socket.recv()
            except ConnectionClosed as closed:
                say(closed=type(closed).__name__)
            sys.exit()
        for size in [0, 1, 125, 126, 65_535, 65_536, 1_000_000]:
            socket.send("x" * size)
            assert socket.recv() == "x" * size, size
            socket.send(bytes(size))
            assert socket.recv() == bytes(size), size
        assert socket.ping().wait(10), "a ping is answered"
        say(**facts)
except InvalidStatus as refused:
    response = refused.response
    say(status=response.status_code, body=json.loads(response.body))
except (OSError, ConnectionClosed, InvalidHandshake) as lost:
    say(lost=type(lost).__name__)
