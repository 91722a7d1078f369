// An upload, or a batch, whose answer is lost: the official SDK for Node repeats it by itself, and gets the first answer.
//
// Arguments: the base URL of something that loses the first answer, and a key; for a batch, the id of its file.

import assert from "node:assert/strict";
import { createRequire } from "node:module";

const OpenAI = createRequire(import.meta.url)("openai");

const [baseURL, apiKey, input_file_id] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${baseURL}/v1`, apiKey });

async function make() {
  if (input_file_id) {
    const over = { endpoint: "/v1/chat/completions", completion_window: "24h" };
    return client.batches.create({ input_file_id, ...over }).withResponse();
  }
  const file = await OpenAI.toFile(Buffer.from("lost"), "in.txt");
  return client.files.create({ file, purpose: "user_data", target_model_names: "a" }).withResponse();
}

const { data, response } = await make();
assert.equal(response.headers.get("idempotency-replayed"), "true");
assert.equal(input_file_id ? data.input_file_id : data.filename, input_file_id ?? "in.txt");
console.log("ok");
