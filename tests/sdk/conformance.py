"""Whether a running Longshore answers as its description says, by schemathesis: right requests and wrong ones, made up
from the description and from earlier answers. The server has a model `a` at a provider `at-a`.

Arguments: the base URL, an admin key, a folder for what schemathesis writes, a file of requests to
`/v1/chat/completions` that `a` has, and a batch of it that has ended and of which some requests failed.
"""

import itertools
import os
import sys

import schemathesis
from schemathesis.cli import schemathesis as command

base_url, key, folder, batch_file, batch = sys.argv[1:6]
os.chdir(folder)

# Longer than this nothing is waited for: `wait` goes up to 60 s.
LONGEST_WAIT = 0.05

numbers = itertools.count()


@schemathesis.hook
def before_load_schema(context, raw_schema):
    """Adds to the description what only a configuration knows, and what no description can say."""
    model = {"type": "string", "enum": ["a"]}
    schemas, paths = raw_schema["components"]["schemas"], raw_schema["paths"]
    create = schemas["CreateFile"]
    fields = create["properties"]
    # They go together; and no models are configured as the default ones.
    create["required"] += ["target_model_names", "expires_after[anchor]", "expires_after[seconds]"]
    fields["target_model_names"] |= {"items": model, "minItems": 1}
    # Its bytes would have to be requests, as JSON lines.
    fields["purpose"]["enum"].remove("batch")
    # A JSON object in a text.
    del fields["metadata"], fields["target_model_names[]"]
    for names in schemas["CreateMappings"]["properties"]["target_model_names"]["oneOf"]:
        names |= {"items": model} if names["type"] == "array" else model
    # In the query they would make up for names that a wrong form lacks.
    parameters = paths["/v1/files"]["post"]["parameters"]
    parameters[:] = [parameter for parameter in parameters if parameter.get("in") != "query"]
    # Which addresses can be told of anything is for the server to say. Nobody listens at this one.
    for name in ["CreateWebhookEndpoint", "UpdateWebhookEndpoint"]:
        schemas[name]["properties"]["url"] = {"type": "string", "enum": ["http://127.0.0.1:9/"]}
    # A batch needs a file that is there, and what it runs on is named in one way. Its file is of one endpoint.
    fields = schemas["CreateBatch"]["properties"]
    del fields["model"]
    fields["input_file_id"] = {"type": "string", "enum": [batch_file]}
    fields["endpoint"] = {"type": "string", "enum": ["/v1/chat/completions"]}
    for names in fields["target_model_names"]["oneOf"]:
        names |= {"items": model} if names["type"] == "array" else model if names["type"] == "string" else {}
    for name in ["ImportBatch", "RetryBatch"]:
        schemas[name]["properties"]["model"] = model
    for path, item in paths.items():
        if path.startswith("/v1/batches/{id}"):
            for operation in item.values():
                operation["parameters"][0]["schema"] = {"type": "string", "enum": [batch]}
    # Another model than those of the batch is refused.
    for parameter in paths["/v1/batches/{id}/results"]["get"]["parameters"]:
        if parameter.get("name") == "model":
            parameter["schema"] = model
    for action in ["pause", "resume"]:
        parameters = paths[f"/v1/admin/providers/{{name}}/{action}"]["post"]["parameters"]
        parameters[0]["schema"] = {"type": "string", "enum": ["at-a"]}


@schemathesis.hook
def filter_body(context, body):
    """A field's name is part of a header, where control characters cannot be."""
    return not isinstance(body, dict) or all(name.isprintable() for name in body)


@schemathesis.hook
def before_call(context, case, kwargs):
    """Leaves out of a right request what is right only now and then."""
    query, headers = case.query or {}, case.headers or {}
    if isinstance(query.get("wait"), (int, float)):
        query["wait"] = min(query["wait"], LONGEST_WAIT)
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    # An id of nothing is refused there. These are how ids of jobs and of files begin.
    if not query.get("after", "").startswith(("job_", "bG9uZ3No", "we_")):
        query.pop("after", None)
    # A key that was used with another file is refused.
    if "Idempotency-Key" in headers:
        headers["Idempotency-Key"] = f"{next(numbers)}-{headers['Idempotency-Key']}"[:255]


arguments = [
    "run",
    f"{base_url}/openapi.json",
    "--header", f"Authorization: Bearer {key}",
    "--checks", "all",
    "--phases", "examples,coverage,fuzzing,stateful",
    "--max-examples", "20",
    "--seed", "1",
    "--generation-deterministic",
    # Refused everywhere, which no description can say.
    "--generation-allow-x00", "false",
    "--request-timeout", "20",
    # It goes on until it is left.
    "--exclude-path", "/v1/events",
    "--continue-on-failure",
    "--no-color",
]
command(arguments, prog_name="schemathesis")
