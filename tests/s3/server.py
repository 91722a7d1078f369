"""An S3 to test against: moto's, with every request's signature checked, and with the time when an upload in parts began.

    server.py PORT BUCKET

prints a line of JSON with the key that it takes, and then serves. What a test has to see or to do behind the API's back is
under /_test: `state` answers what the bucket holds, `age` makes all of it older, or what has one name, `put` makes an object,
`hide` takes the bucket away until `show`, `keep` refuses deletes until `let_go`, `conflict` answers so many writes of what
must not be there as S3 does while another one is under way.
"""

import json
import os
import re
import sys
import threading
from datetime import datetime, timedelta, timezone
from urllib.parse import parse_qs

# Read by moto when it is imported: no request goes without a signature.
os.environ["INITIAL_NO_AUTH_ACTION_COUNT"] = "0"

from moto.iam.models import iam_backends
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import FakeMultipart, s3_backends
from werkzeug.serving import WSGIRequestHandler, make_server

ACCOUNT = "123456789012"
EVERYTHING = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}


def key():
    backend = iam_backends[ACCOUNT]["aws"]
    backend.create_user("us-east-1", "longshore")
    backend.put_user_policy("longshore", "everything", json.dumps(EVERYTHING))
    made = backend.create_access_key("longshore")
    return {"access_key_id": made.access_key_id, "secret_access_key": made.secret_access_key}


# When each upload in parts began: moto says of all of them that it was in 2010.
begun = {}
begin = FakeMultipart.__init__


def begin_and_note(upload, *arguments, **named):
    begin(upload, *arguments, **named)
    begun[upload.id] = datetime.now(timezone.utc)


def with_beginnings(text, prefix):
    def dated(upload):
        return f"{upload[1]}{begun[upload[2]]:%Y-%m-%dT%H:%M:%S.000Z}</Initiated>"

    def as_in_minio(upload):
        return upload[0] if prefix is None or f"<Key>{prefix}</Key>" in upload[0] else ""

    # MinIO takes a prefix for a whole key.
    text = re.sub(r"<Upload>.*?</Upload>", as_in_minio, text, flags=re.DOTALL)
    return re.sub(r"(<UploadId>(\w+)</UploadId>.*?<Initiated>)[^<]*</Initiated>", dated, text, flags=re.DOTALL)


def buckets():
    return s3_backends[ACCOUNT]["aws"].buckets


def state():
    found = {"objects": {}, "uploads": {}, "written_at": {}, "begun": len(begun)}
    for bucket in list(buckets().values()):
        for name, entry in list(bucket.keys.items()):
            found["objects"][name] = entry.size
            found["written_at"][name] = str(entry.last_modified)
        for upload in list(bucket.multiparts.values()):
            found["uploads"][upload.key_name] = len(upload.parts)
    return found


def age(seconds, name):
    def is_meant(entry):
        return name is None or entry == name

    for bucket in list(buckets().values()):
        uploads = [upload for upload in bucket.multiparts.values() if is_meant(upload.key_name)]
        parts = [part for upload in uploads for part in upload.parts.values()]
        objects = [entry for entry in bucket.keys.values() if is_meant(entry.name)]
        for entry in objects + parts:
            entry.last_modified -= timedelta(seconds=seconds)
        for upload in uploads:
            begun[upload.id] -= timedelta(seconds=seconds)


def put(bucket, name):
    s3_backends[ACCOUNT]["aws"].put_object(bucket, name, b"some bytes")


def refuse(environ, start_response, status, code):
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    text = f"<Error><Code>{code}</Code><Message>As the test wants it.</Message></Error>".encode()
    start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))])
    return [text]


class Quiet(WSGIRequestHandler):
    # As S3: a connection serves many requests.
    protocol_version = "HTTP/1.1"

    def log_request(self, *arguments):
        pass


def application(s3, bucket):
    hidden, refused, lock = {}, {"deletes": False, "creates": 0}, threading.Lock()

    def conflicts():
        with lock:
            refused["creates"] -= 1
            return refused["creates"] >= 0

    def answer(environ, start_response):
        query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
        match environ["PATH_INFO"]:
            case "/_test/state":
                body = state()
            case "/_test/age":
                body = age(int(query["seconds"][0]), query.get("name", [None])[0])
            case "/_test/put":
                body = put(bucket, query["name"][0])
            case "/_test/keep":
                body = refused.update(deletes=True)
            case "/_test/let_go":
                body = refused.update(deletes=False)
            case "/_test/conflict":
                body = refused.update(creates=int(query["times"][0]))
            case "/_test/hide":
                body = hidden.update(buckets())
                buckets().clear()
            case "/_test/show":
                body = buckets().update(hidden)
            case _ if environ["REQUEST_METHOD"] == "DELETE" and refused["deletes"]:
                return refuse(environ, start_response, "403 Forbidden", "AccessDenied")
            case _ if "HTTP_IF_NONE_MATCH" in environ and conflicts():
                return refuse(environ, start_response, "409 Conflict", "ConditionalRequestConflict")
            case _ if environ["REQUEST_METHOD"] == "GET" and "uploads" in query:
                status, headers = [], []

                def hold(line, fields, *rest):
                    status[:], headers[:] = [line], fields

                prefix = query.get("prefix", [None])[0]
                text = with_beginnings(b"".join(s3(environ, hold)).decode(), prefix).encode()
                start_response(status[0], [field for field in headers if field[0].lower() != "content-length"])
                return [text]
            case _:
                return s3(environ, start_response)
        text = json.dumps(body).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(text)))])
        return [text]

    return answer


def main():
    port, bucket = int(sys.argv[1]), sys.argv[2]
    FakeMultipart.__init__ = begin_and_note
    s3_backends[ACCOUNT]["aws"].create_bucket(bucket, "us-east-1")
    s3 = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", port, application(s3, bucket), threaded=True, request_handler=Quiet)
    print(json.dumps(key()), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
