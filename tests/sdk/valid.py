"""Whether a file is a valid description in OpenAPI 3.1.

Argument: the file.
"""

import json
import pathlib
import sys

from openapi_spec_validator import OpenAPIV31SpecValidator

description = json.loads(pathlib.Path(sys.argv[1]).read_text())
problems = [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in OpenAPIV31SpecValidator(description).iter_errors()]
operations = [
    operation for item in description["paths"].values() for operation in item.values() if isinstance(operation, dict)
]
names = [operation["operationId"] for operation in operations]
problems += [f"{name} is not unique" for name in names if names.count(name) > 1]
for operation in operations:
    if not operation.get("summary") or not operation.get("tags"):
        problems.append(f"{operation['operationId']} has no summary or no tag")
    for parameter in operation.get("parameters", []):
        if "$ref" not in parameter and not parameter.get("description"):
            problems.append(f"{operation['operationId']}: `{parameter['name']}` has no description")
print("\n".join(problems) or "ok")
