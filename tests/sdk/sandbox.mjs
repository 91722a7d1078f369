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
console.log("ok");
