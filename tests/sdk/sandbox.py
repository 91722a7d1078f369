"""The sandbox, held to what the official OpenAI SDK expects of a provider.

Argument: the base URL of an account.
"""

import sys

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
print("ok")
