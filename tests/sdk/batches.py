"""Batches through the official OpenAI SDK, unmodified, against a running Longshore.

Arguments: the base URL, a key, and the key of another owner. The model `a` fails the request `r-1`, and `c` holds its
batches in the middle of their work.
"""

import json
import sys
import time

import openai
from openai.types import Batch

base_url, key, other_key = sys.argv[1:4]
client = openai.OpenAI(base_url=base_url + "/v1", api_key=key)
other = openai.OpenAI(base_url=base_url + "/v1", api_key=other_key)
chat = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}


def line(number):
    body = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
    return {"custom_id": f"r-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def refused(kind, call, code=None, param=None, says=""):
    try:
        call()
    except kind as error:
        assert type(error) is kind, error
        assert (error.code, error.param) == (code, param), (error.code, error.param)
        assert says in error.message, error.message
        assert error.request_id, "no x-request-id"
        return
    raise AssertionError(f"no {kind.__name__}")


def polled(batch, *until):
    end = time.monotonic() + 60
    while batch.status not in until:
        assert batch.status in ("validating", "in_progress", "finalizing", "cancelling"), batch
        assert time.monotonic() < end, batch
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    return batch


def lines(file_id):
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


content = "".join(json.dumps(line(number)) + "\n" for number in range(3)).encode()
file = client.files.create(
    file=("in.jsonl", content), purpose="batch", extra_body={"target_model_names": ["a", "b", "c"]}
)

# On two of the models that the file goes to, at once, whether it has arrived there or not.
both = client.batches.create(
    input_file_id=file.id,
    metadata={"team": "red"},
    output_expires_after={"anchor": "created_at", "seconds": 86400},
    extra_body={"target_model_names": ["a", "b"]},
    **chat,
)
assert both.object == "batch" and both.status == "validating" and both.input_file_id == file.id, both
assert both.endpoint == chat["endpoint"] and both.completion_window == "24h" and both.metadata == {"team": "red"}
assert [run["model"] for run in both.runs] == ["a", "b"], both.runs
done = polled(both, "completed")
counts = done.request_counts
assert (counts.total, counts.completed, counts.failed) == (6, 5, 1), counts
assert done.created_at <= done.in_progress_at <= done.completed_at and done.errors is None, done
assert done.cancelled_at is None and done.failed_at is None and done.expired_at is None, done

answers = lines(done.output_file_id)
assert sorted((answer["model"], answer["custom_id"]) for answer in answers) == [
    ("a", "r-0"), ("a", "r-2"), ("b", "r-0"), ("b", "r-1"), ("b", "r-2")
], answers
completions = [
    openai.types.chat.ChatCompletion.model_validate(answer["response"]["body"], strict=True) for answer in answers
]
assert {completion.choices[0].message.content for completion in completions} == {
    "Answer to r-0", "Answer to r-1", "Answer to r-2"
}
assert done.usage.total_tokens == sum(completion.usage.total_tokens for completion in completions)
assert done.usage.input_tokens + done.usage.output_tokens == done.usage.total_tokens, done.usage
(failed,) = lines(done.error_file_id)
assert (failed["custom_id"], failed["response"]["status_code"]) == ("r-1", 400), failed
output = client.files.retrieve(done.output_file_id)
assert output.purpose == "batch_output" and output.status == "processed", output

# One request among all, and what failed once more.
found = client.get(f"/batches/{both.id}/results", cast_to=object, options={"params": {"custom_id": "r-2"}})
assert [(line["model"], line["status"]) for line in found["data"]] == [("a", "succeeded"), ("b", "succeeded")], found
again = client.post(f"/batches/{both.id}/retry", cast_to=Batch)
again = polled(again, "completed")
assert [run["model"] for run in again.runs] == ["a"] and again.request_counts.total == 1, again

# On one of them, which waits by itself.
one = client.batches.create(input_file_id=file.id, extra_body={"model": "b"}, **chat)
one = client.batches.retrieve(one.id, extra_query={"wait": 60})
assert one.status == "completed" and one.error_file_id is None and one.metadata is None, one
assert sorted(answer["custom_id"] for answer in lines(one.output_file_id)) == ["r-0", "r-1", "r-2"]

held = polled(client.batches.create(input_file_id=file.id, extra_body={"model": "c"}, **chat), "in_progress")
refused(openai.ConflictError, lambda: client.files.delete(file.id), "file_in_use", says=held.id)
stopping = client.batches.cancel(held.id)
assert stopping.id == held.id and stopping.status == "cancelling" and stopping.cancelling_at, stopping
held = polled(stopping, "cancelled")
assert held.cancelled_at >= held.cancelling_at and held.completed_at is None, held
refused(openai.ConflictError, lambda: client.batches.cancel(held.id), "batch_ended")
refused(openai.ConflictError, lambda: client.batches.cancel(one.id), "batch_ended", says="`completed`")

everything = [held.id, one.id, again.id, both.id]
for limit in [1, 3, 100]:
    assert [batch.id for batch in client.batches.list(limit=limit)] == everything, limit
assert [batch.id for batch in client.batches.list(after=one.id)] == everything[2:]
assert [batch.id for batch in client.batches.list(extra_query={"status": "cancelled"})] == [held.id]
assert list(other.batches.list()) == []

create = lambda **more: client.batches.create(**({"input_file_id": file.id} | chat | more))
refused(openai.NotFoundError, lambda: create(input_file_id="file-unknown"), "not_found", "input_file_id")
refused(openai.NotFoundError, lambda: client.batches.retrieve("batch_unknown"), "not_found", "batch_id")
refused(openai.NotFoundError, lambda: client.batches.cancel("batch_unknown"), "not_found", "batch_id")
refused(openai.PermissionDeniedError, lambda: other.batches.retrieve(both.id), "permission_denied")
refused(openai.PermissionDeniedError, lambda: other.batches.cancel(both.id), "permission_denied")
refused(openai.PermissionDeniedError, lambda: other.files.content(done.output_file_id), "permission_denied")
theirs = lambda: other.batches.create(input_file_id=file.id, **chat)
refused(openai.PermissionDeniedError, theirs, "permission_denied", says="does not have access to the file")
refused(openai.BadRequestError, lambda: create(completion_window="1h"), "invalid_value", "completion_window", "`24h`")
refused(openai.BadRequestError, lambda: create(endpoint="chat"), "invalid_value", "endpoint")
refused(openai.BadRequestError, lambda: create(extra_body={"model": "z"}), "model_not_found", "target_model_names", "`z`")
refused(openai.BadRequestError, lambda: create(input_file_id=done.output_file_id), "invalid_value", "input_file_id")
refused(openai.BadRequestError, lambda: create(metadata={str(n): "v" for n in range(17)}), "invalid_value", "metadata")
refused(openai.BadRequestError, lambda: list(client.batches.list(after="batch_unknown")), "invalid_value", "after")

named = {"Idempotency-Key": "from-the-sdk"}
first = create(extra_body={"model": "b"}, extra_headers=named)
second = client.batches.with_raw_response.create(
    input_file_id=file.id, extra_body={"model": "b"}, extra_headers=named, **chat
)
assert second.parse().id == first.id and second.headers["idempotency-replayed"] == "true"
print("ok")
