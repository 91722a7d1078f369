// An upload whose answer is lost: the official SDK for Node repeats it by itself, and gets the first answer.
//
// Arguments: the base URL of something that loses the first answer, and a key.

import assert from "node:assert/strict";
import { createRequire } from "node:module";

const OpenAI = createRequire(import.meta.url)("openai");

const [baseURL, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${baseURL}/v1`, apiKey });
const file = await OpenAI.toFile(Buffer.from("lost"), "in.txt");
const upload = client.files.create({ file, purpose: "user_data", target_model_names: "a" });
const { data, response } = await upload.withResponse();
assert.equal(response.headers.get("idempotency-replayed"), "true");
assert.equal(data.filename, "in.txt");
console.log("ok");
