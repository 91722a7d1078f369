// Files through the official OpenAI SDK for Node, unmodified, against a running Longshore.
//
// Arguments: the base URL, a key, and the key of another owner. `NODE_PATH` names the folder that the SDK is in. The
// model `c` refuses the first file whose name holds `refused`.

import assert from "node:assert/strict";
import fs from "node:fs";
import { createRequire } from "node:module";
import os from "node:os";
import path from "node:path";
import { Readable } from "node:stream";

const require = createRequire(import.meta.url);
const OpenAI = require("openai");
const { toFile, toStreamingFile } = OpenAI;

const [baseURL, apiKey, otherKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${baseURL}/v1`, apiKey });
const other = client.withOptions({ apiKey: otherKey });

const requests = (count) =>
  Array.from({ length: count }, (_, number) =>
    JSON.stringify({
      custom_id: `r${number}`,
      method: "POST",
      url: "/v1/chat/completions",
      body: { model: "m", messages: [] },
    }) + "\n",
  ).join("");

async function refused(kind, status, call, { code, param = null, says = "" }) {
  const error = await call().then(
    () => assert.fail(`no ${kind.name}`),
    (error) => error,
  );
  assert.equal(error.constructor, kind, error);
  assert.deepEqual([error.status, error.code, error.param], [status, code, param], error.message);
  assert.ok(error.type && error.message.includes(says), error.message);
  assert.ok(error.requestID, "no x-request-id");
}

async function collect(list) {
  const found = [];
  for await (const thing of list) found.push(thing);
  return found;
}

const folder = fs.mkdtempSync(path.join(os.tmpdir(), "longshore-sdk-"));
process.on("exit", () => fs.rmSync(folder, { recursive: true, force: true }));
const filename = 'naïve "name".jsonl';
const input = path.join(folder, filename);
fs.writeFileSync(input, requests(3));

// A stream from a path: the body goes out in chunks, its length is not known.
const created = await client.files.create({
  file: fs.createReadStream(input),
  purpose: "batch",
  expires_after: { anchor: "created_at", seconds: 3600 },
  target_model_names: ["a", "b"],
  metadata: { team: "red", run: "7" },
});
assert.equal(created.object, "file");
assert.equal(created.filename, filename);
assert.equal(created.bytes, requests(3).length);
assert.equal(created.expires_at, created.created_at + 3600);
assert.deepEqual(created.metadata, { team: "red", run: "7" });
assert.deepEqual(created.mappings.map((mapping) => mapping.model), ["a", "b"]);

const done = await client.files.waitForProcessing(created.id, { pollInterval: 100, maxWait: 30_000 });
assert.equal(done.status, "processed");
assert.ok(done.mappings.every((mapping) => mapping.status === "ready" && mapping.provider_file_id), done);
assert.equal((await client.files.retrieve(created.id)).id, created.id);
const waited = await client.files.retrieve(created.id, { query: { wait: 10 } });
assert.equal(waited.status, "processed");
assert.equal(await (await client.files.content(created.id)).text(), requests(3));
const streamed = [];
for await (const chunk of (await client.files.content(created.id)).body) streamed.push(chunk);
assert.equal(Buffer.concat(streamed).toString(), requests(3));
const part = await client.files.content(created.id, { headers: { Range: "bytes=1-9" } });
assert.equal(part.status, 206);
assert.equal(await part.text(), requests(3).slice(1, 10));

// Every way to hand over a file.
const named = { purpose: "user_data", target_model_names: "a" };
const buffer = await client.files.create({ file: await toFile(Buffer.from("buffer"), "b.bin"), ...named });
assert.equal(await (await client.files.content(buffer.id)).text(), "buffer");
const typed = await client.files.create({ file: new File(["typed"], "a.txt", { type: "text/plain" }), ...named });
assert.equal((await client.files.content(typed.id)).headers.get("content-type"), "text/plain");
assert.equal(typed.filename, "a.txt");
const large = 3_000_000;
const slow = Readable.from((function* () {
  for (let sent = 0; sent < large; sent += 100_000) yield Buffer.alloc(100_000, 120);
})());
const lazy = await client.files.create({ file: toStreamingFile(slow, "large.bin"), ...named, purpose: "assistants" });
assert.deepEqual([lazy.bytes, lazy.filename], [large, "large.bin"]);
const fetched = await client.files.create({ file: new Response("response"), ...named, purpose: "vision" });
assert.equal(fetched.bytes, 8);
const byQuery = client.withOptions({ defaultQuery: { target_model_names: "a,b" } });
const evals = await byQuery.files.create({ file: await toFile(Buffer.from("query"), "q"), purpose: "evals" });
assert.equal(evals.mappings.length, 2);

// A model's refusal is told by the file, and can be tried again.
const spoiled = await client.files.create({ ...named, file: new File(["x"], "refused.txt"), target_model_names: "a,c" });
const failed = await client.files.waitForProcessing(spoiled.id, { pollInterval: 100, maxWait: 30_000 });
assert.equal(failed.status, "error");
assert.match(failed.status_details, /c/);
assert.deepEqual(failed.mappings.map((mapping) => mapping.status), ["ready", "failed"]);
assert.equal(failed.mappings[1].error.http_status, 400);
await client.post(`/files/${spoiled.id}/retry`);
const mended = await client.files.waitForProcessing(spoiled.id, { pollInterval: 100, maxWait: 30_000 });
assert.equal(mended.status, "processed");
const wider = await client.post(`/files/${buffer.id}/mappings`, { body: { target_model_names: ["b"] } });
assert.deepEqual(wider.mappings.map((mapping) => mapping.model), ["a", "b"]);

// Lists, page by page.
const everything = (await collect(client.files.list({ limit: 2, order: "asc" }))).map((file) => file.id);
assert.equal(everything.length, 7);
assert.equal(new Set(everything).size, 7);
assert.equal(everything[0], created.id);
assert.deepEqual((await collect(client.files.list({ purpose: "batch" }))).map((file) => file.id), [created.id]);
const page = await client.files.list({ limit: 4, order: "asc" });
assert.ok(page.hasNextPage());
assert.deepEqual((await page.getNextPage()).data.map((file) => file.id), everything.slice(4));
assert.deepEqual(await collect(other.files.list()), []);
assert.deepEqual((await collect(client.models.list())).map((model) => model.id), ["a", "b", "c"]);
assert.equal((await client.models.retrieve("a")).owned_by, "at-a");

// Refusals, each as the class and with the fields that the SDK's users look at.
const send = async (more, options) =>
  client.files.create({ file: await toFile(Buffer.from("x"), "x"), ...named, ...more }, options);
const { BadRequestError, AuthenticationError, PermissionDeniedError, NotFoundError, ConflictError } = OpenAI;
await refused(BadRequestError, 400, () => send({ purpose: "mystery" }), {
  code: "invalid_value", param: "purpose", says: "`batch`",
});
await refused(BadRequestError, 400, () => send({ target_model_names: ["z"] }), {
  code: "model_not_found", param: "target_model_names", says: "`z`",
});
await refused(BadRequestError, 400, () => send({ target_model_names: undefined }), {
  code: "missing_required_parameter", param: "target_model_names",
});
await refused(BadRequestError, 400, () => send({ purpose: "batch" }), {
  code: "invalid_jsonl", param: "file", says: "line 1",
});
await refused(BadRequestError, 400, () => client.files.list({ limit: 0 }), { code: "invalid_value", param: "limit" });
await refused(NotFoundError, 404, () => client.files.retrieve("file-unknown"), { code: "not_found", param: "file_id" });
await refused(NotFoundError, 404, () => client.files.content("file-unknown"), { code: "not_found", param: "file_id" });
await refused(PermissionDeniedError, 403, () => other.files.retrieve(created.id), {
  code: "permission_denied", says: "does not have access",
});
const stranger = client.withOptions({ apiKey: "nobody's" });
await refused(AuthenticationError, 401, () => stranger.files.list(), { code: "invalid_api_key" });
const refusedFile = { file: await toFile(Buffer.alloc(4_000_000), "x"), ...named };
await refused(AuthenticationError, 401, () => stranger.files.create(refusedFile), { code: "invalid_api_key" });

const again = { headers: { "Idempotency-Key": "from-the-sdk-for-node" } };
const first = await send({}, again);
assert.equal((await send({}, again)).id, first.id);
const changed = async () => send({ file: await toFile(Buffer.from("other"), "x") }, again);
await refused(OpenAI.UnprocessableEntityError, 422, changed, { code: "idempotency_key_reused" });

// An answer that will not change, and that the SDK does not repeat.
const sent = await client.files.waitForProcessing(first.id, { pollInterval: 100, maxWait: 30_000 });
await refused(ConflictError, 409, () => client.post(`/jobs/${sent.mappings[0].job_id}/cancel`), { code: "job_ended" });
const tooLarge = { file: await toFile(Buffer.alloc(9 << 20), "x"), ...named };
await refused(OpenAI.APIError, 413, () => client.files.create(tooLarge), { code: "file_too_large", param: "file" });

// A deleted file is gone at once; what became of its copies is told for good.
await refused(PermissionDeniedError, 403, () => other.files.delete(created.id), { code: "permission_denied" });
assert.deepEqual(await client.files.delete(created.id), { id: created.id, object: "file", deleted: true });
await refused(NotFoundError, 404, () => client.files.delete(created.id), { code: "not_found", param: "file_id" });
const deletion = await client.get(`/files/${created.id}/deletion`, { query: { wait: 30 } });
assert.equal(deletion.status, "done");
const swept = await client.post("/sweeps", { body: { all: true } });
const over = await client.get(`/sweeps/${swept.id}`, { query: { wait: 60 } });
assert.equal(over.status, "succeeded");
assert.deepEqual(await collect(client.files.list()), []);
console.log("ok");
