"""Webhooks through the official OpenAI SDK, unmodified, against a running Longshore that may reach this machine.

Arguments: the base URL, a key, and the key of another owner.
"""

import http.server
import queue
import sys
import threading

import openai

base_url, key, other_key = sys.argv[1:4]
client = openai.OpenAI(base_url=base_url + "/v1", api_key=key)
other = openai.OpenAI(base_url=base_url + "/v1", api_key=other_key)
delivered = queue.Queue()


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        delivered.put((body, dict(self.headers)))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *arguments):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/hook"


def refused(kind, call, says=""):
    try:
        call()
    except kind as error:
        assert says in error.message, error.message
        return
    raise AssertionError(f"no {kind.__name__}")


def unwrap(secret, kind=None):
    body, headers = delivered.get(timeout=30)
    event = client.webhooks.unwrap(body, headers, secret=secret)
    assert event.object == "event" and event.id.startswith("evt_"), event
    assert kind is None or event.type == kind, event
    return event, body, headers


types = client.webhooks.event_types.list()
assert types.object == "list" and "batch.completed" in types.data and "file.processed" in types.data, types

hook = client.webhooks.create(name="first", url=url, event_types=["batch.completed", "file.processed"])
assert hook.object == "webhook_endpoint" and hook.id.startswith("we_") and hook.name == "first" and hook.url == url
assert hook.event_types == ["batch.completed", "file.processed"], hook
assert hook.signing_secret.startswith("whsec_") and hook.created_at == hook.updated_at, hook
assert hook.signing_secret_hint and hook.signing_secret_hint not in hook.signing_secret

shown = client.webhooks.retrieve(hook.id)
assert (shown.id, shown.signing_secret_hint) == (hook.id, hook.signing_secret_hint)
assert not hasattr(shown, "signing_secret")
for number in range(4):
    client.webhooks.create(name=f"more {number}", url=url, event_types=["batch.failed"])
listed = [endpoint.id for endpoint in client.webhooks.list(limit=2)]
assert len(listed) == len(set(listed)) == 5 and listed[-1] == hook.id, listed
assert list(other.webhooks.list()) == []
refused(openai.PermissionDeniedError, lambda: other.webhooks.retrieve(hook.id), "does not have access")
refused(openai.NotFoundError, lambda: client.webhooks.retrieve("we_unknown"))
refused(openai.BadRequestError, lambda: client.webhooks.create(name="x", url=url, event_types=["x"]), "`file.processed`")

changed = client.webhooks.update(hook.id, name="second", event_types=["file.processed", "file.deleted"])
assert changed.name == "second" and changed.url == url and changed.event_types[1] == "file.deleted", changed

result = client.webhooks.test(hook.id, event_type="batch.completed")
assert (result.object, result.webhook_endpoint_id) == ("webhook_endpoint.test", hook.id)
assert (result.event_type, result.success, result.status_code) == ("batch.completed", True, 204), result
assert unwrap(hook.signing_secret, "batch.completed")[0].data.id == "sample"

named = {"target_model_names": "a"}
file = client.files.create(file=b"x", purpose="user_data", extra_body=named)
event, body, headers = unwrap(hook.signing_secret, "file.processed")
assert event.data.id == file.id, event
for wrong_body, secret in [(body + b" ", hook.signing_secret), (body, "whsec_AAAA")]:
    try:
        client.webhooks.unwrap(wrong_body, headers, secret=secret)
        raise AssertionError("a forged delivery was taken")
    except openai.InvalidWebhookSignatureError:
        pass

# Of a batch, as OpenAI itself tells it.
client.webhooks.update(hook.id, event_types=["batch.completed", "file.deleted"])
line = b'{"custom_id": "r", "method": "POST", "url": "/v1/responses", "body": {"input": "?"}}\n'
source = client.files.create(file=("in.jsonl", line), purpose="batch", extra_body=named)
batch = client.batches.create(input_file_id=source.id, endpoint="/v1/responses", completion_window="24h")
event, body, headers = unwrap(hook.signing_secret, "batch.completed")
assert isinstance(event, openai.types.webhooks.BatchCompletedWebhookEvent) and event.data.id == batch.id, event
batch = client.batches.retrieve(event.data.id)
assert batch.status == "completed" and b"Answer to r" in client.files.content(batch.output_file_id).content, batch

rotated = client.webhooks.rotate_secret(hook.id, keep_old_secret_active_for_24_hours=True)
assert rotated.id == hook.id and rotated.signing_secret != hook.signing_secret
client.files.delete(file.id)
body, headers = delivered.get(timeout=30)
for secret in [hook.signing_secret, rotated.signing_secret]:
    assert client.webhooks.unwrap(body, headers, secret=secret).type == "file.deleted"
alone = client.webhooks.rotate_secret(hook.id)
assert client.webhooks.test(hook.id, event_type="batch.failed").success
body, headers = delivered.get(timeout=30)
assert client.webhooks.unwrap(body, headers, secret=alone.signing_secret).type == "batch.failed"
try:
    client.webhooks.unwrap(body, headers, secret=rotated.signing_secret)
    raise AssertionError("the old secret still signs")
except openai.InvalidWebhookSignatureError:
    pass

gone = client.webhooks.delete(hook.id)
assert (gone.id, gone.object, gone.deleted) == (hook.id, "webhook_endpoint.deleted", True), gone
refused(openai.NotFoundError, lambda: client.webhooks.delete(hook.id))
assert hook.id not in [endpoint.id for endpoint in client.webhooks.list()]
print("ok")
