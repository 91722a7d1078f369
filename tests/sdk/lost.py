"""An upload whose answer is lost: the official SDK for Python repeats it by itself, and gets the first answer.

Arguments: the base URL of something that loses the first answer, and a key.
"""

import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key=sys.argv[2])
answer = client.files.with_raw_response.create(
    file=("in.txt", b"lost"), purpose="user_data", extra_body={"target_model_names": "a"}
)
assert answer.retries_taken == 1, answer.retries_taken
assert answer.headers["idempotency-replayed"] == "true", answer.headers
assert answer.parse().filename == "in.txt"
print("ok")
