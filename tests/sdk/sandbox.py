"""The sandbox, held to what the official OpenAI SDK expects of a provider.

Argument: the base URL of an account.
"""

import http.server
import json
import queue
import sys
import threading
import time
import urllib.request

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="any", max_retries=0)

file = client.files.create(
    file=("in.jsonl", b"{}\n"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
)
assert file.object == "file" and file.id.startswith("file-") and file.bytes == 3
assert file.expires_at == file.created_at + 3600
assert client.files.wait_for_processing(file.id, poll_interval=0.05).id == file.id
assert client.files.content(file.id).read() == b"{}\n"
others = [client.files.create(file=b"x", purpose="user_data").id for _ in range(4)]
listed = [entry.id for entry in client.files.list(limit=2)]
assert sorted(listed) == sorted([file.id, *others]), listed
for kind, call in [
    (openai.BadRequestError, lambda: client.files.create(file=b"x", purpose="mystery")),
    (openai.BadRequestError, lambda: client.files.content(others[0])),
    (openai.NotFoundError, lambda: client.files.retrieve("file-unknown")),
    (openai.NotFoundError, lambda: client.files.delete("file-unknown")),
]:
    try:
        call()
        raise AssertionError(f"no {kind.__name__}")
    except kind as error:
        assert type(error) is kind and error.message, error
assert client.files.delete(file.id).deleted
try:
    client.files.retrieve(file.id)
    raise AssertionError("a deleted file is still there")
except openai.NotFoundError:
    pass


# The account tells a receiver here of the end of its batches.
events = queue.Queue()
SECRET = "whsec_K5zEqdtHHb6QDwn75GmvMO/dinQPk44yUSCQP7J0M50="


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        events.put((body, dict(self.headers)))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


receiver = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
threading.Thread(target=receiver.serve_forever, daemon=True).start()
host, account = sys.argv[1].removesuffix("/v1").rsplit("/", 1)


def configure(**batches):
    webhook = {"url": f"http://127.0.0.1:{receiver.server_port}/hook", "secret": SECRET}
    settings = json.dumps({"batches": batches, "webhook": webhook}).encode()
    url = f"{host}/_control/{account}/settings"
    urllib.request.urlopen(urllib.request.Request(url, settings, method="PUT")).close()


configure(phase_ms=50, failing={"t-1": 429})


def line(number):
    body = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
    return {"custom_id": f"t-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


content = "".join(json.dumps(line(number)) + "\n" for number in range(3)).encode()
source = client.files.create(file=("in.jsonl", content), purpose="batch")
chat = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
batch = client.batches.create(input_file_id=source.id, metadata={"team": "a"}, **chat)
assert batch.status == "validating" and batch.id.startswith("batch_") and batch.object == "batch"
assert batch.metadata == {"team": "a"} and batch.expires_at == batch.created_at + 86400
while batch.status not in ("completed", "failed"):
    time.sleep(0.02)
    batch = client.batches.retrieve(batch.id)
assert batch.status == "completed", batch
assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (3, 2, 1)
answers = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
assert [answer["custom_id"] for answer in answers] == ["t-2", "t-0"], answers
completions = [
    openai.types.chat.ChatCompletion.model_validate(answer["response"]["body"], strict=True) for answer in answers
]
assert batch.usage.total_tokens == sum(completion.usage.total_tokens for completion in completions)
(failed,) = [json.loads(line) for line in client.files.content(batch.error_file_id).text.splitlines()]
assert (failed["custom_id"], failed["response"]["status_code"]) == ("t-1", 429), failed

event = client.webhooks.unwrap(*events.get(timeout=10), secret=SECRET)
assert (event.type, event.data.id) == ("batch.completed", batch.id), event

configure(phase_ms=50, hold_at="in_progress")
second = client.batches.create(input_file_id=source.id, **chat)
assert client.batches.cancel(second.id).status == "cancelling"
event = client.webhooks.unwrap(*events.get(timeout=10), secret=SECRET)
assert (event.type, event.data.id) == ("batch.cancelled", second.id), event
try:
    client.batches.cancel(second.id)
    raise AssertionError("an ended batch was cancelled")
except openai.ConflictError:
    pass
assert [entry.id for entry in client.batches.list(limit=1)] == [second.id, batch.id]
try:
    client.batches.create(input_file_id="file-unknown", **chat)
    raise AssertionError("a batch over nothing was created")
except openai.NotFoundError:
    pass
print("ok")
