"""An upload, or a batch, whose answer is lost: the official SDK for Python repeats it by itself, and gets the first answer.

Arguments: the base URL of something that loses the first answer, and a key; for a batch, the id of its file.
"""

import sys

import openai

base_url, key, *file = sys.argv[1:]
client = openai.OpenAI(base_url=base_url + "/v1", api_key=key)
if file:
    answer = client.batches.with_raw_response.create(
        input_file_id=file[0], endpoint="/v1/chat/completions", completion_window="24h"
    )
    assert answer.parse().input_file_id == file[0]
else:
    answer = client.files.with_raw_response.create(
        file=("in.txt", b"lost"), purpose="user_data", extra_body={"target_model_names": "a"}
    )
    assert answer.parse().filename == "in.txt"
assert answer.retries_taken == 1, answer.retries_taken
assert answer.headers["idempotency-replayed"] == "true", answer.headers
print("ok")
