"""Files through the official OpenAI SDK, unmodified, against a running Longshore.

Arguments: the base URL, a key, the key of another owner, and an admin key. The model `c` refuses the first file whose
name holds `refused`.
"""

import asyncio
import io
import json
import pathlib
import sys
import tempfile

import openai
from openai.types import FileObject

base_url, key, other_key, admin_key = sys.argv[1:5]
client = openai.OpenAI(base_url=base_url + "/v1", api_key=key)
other = openai.OpenAI(base_url=base_url + "/v1", api_key=other_key)


def requests(count):
    line = {"method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": []}}
    return "".join(json.dumps({"custom_id": f"r{n}"} | line) + "\n" for n in range(count)).encode()


def refused(kind, call, code=None, param=None, says=""):
    try:
        call()
    except kind as error:
        assert type(error) is kind, error
        assert error.code == code, (error.code, code)
        assert error.param == param, (error.param, param)
        assert says in error.message, error.message
        assert error.request_id, "no x-request-id"
        return
    raise AssertionError(f"no {kind.__name__}")


models = {"target_model_names": ["a", "b"], "metadata": {"team": "red", "run": "7"}}
created = client.files.create(
    file=("in.jsonl", requests(3)),
    purpose="batch",
    expires_after={"anchor": "created_at", "seconds": 3600},
    extra_body=models,
)
assert created.object == "file" and created.filename == "in.jsonl" and created.bytes == len(requests(3))
assert created.expires_at == created.created_at + 3600
assert created.metadata == {"team": "red", "run": "7"}, created.metadata
assert [mapping["model"] for mapping in created.mappings] == ["a", "b"]

done = client.files.wait_for_processing(created.id, poll_interval=0.1, max_wait_seconds=30)
assert done.status == "processed", done
assert client.files.retrieve(created.id).id == created.id
assert client.files.content(created.id).read() == requests(3)
with client.files.with_streaming_response.content(created.id) as response:
    assert b"".join(response.iter_bytes(7)) == requests(3)

# The long way round is one request that waits.
assert client.files.retrieve(created.id, extra_query={"wait": 10}).status == "processed"

# A download names its bytes, and gives parts of them.
whole = client.files.content(created.id).response
assert whole.headers["etag"] == f'"{created.sha256}"' and whole.headers["accept-ranges"] == "bytes"
assert 'filename="in.jsonl"' in whole.headers["content-disposition"], whole.headers
part = client.files.content(created.id, extra_headers={"Range": "bytes=2-5"}).response
assert part.status_code == 206 and part.content == requests(3)[2:6]
assert part.headers["content-range"] == f"bytes 2-5/{created.bytes}"

# What went to two models goes to a third later on.
more = client.post(f"/files/{created.id}/mappings", body={"target_model_names": ["b", "c"]}, cast_to=FileObject)
assert [mapping["model"] for mapping in more.mappings] == ["a", "b", "c"], more.mappings
assert client.files.wait_for_processing(created.id, poll_interval=0.1, max_wait_seconds=30).status == "processed"

# Every way to hand over a file.
with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "naïve \"name\".txt"
    path.write_bytes(b"path")
    named = {"target_model_names": "a"}
    by_path = client.files.create(file=path, purpose="user_data", extra_body=named)
    assert by_path.filename == path.name, by_path.filename
    with path.open("rb") as opened:
        assert client.files.create(file=opened, purpose="assistants", extra_body=named).bytes == 4
unnamed = client.files.create(file=b"bytes", purpose="user_data", extra_body=named)
assert client.files.content(unnamed.id).text == "bytes"
assert client.files.create(file=io.BytesIO(b"stream"), purpose="vision", extra_body=named).bytes == 6
typed = client.files.create(file=("a.txt", b"typed", "text/plain"), purpose="user_data", extra_body=named)
assert client.files.content(typed.id).response.headers["content-type"] == "text/plain"
by_query = openai.OpenAI(base_url=base_url + "/v1", api_key=key, default_query={"target_model_names": "a,b"})
assert len(by_query.files.create(file=b"query", purpose="evals").mappings) == 2



async def upload_ten():
    async with openai.AsyncOpenAI(base_url=base_url + "/v1", api_key=key) as many:
        uploads = [
            many.files.create(file=(f"{n}.txt", str(n).encode()), purpose="user_data", extra_body=named) for n in range(10)
        ]
        files = await asyncio.gather(*uploads)
        assert [file.filename for file in files] == [f"{n}.txt" for n in range(10)]
        done = await asyncio.gather(*(many.files.wait_for_processing(file.id, poll_interval=0.1) for file in files))
        assert {file.status for file in done} == {"processed"}
        assert (await many.files.content(files[7].id)).text == "7"
        listed = {file.id async for file in many.files.list(purpose="user_data", limit=3)}
        assert {file.id for file in files} <= listed
        return len(files)


ten = asyncio.run(upload_ten())

# A model's refusal is told by the file, and can be tried again.
spoiled = client.files.create(
    file=("refused.txt", b"x"), purpose="user_data", extra_body={"target_model_names": "a, c,a", "metadata": '{"k": "v"}'}
)
assert [mapping["model"] for mapping in spoiled.mappings] == ["a", "c"], "duplicates collapse"
assert spoiled.metadata == {"k": "v"}
spoiled = client.files.wait_for_processing(spoiled.id, poll_interval=0.1, max_wait_seconds=30)
assert spoiled.status == "error" and "c" in spoiled.status_details, spoiled
assert [mapping["status"] for mapping in spoiled.mappings] == ["ready", "failed"], spoiled.mappings
failure = spoiled.mappings[1]["error"]
assert failure["http_status"] == 400 and not failure["retryable"], failure
assert [file.id for file in client.files.list(extra_query={"status": "error"})] == [spoiled.id]
client.post(f"/files/{spoiled.id}/retry", cast_to=FileObject)
assert client.files.wait_for_processing(spoiled.id, poll_interval=0.1, max_wait_seconds=30).status == "processed"

