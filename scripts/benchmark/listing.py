"""Answers what clients ask of a bucket: pages of ListObjects V1 and V2, its location.

Runs behind nginx, which keeps each answer: a page is rendered once in the life of the server, and a
run that is measured is given it by sendfile.
"""

import base64
import socketserver
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

from .data import Object

# The same for all: nothing here depends on it.
MODIFIED = "2025-01-01T00:00:00.000Z"

# The most keys in one page, of OSS and of S3.
MOST = 1000


class Bucket:
    """Objects by number, in the order of their keys."""

    def __init__(self, objects: list[Object]) -> None:
        self.keys = [o.key for o in objects]
        self.entries = [
            f"<LastModified>{MODIFIED}</LastModified><ETag>&quot;{o.etag}&quot;</ETag>"
            f"<Type>Normal</Type><Size>{o.size}</Size><StorageClass>Standard</StorageClass>"
            for o in objects
        ]


def page(name: str, bucket: Bucket, query: Mapping[str, str]) -> str:
    """A page of ListObjects, V2 if `list-type` says so."""
    v2 = query.get("list-type") == "2"
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    most = min(int(query.get("max-keys") or MOST), MOST)
    # plain names: encoded or not they are the same, but for what delimits
    encode = quote if query.get("encoding-type") == "url" else str
    token = query.get("continuation-token", "") if v2 else ""
    after = query.get("start-after" if v2 else "marker", "")
    if token:
        after = base64.urlsafe_b64decode(token).decode()

    number = max(bisect_left(bucket.keys, prefix), bisect_right(bucket.keys, after))
    if delimiter and after.endswith(delimiter):
        # the page before ended with a common prefix: go on behind all below it
        number = max(number, bisect_left(bucket.keys, after + "\U0010ffff"))
    contents: list[str] = []
    folders: list[str] = []
    last = ""
    while (more := number < len(bucket.keys) and bucket.keys[number].startswith(prefix)) and (
        len(contents) + len(folders) < most
    ):
        last = bucket.keys[number]
        head, found, _ = last[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
        if found:
            last = prefix + head + found
            folders.append(f"<CommonPrefixes><Prefix>{encode(last)}</Prefix></CommonPrefixes>")
            number = bisect_left(bucket.keys, last + "\U0010ffff")
        else:
            key = encode(last)
            contents.append(f"<Contents><Key>{key}</Key>{bucket.entries[number]}</Contents>")
            number += 1

    fields = {
        "Name": name,
        "Prefix": encode(prefix),
        "MaxKeys": most,
        "Delimiter": encode(delimiter),
        "EncodingType": query.get("encoding-type", ""),
        "IsTruncated": "true" if more else "false",
    }
    if v2:
        fields["KeyCount"] = len(contents) + len(folders)
        if more:
            fields["NextContinuationToken"] = base64.urlsafe_b64encode(last.encode()).decode()
    else:
        fields["Marker"] = encode(after)
        if more:
            fields["NextMarker"] = encode(last)
    said = "".join(f"<{field}>{value}</{field}>" for field, value in fields.items() if value != "")
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<ListBucketResult>{said}{''.join(contents)}{''.join(folders)}</ListBucketResult>"
    )


class _Handler(BaseHTTPRequestHandler):
    server: "Server"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query, True).items()}
        name = url.path.strip("/")
        if name not in self.server.buckets:
            self.send_error(404)
            return
        if "location" in query:
            body = "<LocationConstraint>cn-hangzhou</LocationConstraint>"
        else:
            body = page(name, self.server.buckets[name], query)
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def address_string(self) -> str:
        return "nginx"

    def log_request(self, *_: object) -> None:
        pass


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Serves buckets on a socket of the file system."""

    daemon_threads = True
    # rclone asks for a hundred directories at once
    request_queue_size = 1024

    def __init__(self, socket: Path, buckets: Mapping[str, Bucket]) -> None:
        self.buckets = buckets
        super().__init__(str(socket), _Handler)
