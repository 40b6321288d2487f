"""The customer's own WebSocket server: says who calls, then sends everything back."""

from websockets.sync.server import serve


def answer(socket):
    headers = socket.request.headers
    assert "authorization" not in headers, "the key stays at the gateway"
    socket.send(headers["x-request-id"])
    for message in socket:
        socket.send(message)


with serve(answer, "127.0.0.1", 0, subprotocols=["echo.v1"], max_size=None) as server:
    print(server.socket.getsockname()[1], flush=True)
    server.serve_forever()
