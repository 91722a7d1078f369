// Batches through the official OpenAI SDK for Node, unmodified, against a running Longshore.
//
// Arguments: the base URL, a key, and the key of another owner. The model `a` fails the request `r-1`, and `c` holds its
// batches in the middle of their work.

import assert from "node:assert/strict";
import { createRequire } from "node:module";

const OpenAI = createRequire(import.meta.url)("openai");

const [baseURL, apiKey, otherKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${baseURL}/v1`, apiKey });
const other = new OpenAI({ baseURL: `${baseURL}/v1`, apiKey: otherKey });
const chat = { endpoint: "/v1/chat/completions", completion_window: "24h" };

async function polled(batch, until) {
  while (batch.status !== until) {
    assert.ok(["validating", "in_progress", "finalizing", "cancelling"].includes(batch.status), batch.status);
    await new Promise((resolve) => setTimeout(resolve, 50));
    batch = await client.batches.retrieve(batch.id);
  }
  return batch;
}

async function lines(id) {
  const text = await (await client.files.content(id)).text();
  return text.trimEnd().split("\n").map((line) => JSON.parse(line));
}

const line = (number) => JSON.stringify({
  custom_id: `r-${number}`,
  method: "POST",
  url: "/v1/chat/completions",
  body: { model: "m", messages: [{ role: "user", content: "?" }] },
});
const content = Buffer.from([0, 1, 2].map((number) => `${line(number)}\n`).join(""));
const file = await client.files.create({
  file: await OpenAI.toFile(content, "in.jsonl"),
  purpose: "batch",
  target_model_names: ["a", "b", "c"],
});

// What this SDK does not know it sends all the same.
const over = { input_file_id: file.id, ...chat };
let both = await client.batches.create({ ...over, metadata: { team: "red" }, target_model_names: ["a", "b"] });
assert.equal(both.status, "validating");
assert.deepEqual(both.metadata, { team: "red" });
both = await polled(both, "completed");
assert.deepEqual(both.request_counts, { total: 6, completed: 5, failed: 1 });
const answers = await lines(both.output_file_id);
assert.deepEqual(
  answers.map((answer) => `${answer.model} ${answer.custom_id}`).sort(),
  ["a r-0", "a r-2", "b r-0", "b r-1", "b r-2"],
);
const tokens = answers.reduce((sum, answer) => sum + answer.response.body.usage.total_tokens, 0);
assert.equal(both.usage.total_tokens, tokens);
const [failed] = await lines(both.error_file_id);
assert.deepEqual([failed.custom_id, failed.response.status_code], ["r-1", 400]);

let one = await client.batches.create({ ...over, model: "b" });
one = await client.batches.retrieve(one.id, { query: { wait: 60 } });
assert.equal(one.status, "completed");
assert.equal(one.error_file_id, null);

let held = await polled(await client.batches.create({ ...over, model: "c" }), "in_progress");
assert.equal((await client.batches.cancel(held.id)).status, "cancelling");
held = await polled(held, "cancelled");
const listed = [];
for await (const batch of client.batches.list({ limit: 1 })) listed.push(batch.id);
assert.deepEqual(listed, [held.id, one.id, both.id]);

for (const [kind, code, call] of [
  [OpenAI.ConflictError, "batch_ended", () => client.batches.cancel(held.id)],
  [OpenAI.NotFoundError, "not_found", () => client.batches.create({ ...over, input_file_id: "file-unknown" })],
  [OpenAI.NotFoundError, "not_found", () => client.batches.retrieve("batch_unknown")],
  [OpenAI.PermissionDeniedError, "permission_denied", () => other.batches.retrieve(both.id)],
  [OpenAI.BadRequestError, "model_not_found", () => client.batches.create({ ...over, model: "z" })],
]) {
  await assert.rejects(call(), (error) => error.constructor === kind && error.code === code && error.message !== "");
}
console.log("ok");
