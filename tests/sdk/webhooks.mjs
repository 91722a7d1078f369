// Webhooks through the official OpenAI SDK for Node, unmodified, against a running Longshore that may reach this
// machine. This SDK manages no endpoints by name, so that they are made by its plain calls.
//
// Arguments: the base URL and a key.

import assert from "node:assert/strict";
import http from "node:http";
import { createRequire } from "node:module";

const require = createRequire(import.meta.url);
const OpenAI = require("openai");

const [baseURL, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${baseURL}/v1`, apiKey });

const delivered = [];
let wake = () => {};
const server = http.createServer(async (request, response) => {
  const body = [];
  for await (const chunk of request) body.push(chunk);
  delivered.push({ body: Buffer.concat(body).toString(), headers: request.headers });
  response.writeHead(200).end("thank you");
  wake();
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const url = `http://127.0.0.1:${server.address().port}/hook`;

async function next() {
  while (delivered.length === 0) await new Promise((resolve) => (wake = resolve));
  return delivered.shift();
}

const hook = await client.post("/webhook_endpoints", {
  body: { name: "node", url, event_types: ["file.processed"] },
});
assert.equal(hook.object, "webhook_endpoint");
assert.match(hook.signing_secret, /^whsec_[A-Za-z0-9+/]+=*$/);

const file = await client.files.create({
  file: new File(["x"], "x.txt"),
  purpose: "user_data",
  target_model_names: "a",
});
const { body, headers } = await next();
const event = await client.webhooks.unwrap(body, headers, hook.signing_secret);
assert.equal(event.type, "file.processed");
assert.deepEqual(event.data, { id: file.id });
assert.equal(event.id, headers["webhook-id"]);
const { InvalidWebhookSignatureError } = OpenAI;
await assert.rejects(client.webhooks.unwrap(body + " ", headers, hook.signing_secret), InvalidWebhookSignatureError);
await assert.rejects(client.webhooks.unwrap(body, headers, "whsec_AAAA"), InvalidWebhookSignatureError);

await client.post(`/webhook_endpoints/${hook.id}`, { body: { event_types: ["batch.completed"] } });
const line = '{"custom_id": "r", "method": "POST", "url": "/v1/responses", "body": {"input": "?"}}\n';
const source = await client.files.create({
  file: new File([line], "in.jsonl"),
  purpose: "batch",
  target_model_names: "a",
});
const over = { endpoint: "/v1/responses", completion_window: "24h" };
const batch = await client.batches.create({ input_file_id: source.id, ...over });
const told = await next();
const ended = await client.webhooks.unwrap(told.body, told.headers, hook.signing_secret);
assert.deepEqual([ended.type, ended.data.id], ["batch.completed", batch.id]);
assert.equal((await client.batches.retrieve(ended.data.id)).request_counts.completed, 1);

const test = await client.post(`/webhook_endpoints/${hook.id}/test`, { body: { event_type: "batch.expired" } });
assert.deepEqual([test.success, test.status_code], [true, 200]);
const sample = await next();
assert.equal((await client.webhooks.unwrap(sample.body, sample.headers, hook.signing_secret)).type, "batch.expired");
assert.equal((await client.delete(`/webhook_endpoints/${hook.id}`)).deleted, true);
server.closeAllConnections();
server.close();
console.log("ok");
