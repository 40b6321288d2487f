"""OpenAI's own SDK against the gateway. Says which answers it was given, and what they cost."""

import asyncio
import json
import sys

import openai
from openai import AsyncOpenAI, OpenAI

base, keys = sys.argv[1], json.loads(sys.argv[2])
question = {
    "model": "sample",
    "messages": [
        {"role": "user", "content": "Paris lies on the Seine. Lyon lies on the Rhône. What lies on the Seine?"}
    ],
}
answered = []


def client(key="good", **more):
    return OpenAI(base_url=base, api_key=keys[key], **more)


def note(headers):
    answered.append([headers["x-request-id"], int(headers["tollgate-cost"])])


def refused(kind, code, call):
    try:
        call()
    except openai.APIStatusError as error:
        assert type(error) is kind, (type(error), error)
        assert error.code == code, error
        assert error.message and error.request_id.startswith("req_"), error
        return error
    raise AssertionError(f"not refused with {code}")


# Plain.
raw = client().models.with_raw_response.list()
note(raw.headers)
assert [model.id for model in raw.parse().data], "models"
raw = client().chat.completions.with_raw_response.create(**question)
note(raw.headers)
answer = raw.parse()
assert "Paris" in answer.choices[0].message.content, answer
assert answer.usage.total_tokens > 0, answer
assert answer._request_id == raw.headers["x-request-id"]

# Streaming, to the end.
whole = answer.choices[0].message.content
with client().chat.completions.with_streaming_response.create(
    stream=True, stream_options={"include_usage": True}, **question
) as raw:
    note(raw.headers)
    chunks = list(raw.parse())
text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
assert (text, chunks[-1].usage) == (whole, answer.usage), chunks

# Streaming, and leaving after the first of many events: the answer had begun.
stream = client().chat.completions.create(stream=True, extra_body={"delay_ms": 300}, **question)
note(stream.response.headers)
next(iter(stream))
stream.close()


# Many at once.
async def many():
    async with AsyncOpenAI(base_url=base, api_key=keys["good"]) as own:
        calls = [own.chat.completions.with_raw_response.create(**question) for _ in range(16)]
        for raw in await asyncio.gather(*calls):
            note(raw.headers)
            assert raw.parse().choices[0].message.content == whole


asyncio.run(many())

# What is refused, and what it is called.
ask = lambda key, **more: lambda: client(key, **more).chat.completions.create(**question)
refused(openai.AuthenticationError, "invalid_key", ask("unknown"))
refused(openai.AuthenticationError, "key_revoked", ask("revoked"))
refused(openai.PermissionDeniedError, "insufficient_scope", ask("scopeless"))
poor = refused(openai.APIStatusError, "credits_exhausted", ask("poor"))
assert poor.status_code == 402, poor
refused(openai.NotFoundError, "unknown_service", lambda: OpenAI(
    base_url=base.replace("/ai", "/nothing"), api_key=keys["good"]).models.list())
bad = {**question, "messages": []}
error = refused(openai.BadRequestError, None, lambda: client().chat.completions.create(**bad))
assert error.param == "messages", error

# Slowed down: told when to come again, and with retries nobody notices.
for _ in range(2):
    try:
        raw = client("slow", max_retries=0).chat.completions.with_raw_response.create(**question)
        note(raw.headers)
    except openai.RateLimitError as error:
        assert error.code == "rate_limited", error
        assert int(error.response.headers["retry-after"]) >= 1, error
        break
else:
    raise AssertionError("nobody was slowed down")
for _ in range(2):
    raw = client("slow", max_retries=5).chat.completions.with_raw_response.create(**question)
    note(raw.headers)
error = refused(openai.RateLimitError, "daily_quota_exceeded", ask("spent"))
assert error.response.headers["x-should-retry"] == "false", error

# Too slow for the client, before there is an answer: tried again, and never answered.
try:
    late = {**question, "extra_body": {"delay_ms": 5_000}}
    client(timeout=0.3, max_retries=1).chat.completions.create(**late)
    raise AssertionError("in time")
except openai.APITimeoutError:
    pass

print(json.dumps({"answered": answered}))