everything = [file.id for file in client.files.list(limit=2, order="asc")]
assert len(everything) == len(set(everything)) == 8 + ten, everything
assert everything[0] == created.id
assert [file.id for file in client.files.list(purpose="batch")] == [created.id]
assert [file.id for file in client.files.list(extra_query={"model": "c"})] == [spoiled.id, created.id]
newest = [file.id for file in client.files.list()]
assert newest == everything[::-1]
assert [file.id for file in client.files.list(after=everything[2], order="asc")] == everything[3:]
assert list(other.files.list()) == []
admin = openai.OpenAI(base_url=base_url + "/v1", api_key=admin_key)
assert admin.files.retrieve(created.id).id == created.id
acting = admin.with_options(default_headers={"X-Longshore-Owner": "bob"})
assert list(acting.files.list()) == []
assert [model.id for model in client.models.list()] == ["a", "b", "c"]
assert client.models.retrieve("a").owned_by == "at-a"

send = lambda **more: client.files.create(**({"file": b"x", "purpose": "user_data", "extra_body": named} | more))
refused(openai.BadRequestError, lambda: send(purpose="mystery"), "invalid_value", "purpose", "`batch`")
refused(openai.BadRequestError, lambda: send(extra_body={"target_model_names": ["z"]}), "model_not_found", "target_model_names", "`z`")
refused(openai.BadRequestError, lambda: send(purpose="batch", file=b"{}\n"), "invalid_jsonl", "file", "line 1")
refused(openai.BadRequestError, lambda: send(expires_after={"anchor": "created_at", "seconds": 1}), "invalid_value", "expires_after[seconds]")
refused(openai.BadRequestError, lambda: list(client.files.list(limit=0)), "invalid_value", "limit")
refused(openai.BadRequestError, lambda: send(extra_body=None), "missing_required_parameter", "target_model_names")
refused(openai.BadRequestError, lambda: send(extra_body=named | {"metadata": {str(n): "v" for n in range(17)}}), "invalid_value", "metadata")
refused(openai.BadRequestError, lambda: list(client.files.list(after="file-unknown")), "invalid_value", "after")
refused(openai.PermissionDeniedError, lambda: acting.files.retrieve(created.id), "permission_denied")
refused(openai.NotFoundError, lambda: client.files.retrieve("file-unknown"), "not_found", "file_id")
refused(openai.PermissionDeniedError, lambda: other.files.retrieve(created.id), "permission_denied", None, "does not have access")
refused(openai.PermissionDeniedError, lambda: other.files.content(created.id), "permission_denied")
stranger = client.with_options(api_key="nobody's")
refused(openai.AuthenticationError, lambda: stranger.files.list(), "invalid_api_key")
refused(openai.AuthenticationError, lambda: stranger.files.create(file=b"x" * 4_000_000, purpose="batch"), "invalid_api_key")

again = {"Idempotency-Key": "from-the-sdk"}
first, second = send(extra_headers=again), client.files.with_raw_response.create(
    file=b"x", purpose="user_data", extra_body=named, extra_headers=again
)
assert first.id == second.parse().id and second.headers["idempotency-replayed"] == "true"
refused(openai.UnprocessableEntityError, lambda: send(file=b"other", extra_headers=again), "idempotency_key_reused")

# What was settled cannot be retried: an answer that will not change, and that the SDK does not repeat.
job = first.mappings[0]["job_id"]
client.files.wait_for_processing(first.id, poll_interval=0.1, max_wait_seconds=30)
refused(openai.ConflictError, lambda: client.post(f"/jobs/{job}/cancel", cast_to=object), "job_ended")

try:
    send(file=b"x" * (9 << 20))
    raise AssertionError("a file over the limit was taken")
except openai.APIStatusError as error:
    assert (error.status_code, error.code) == (413, "file_too_large"), error

# A deleted file is gone at once; what became of its copies is told for good.
refused(openai.PermissionDeniedError, lambda: other.files.delete(created.id), "permission_denied")
gone = client.files.delete(created.id)
assert (gone.id, gone.object, gone.deleted) == (created.id, "file", True), gone
refused(openai.NotFoundError, lambda: client.files.delete(created.id), "not_found", "file_id")
refused(openai.NotFoundError, lambda: client.files.content(created.id), "not_found", "file_id")
assert created.id not in [file.id for file in client.files.list()]
deletion = client.get(f"/files/{created.id}/deletion", cast_to=object, options={"params": {"wait": 30}})
assert deletion["status"] == "done", deletion
assert [copy["receipt"]["proof"] for copy in deletion["mappings"]] == ["deleted"] * 3, deletion

swept = client.post("/sweeps", body={"purpose": "user_data", "created_before": 4_000_000_000}, cast_to=object)
swept = client.get(f"/sweeps/{swept['id']}", cast_to=object, options={"params": {"wait": 60}})
assert swept["status"] == "succeeded" and swept["counts"]["pending"] == 0, swept
assert not [file for file in client.files.list() if file.purpose == "user_data"]
print("ok")
