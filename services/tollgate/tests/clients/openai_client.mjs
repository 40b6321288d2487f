// OpenAI's own SDK for JavaScript against the gateway. Says which answers it was given, and what
// they cost.
import assert from "node:assert/strict";
import { createRequire } from "node:module";

// NODE_PATH is for require.
const OpenAI = createRequire(import.meta.url)("openai").default;
const [base, keyText] = process.argv.slice(2);
const keys = JSON.parse(keyText);
const question = {
  model: "sample",
  messages: [
    {
      role: "user",
      content: "Paris lies on the Seine. Lyon lies on the Rhône. What lies on the Seine?",
    },
  ],
};
const answered = [];

const client = (key = "good", more = {}) =>
  new OpenAI({ baseURL: base, apiKey: keys[key], ...more });
const note = ({ headers }) =>
  answered.push([headers.get("x-request-id"), Number(headers.get("tollgate-cost"))]);
const ask = (key, more) => client(key, more).chat.completions.create(question).withResponse();
const refused = async (kind, status, code, call) => {
  const error = await call().then(
    () => assert.fail(`not refused with ${code}`),
    (error) => error,
  );
  assert.equal(error.constructor, kind, error);
  assert.deepEqual([error.status, error.code], [status, code], error.message);
  assert.match(error.requestID, /^req_/);
  assert.doesNotMatch(error.message, /no body|[{]/, "a sentence");
  return error;
};

// Plain.
const plain = await ask();
note(plain.response);
const whole = plain.data.choices[0].message.content;
assert.match(whole, /Paris/);
assert.equal(plain.data._request_id, plain.response.headers.get("x-request-id"));

// Streaming, to the end.
const options = { stream: true, stream_options: { include_usage: true } };
const streamed = await client()
  .chat.completions.create({ ...question, ...options })
  .withResponse();
note(streamed.response);
let [text, usage] = ["", null];
for await (const chunk of streamed.data) {
  text += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.deepEqual([text, usage], [whole, plain.data.usage]);

// Streaming, and leaving after the first of many events: the answer had begun.
const left = await client()
  .chat.completions.create({ ...question, stream: true, delay_ms: 300 })
  .withResponse();
note(left.response);
for await (const _ of left.data) break;

// Many at once.
for (const one of await Promise.all(Array.from({ length: 16 }, () => ask()))) {
  note(one.response);
  assert.equal(one.data.choices[0].message.content, whole);
}

// What is refused, and what it is called.
await refused(OpenAI.AuthenticationError, 401, "invalid_key", () => ask("unknown"));
await refused(OpenAI.AuthenticationError, 401, "key_revoked", () => ask("revoked"));
await refused(OpenAI.PermissionDeniedError, 403, "insufficient_scope", () => ask("scopeless"));
await refused(OpenAI.APIError, 402, "credits_exhausted", () => ask("poor"));
const bad = await refused(OpenAI.BadRequestError, 400, null, () =>
  client().chat.completions.create({ ...question, messages: [] }),
);
assert.equal(bad.param, "messages");

// Slowed down: told when to come again, and with retries nobody notices.
let slowed = null;
for (let call = 0; call < 2 && !slowed; call++) {
  await ask("slow", { maxRetries: 0 }).then(
    (one) => note(one.response),
    (error) => (slowed = error),
  );
}
assert.equal(slowed?.constructor, OpenAI.RateLimitError);
assert.equal(slowed.code, "rate_limited");
assert.ok(Number(slowed.headers.get("retry-after")) >= 1);
for (let call = 0; call < 2; call++) note((await ask("slow", { maxRetries: 5 })).response);

// Too slow for the client, before there is an answer: tried again, and never answered.
const late = client("good", { timeout: 300, maxRetries: 1 });
await assert.rejects(
  late.chat.completions.create({ ...question, delay_ms: 5_000 }),
  OpenAI.APIConnectionTimeoutError,
);

console.log(JSON.stringify({ answered }));
