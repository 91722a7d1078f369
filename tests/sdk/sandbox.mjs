// The sandbox, held to what the official OpenAI SDK for Node expects of a provider.
//
// Argument: the base URL of an account.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { Readable } from "node:stream";

const OpenAI = createRequire(import.meta.url)("openai");

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "any", maxRetries: 0 });

const file = await client.files.create({
  file: OpenAI.toStreamingFile(Readable.from([Buffer.from("{}\n")]), "in.jsonl"),
  purpose: "batch",
  expires_after: { anchor: "created_at", seconds: 3600 },
});
assert.equal(file.object, "file");
assert.ok(file.id.startsWith("file-"), file.id);
assert.equal(file.bytes, 3);
assert.equal(file.expires_at, file.created_at + 3600);
assert.equal((await client.files.waitForProcessing(file.id, { pollInterval: 50 })).id, file.id);
assert.equal(await (await client.files.content(file.id)).text(), "{}\n");
const small = async () => OpenAI.toFile(Buffer.from("x"), "x");
const others = [];
for (let count = 0; count < 4; count++) {
  others.push((await client.files.create({ file: await small(), purpose: "user_data" })).id);
}
const listed = [];
for await (const entry of client.files.list({ limit: 2 })) listed.push(entry.id);
assert.deepEqual(listed.sort(), [file.id, ...others].sort());
for (const [kind, call] of [
  [OpenAI.BadRequestError, async () => client.files.create({ file: await small(), purpose: "mystery" })],
  [OpenAI.BadRequestError, () => client.files.content(others[0])],
  [OpenAI.NotFoundError, () => client.files.retrieve("file-unknown")],
  [OpenAI.NotFoundError, () => client.files.delete("file-unknown")],
]) {
  await assert.rejects(call(), (error) => error.constructor === kind && error.message !== "");
}
assert.ok((await client.files.delete(file.id)).deleted);
await assert.rejects(client.files.retrieve(file.id), OpenAI.NotFoundError);

const line = (number) => JSON.stringify({
  custom_id: `t-${number}`,
  method: "POST",
  url: "/v1/responses",
  body: { model: "m", input: "?" },
});
const content = Buffer.from([0, 1, 2].map((number) => `${line(number)}\n`).join(""));
const source = await client.files.create({ file: await OpenAI.toFile(content, "in.jsonl"), purpose: "batch" });
const over = { endpoint: "/v1/responses", completion_window: "24h" };
let batch = await client.batches.create({ input_file_id: source.id, ...over });
assert.equal(batch.status, "validating");
while (batch.status !== "completed") {
  assert.ok(["validating", "in_progress", "finalizing"].includes(batch.status), batch.status);
  await new Promise((resolve) => setTimeout(resolve, 20));
  batch = await client.batches.retrieve(batch.id);
}
assert.deepEqual(batch.request_counts, { total: 3, completed: 3, failed: 0 });
const answers = (await (await client.files.content(batch.output_file_id)).text()).trimEnd().split("\n");
const texts = answers.map((answer) => JSON.parse(answer).response.body.output[0].content[0].text);
assert.deepEqual(texts, ["Answer to t-2", "Answer to t-1", "Answer to t-0"]);
const batches = [];
for await (const entry of client.batches.list({ limit: 1 })) batches.push(entry.id);
assert.deepEqual(batches, [batch.id]);
await assert.rejects(client.batches.cancel(batch.id), OpenAI.ConflictError);
await assert.rejects(client.batches.retrieve("batch_unknown"), OpenAI.NotFoundError);
console.log("ok");
