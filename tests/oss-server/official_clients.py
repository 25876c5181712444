"""Holds oss-server against the official Python clients of OSS, of S3 and of STS.

Usage: official_clients.py ENDPOINT TLS_ENDPOINT CA, with the servers' key pair in
OSS_SERVER_ACCESS_KEY_ID and OSS_SERVER_ACCESS_KEY_SECRET. The clients' own signatures, decoding and
CRC checks are on.
"""

import base64
import hashlib
import io
import json
import os
import socket
import sys
import tempfile
import traceback
import urllib.request
from urllib.parse import quote, unquote, urlparse

import certifi

ENDPOINT, TLS_ENDPOINT, CA = sys.argv[1:]
# The clients ask certifi or the environment for the roots they trust, some while imported.
certifi.where = lambda: CA
os.environ["SSL_CERT_FILE"] = os.environ["REQUESTS_CA_BUNDLE"] = CA

import alibabacloud_oss_v2 as oss
import boto3
import botocore
import oss2
from alibabacloud_credentials.provider import (EcsRamRoleCredentialsProvider,
                                               OIDCRoleArnCredentialsProvider)

ID = os.environ["OSS_SERVER_ACCESS_KEY_ID"]
SECRET = os.environ["OSS_SERVER_ACCESS_KEY_SECRET"]
REGION = "cn-hangzhou"
PORT = urlparse(ENDPOINT).port

# Keys that a careless server or client loses. The second list holds those that a client's HTTP
# library rewrites before they leave it: oss2 sends every slash as %2F, so that only it can.
KEYS = ["plain", "dir/", "dir/a", "a//b", "a//", " space ", "+&=?#%25%", "ü/中文", "new\nline", "tab\t",
        "control\x01", "<xml>&\"'", "~-_.!*()", "\U0001f4be"]
DOTTED = ["a/./b", "a/../b", "../up"]

results = []


def resolve_here():
    """Lets names below localhost, and the metadata service's address, lead to the server."""
    plain = socket.getaddrinfo

    def patched(host, port, *args, **kwargs):
        if isinstance(host, str) and host.endswith(".localhost"):
            host = "127.0.0.1"
        if host == "100.100.100.200":
            host, port = "127.0.0.1", PORT
        return plain(host, port, *args, **kwargs)

    socket.getaddrinfo = patched


def check(client, operation, run):
    try:
        run()
        results.append(True)
        print(f"{client} {operation} ok", flush=True)
    except Exception:
        results.append(False)
        print(f"{client} {operation} FAILED", flush=True)
        traceback.print_exc()


def admin(method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{ENDPOINT}/__admin/{path}", data=data, method=method)
    with urllib.request.urlopen(request) as answer:
        return answer.read()


def flip(key, offset):
    """A byte of the next GET of `key` arrives inverted."""
    admin("POST", "faults", {"operation": "get_object", "key": key, "times": 1,
                             "action": {"flip_byte": offset}})


def equal(got, wanted):
    assert got == wanted, f"got {got!r}, not {wanted!r}"


def raises(kind, matches, run):
    try:
        run()
    except kind as error:
        assert matches(error), f"unexpected: {error!r}"
        return
    raise AssertionError(f"no {kind.__name__}")


def body_of(key):
    return (key.encode() + b"\x00") * 321


class V2:
    """alibabacloud-oss-v2: signature version 4, encoding-type=url."""

    def __init__(self, name, bucket, secret=SECRET, endpoint=ENDPOINT, **config):
        self.name, self.bucket = name, bucket
        settings = oss.config.load_default()
        settings.credentials_provider = oss.credentials.StaticCredentialsProvider(ID, secret)
        settings.region = REGION
        settings.endpoint = endpoint
        settings.retry_max_attempts = 1
        for key, value in config.items():
            setattr(settings, key, value)
        self.client = oss.Client(settings)

    def check(self, operation, run):
        check(self.name, operation, run)

    def failure(self, status, code, run):
        def matches(error):
            error = error.unwrap()
            return (error.status_code, error.code) == (status, code) and bool(error.ec)
        raises(oss.exceptions.OperationError, matches, run)

    def put(self, key, body=None, **options):
        body = body_of(key) if body is None else body
        return self.client.put_object(
            oss.PutObjectRequest(bucket=self.bucket, key=key, body=body, **options))

    def get(self, key, **options):
        return self.client.get_object(
            oss.GetObjectRequest(bucket=self.bucket, key=key, **options)).body.content

    def run(self):
        c, b = self.client, self.bucket
        self.check("create bucket", lambda: c.put_bucket(oss.PutBucketRequest(bucket=b)))
        self.check("bucket info and location", self.info)
        self.check("put with odd keys", lambda: [self.put(key) for key in KEYS])
        self.check("get with odd keys", lambda: [equal(self.get(k), body_of(k)) for k in KEYS])
        self.check("list v2 in pages of 3", lambda: self.list(3))
        self.check("list v2 in one page", lambda: self.list(1000))
        self.check("list v2 with prefix and delimiter", self.delimiter)
        self.check("list v1", self.list_v1)
        self.check("head with metadata", self.head)
        self.check("object meta", self.meta)
        self.check("get a range", self.range)
        self.check("get an invalid range", self.invalid_range)
        self.check("if-match", self.if_match)
        self.check("upload in parts", self.parts)
        self.check("uploader and downloader in parts", self.transfer)
        self.check("downloader detects a flipped byte by CRC", self.flipped)
        self.check("append", self.append)
        self.check("copy", self.copy)
        self.check("symlink", self.symlink)
        self.check("archived object", self.archived)
        self.check("NoSuchKey", lambda: self.failure(404, "NoSuchKey", lambda: self.get("none")))
        self.check("NoSuchKey of head", self.no_such_key_head)
        self.check("NoSuchBucket", self.no_such_bucket)
        self.check("delete", self.delete)

    def info(self):
        info = self.client.get_bucket_info(oss.GetBucketInfoRequest(bucket=self.bucket))
        equal((info.bucket_info.name, info.bucket_info.location), (self.bucket, "oss-" + REGION))
        location = self.client.get_bucket_location(
            oss.GetBucketLocationRequest(bucket=self.bucket))
        equal(location.location, "oss-" + REGION)

    def list(self, most):
        found = []
        pages = self.client.list_objects_v2_paginator(limit=most)
        for page in pages.iter_page(oss.ListObjectsV2Request(bucket=self.bucket)):
            found += [(o.key, o.size, o.object_type) for o in page.contents or []]
        wanted = sorted(KEYS, key=lambda key: key.encode())
        equal(found, [(key, len(body_of(key)), "Normal") for key in wanted])

    def delimiter(self):
        page = self.client.list_objects_v2(
            oss.ListObjectsV2Request(bucket=self.bucket, prefix="dir", delimiter="/"))
        equal([p.prefix for p in page.common_prefixes], ["dir/"])
        page = self.client.list_objects_v2(
            oss.ListObjectsV2Request(bucket=self.bucket, prefix="a/", start_after="a//"))
        equal([o.key for o in page.contents], ["a//b"])

    def list_v1(self):
        found = []
        for page in self.client.list_objects_paginator(limit=4).iter_page(
                oss.ListObjectsRequest(bucket=self.bucket)):
            found += [o.key for o in page.contents or []]
        equal(found, sorted(KEYS, key=lambda key: key.encode()))

    def head(self):
        self.put("meta", metadata={"colour": "red"}, content_type="text/x-test")
        head = self.client.head_object(oss.HeadObjectRequest(bucket=self.bucket, key="meta"))
        equal(head.content_length, len(body_of("meta")))
        equal((head.content_type, head.metadata), ("text/x-test", {"colour": "red"}))
        equal((head.object_type, head.storage_class), ("Normal", "Standard"))
        assert head.hash_crc64 and head.etag and head.request_id

    def meta(self):
        meta = self.client.get_object_meta(
            oss.GetObjectMetaRequest(bucket=self.bucket, key="plain"))
        equal(meta.content_length, len(body_of("plain")))

    def range(self):
        body = body_of("plain")
        got = self.get("plain", range_header="bytes=10-19", range_behavior="standard")
        equal(got, body[10:20])
        got = self.get("plain", range_header=f"bytes=10-{10 ** 6}", range_behavior="standard")
        equal(got, body[10:])

    def invalid_range(self):
        past = f"bytes={10 ** 6}-"
        equal(self.get("plain", range_header=past), body_of("plain"))
        self.failure(416, "InvalidRange", lambda: self.get(
            "plain", range_header=past, range_behavior="standard"))

    def if_match(self):
        etag = self.client.head_object(
            oss.HeadObjectRequest(bucket=self.bucket, key="plain")).etag
        equal(self.get("plain", if_match=etag), body_of("plain"))
        self.failure(412, "PreconditionFailed", lambda: self.get("plain", if_match='"other"'))

    def parts(self):
        whole, size = os.urandom(350_000), 100 * 1024
        upload = self.client.initiate_multipart_upload(
            oss.InitiateMultipartUploadRequest(bucket=self.bucket, key="in parts"))
        parts = []
        for number, at in enumerate(range(0, len(whole), size), 1):
            part = self.client.upload_part(oss.UploadPartRequest(
                bucket=self.bucket, key="in parts", upload_id=upload.upload_id,
                part_number=number, body=whole[at:at + size]))
            parts.append(oss.UploadPart(part_number=number, etag=part.etag))
        done = self.client.complete_multipart_upload(oss.CompleteMultipartUploadRequest(
            bucket=self.bucket, key="in parts", upload_id=upload.upload_id,
            complete_multipart_upload=oss.CompleteMultipartUpload(parts=parts)))
        assert done.etag.strip('"').endswith("-4"), done.etag
        equal(self.get("in parts"), whole)
        crc = oss.crc.Crc64(0)
        crc.update(whole)
        equal(done.hash_crc64, str(crc.sum64()))

    def transfer(self):
        whole = os.urandom(700_000)
        request = oss.PutObjectRequest(bucket=self.bucket, key="transfer")
        self.client.uploader(part_size=100 * 1024).upload_from(request, io.BytesIO(whole))
        equal(self.download("transfer"), whole)

    def download(self, key):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "file")
            self.client.downloader(part_size=100 * 1024).download_file(
                oss.GetObjectRequest(bucket=self.bucket, key=key), path)
            with open(path, "rb") as file:
                return file.read()

    def flipped(self):
        flip("transfer", 333_333)
        raises(Exception, lambda error: "crc is inconsistent" in str(error),
               lambda: self.download("transfer"))
        self.download("transfer")

    def append(self):
        position = 0
        for piece in [b"one", b"two"]:
            done = self.client.append_object(oss.AppendObjectRequest(
                bucket=self.bucket, key="appended", position=position, body=piece))
            position = done.next_position
        equal((position, self.get("appended")), (6, b"onetwo"))
        self.failure(409, "PositionNotEqualToLength", lambda: self.client.append_object(
            oss.AppendObjectRequest(bucket=self.bucket, key="appended", position=1, body=b"x")))

    def copy(self):
        self.client.copy_object(oss.CopyObjectRequest(
            bucket=self.bucket, key="copied", source_key="a//b"))
        equal(self.get("copied"), body_of("a//b"))

    def symlink(self):
        for key, target in [("link", "ü/中文"), ("dangling", "none"), ("to link", "link")]:
            self.client.put_symlink(
                oss.PutSymlinkRequest(bucket=self.bucket, key=key, target=quote(target)))
        got = self.client.get_object(oss.GetObjectRequest(bucket=self.bucket, key="link"))
        equal((got.body.content, got.object_type), (body_of("ü/中文"), "Symlink"))
        link = self.client.get_symlink(oss.GetSymlinkRequest(bucket=self.bucket, key="link"))
        equal(unquote(link.target), "ü/中文")
        self.failure(404, "SymlinkTargetNotExist", lambda: self.get("dangling"))
        self.failure(400, "InvalidTargetType", lambda: self.get("to link"))
        self.failure(400, "NotSymlink", lambda: self.client.get_symlink(
            oss.GetSymlinkRequest(bucket=self.bucket, key="plain")))

    def archived(self):
        self.put("cold", storage_class="Archive")
        self.failure(403, "InvalidObjectState", lambda: self.get("cold"))
        self.client.restore_object(oss.RestoreObjectRequest(bucket=self.bucket, key="cold"))
        equal(self.get("cold"), body_of("cold"))

    def no_such_key_head(self):
        self.failure(404, "NoSuchKey", lambda: self.client.head_object(
            oss.HeadObjectRequest(bucket=self.bucket, key="none")))

    def no_such_bucket(self):
        self.failure(404, "NoSuchBucket", lambda: self.client.list_objects_v2(
            oss.ListObjectsV2Request(bucket="no-such-bucket")))

    def delete(self):
        self.client.delete_object(oss.DeleteObjectRequest(bucket=self.bucket, key="plain"))
        self.failure(404, "NoSuchKey", lambda: self.get("plain"))
        self.failure(409, "BucketNotEmpty", lambda: self.client.delete_bucket(
            oss.DeleteBucketRequest(bucket=self.bucket)))
        while True:
            page = self.client.list_objects_v2(oss.ListObjectsV2Request(bucket=self.bucket))
            if not page.contents:
                break
            self.client.delete_multiple_objects(oss.DeleteMultipleObjectsRequest(
                bucket=self.bucket, objects=[oss.DeleteObject(key=o.key) for o in page.contents]))
        self.client.delete_bucket(oss.DeleteBucketRequest(bucket=self.bucket))
        self.failure(404, "NoSuchBucket", lambda: self.get("plain"))

    def read_only(self):
        """What shows that another style of address reaches the same objects."""
        self.check("create bucket", lambda: self.client.put_bucket(
            oss.PutBucketRequest(bucket=self.bucket)))
        keys = [key for key in KEYS if not key.startswith("/")]
        self.check("put with odd keys", lambda: [self.put(key) for key in keys])
        self.check("get with odd keys", lambda: [equal(self.get(k), body_of(k)) for k in keys])
        self.check("get a range", self.range)
        self.check("list v2 in pages of 3", lambda: self.list(3))


class Old:
    """oss2: its own CRC check on; signature versions 1 and 4."""

    def __init__(self, name, auth, bucket, endpoint=ENDPOINT, **options):
        self.name = name
        self.bucket = oss2.Bucket(auth, endpoint, bucket, region=REGION, **options)

    def check(self, operation, run):
        check(self.name, operation, run)

    def failure(self, status, code, run):
        raises(oss2.exceptions.OssError,
               lambda error: (error.status, error.code) == (status, code), run)

    def run(self):
        b = self.bucket
        keys = KEYS + DOTTED + ["/leading"]
        self.check("create bucket", lambda: b.create_bucket())
        self.check("put with odd keys", lambda: [b.put_object(k, body_of(k)) for k in keys])
        self.check("get with odd keys",
                   lambda: [equal(b.get_object(k).read(), body_of(k)) for k in keys])
        self.check("list v1 in pages of 3", lambda: self.list(oss2.ObjectIterator, keys))
        self.check("list v2 in pages of 3", lambda: self.list(oss2.ObjectIteratorV2, keys))
        self.check("list with delimiter", self.delimiter)
        self.check("head with metadata", self.head)
        self.check("get a range", self.range)
        self.check("upload in parts", self.parts)
        self.check("resumable upload and download", self.resumable)
        self.check("get detects a flipped byte by CRC", self.flipped)
        self.check("append", self.append)
        self.check("symlink", self.symlink)
        self.check("archived object", self.archived)
        self.check("NoSuchKey", lambda: self.failure(404, "NoSuchKey", lambda: b.get_object("none")))
        self.check("NoSuchKey of object meta",
                   lambda: self.failure(404, "NoSuchKey", lambda: b.get_object_meta("none")))
        self.check("delete", lambda: self.delete(keys))

    def read_only(self):
        b = self.bucket
        self.check("create bucket", lambda: b.create_bucket())
        self.check("put with odd keys", lambda: [b.put_object(k, body_of(k)) for k in KEYS])
        self.check("get with odd keys",
                   lambda: [equal(b.get_object(k).read(), body_of(k)) for k in KEYS])
        self.check("get a range", self.range)

    def list(self, iterator, keys):
        found = [(o.key, o.size) for o in iterator(self.bucket, max_keys=3)]
        wanted = sorted(keys, key=lambda key: key.encode())
        equal(found, [(key, len(body_of(key))) for key in wanted])

    def delimiter(self):
        found = [o.key for o in oss2.ObjectIterator(self.bucket, prefix="a/", delimiter="/",
                                                    max_keys=1)]
        equal(found, ["a/../", "a/./", "a//"])

    def head(self):
        self.bucket.put_object("meta", b"x", headers={"x-oss-meta-colour": "red",
                                                      "Content-Type": "text/x-test"})
        head = self.bucket.head_object("meta")
        equal((head.content_length, head.content_type), (1, "text/x-test"))
        equal(head.headers["x-oss-meta-colour"], "red")
        equal(self.bucket.get_object_meta("meta").content_length, 1)

    def range(self):
        body = body_of("plain")
        equal(self.bucket.get_object("plain", byte_range=(10, 19)).read(), body[10:20])
        equal(self.bucket.get_object("plain", byte_range=(None, 5)).read(), body[-5:])

    def parts(self):
        whole, size = os.urandom(350_000), 100 * 1024
        upload = self.bucket.init_multipart_upload("in parts").upload_id
        parts = []
        for number, at in enumerate(range(0, len(whole), size), 1):
            piece = whole[at:at + size]
            done = self.bucket.upload_part("in parts", upload, number, piece)
            parts.append(oss2.models.PartInfo(number, done.etag, size=len(piece),
                                              part_crc=done.crc))
        # The client combines the parts' CRCs and compares them with the answer's.
        done = self.bucket.complete_multipart_upload("in parts", upload, parts)
        assert done.etag.strip('"').endswith("-4"), done.etag
        equal(self.bucket.get_object("in parts").read(), whole)
        upload = self.bucket.init_multipart_upload("aborted").upload_id
        self.bucket.abort_multipart_upload("aborted", upload)
        self.failure(404, "NoSuchUpload",
                     lambda: self.bucket.abort_multipart_upload("aborted", upload))

    def resumable(self):
        with tempfile.TemporaryDirectory() as folder:
            there, back = os.path.join(folder, "there"), os.path.join(folder, "back")
            whole = os.urandom(500_000)
            with open(there, "wb") as file:
                file.write(whole)
            store = {"root": folder}
            oss2.resumable_upload(
                self.bucket, "resumed", there, part_size=100 * 1024, multipart_threshold=1,
                store=oss2.ResumableStore(**store))
            oss2.resumable_download(
                self.bucket, "resumed", back, part_size=100 * 1024, multiget_threshold=1,
                store=oss2.ResumableDownloadStore(**store))
            with open(back, "rb") as file:
                equal(file.read(), whole)

    def flipped(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "file")
            flip("plain", 17)
            raises(oss2.exceptions.InconsistentError, lambda _: True,
                   lambda: self.bucket.get_object_to_file("plain", path))
            self.bucket.get_object_to_file("plain", path)

    def append(self):
        self.bucket.append_object("appended", 0, b"one", init_crc=0)
        self.bucket.append_object("appended", 3, b"two")
        equal(self.bucket.get_object("appended").read(), b"onetwo")

    def symlink(self):
        self.bucket.put_symlink("ü/中文", "link")
        equal(self.bucket.get_object("link").read(), body_of("ü/中文"))
        equal(self.bucket.get_symlink("link").target_key, "ü/中文")
        self.bucket.put_symlink("none", "dangling")
        self.failure(404, "SymlinkTargetNotExist", lambda: self.bucket.get_object("dangling"))

    def archived(self):
        self.bucket.put_object("cold", b"x", headers={"x-oss-storage-class": "Archive"})
        self.failure(403, "InvalidObjectState", lambda: self.bucket.get_object("cold"))
        self.bucket.restore_object("cold")
        equal(self.bucket.get_object("cold").read(), b"x")

    def delete(self, keys):
        self.bucket.delete_object("plain")
        self.failure(404, "NoSuchKey", lambda: self.bucket.get_object("plain"))
        found = [o.key for o in oss2.ObjectIterator(self.bucket)]
        self.bucket.batch_delete_objects(found)
        equal(list(oss2.ObjectIterator(self.bucket)), [])
        self.bucket.delete_bucket()


class SignsMore(oss2.ProviderAuthV4):
    """Also signs headers that need not be signed."""

    def _sign_request(self, req, bucket_name, key, in_additional_headers=None):
        super()._sign_request(req, bucket_name, key, ["Range", "User-Agent"])
        assert "AdditionalHeaders=range;user-agent" in req.headers["authorization"]


class S3:
    """boto3: AWS's signature version 4, path and virtual-host style."""

    def __init__(self, name, bucket, style, endpoint=ENDPOINT):
        self.name, self.bucket = name, bucket
        # OSS takes no aws-chunked bodies, which is what checksums in trailers need.
        config = botocore.config.Config(
            s3={"addressing_style": style}, signature_version="s3v4",
            request_checksum_calculation="when_required", retries={"total_max_attempts": 1})
        self.client = boto3.client(
            "s3", endpoint_url=endpoint, region_name=REGION, aws_access_key_id=ID,
            aws_secret_access_key=SECRET, config=config)

    def check(self, operation, run):
        check(self.name, operation, run)

    def failure(self, status, code, run):
        def matches(error):
            found = (error.response["ResponseMetadata"]["HTTPStatusCode"],
                     error.response["Error"]["Code"])
            return found == (status, code)
        raises(botocore.exceptions.ClientError, matches, run)

    def get(self, key, **options):
        return self.client.get_object(Bucket=self.bucket, Key=key, **options)["Body"].read()

    def put(self, key, **options):
        self.client.put_object(Bucket=self.bucket, Key=key, Body=body_of(key), **options)

    def run(self):
        keys = KEYS + DOTTED
        self.check("create bucket", lambda: self.client.create_bucket(Bucket=self.bucket))
        self.check("put with odd keys", lambda: [self.put(key) for key in keys])
        self.check("get with odd keys", lambda: [equal(self.get(k), body_of(k)) for k in keys])
        self.check("list v2 in pages of 3", lambda: self.list("list_objects_v2", keys))
        self.check("list v1 in pages of 3", lambda: self.list("list_objects", keys))
        self.check("head with metadata", self.head)
        self.check("get a range", self.range)
        self.check("upload in parts", self.parts)
        self.check("checksum mode", self.checksum)
        self.check("NoSuchKey", lambda: self.failure(404, "NoSuchKey", lambda: self.get("none")))
        self.check("delete", self.delete)

    def list(self, operation, keys):
        pages = self.client.get_paginator(operation).paginate(
            Bucket=self.bucket, PaginationConfig={"PageSize": 3})
        found = [(o["Key"], o["Size"]) for page in pages for o in page["Contents"]]
        wanted = sorted(keys, key=lambda key: key.encode())
        equal(found, [(key, len(body_of(key))) for key in wanted])

    def head(self):
        self.put("meta", Metadata={"colour": "red"}, ContentType="text/x-test")
        head = self.client.head_object(Bucket=self.bucket, Key="meta")
        equal((head["Metadata"], head["ContentType"]), ({"colour": "red"}, "text/x-test"))

    def range(self):
        equal(self.get("plain", Range="bytes=10-19"), body_of("plain")[10:20])
        self.failure(416, "InvalidRange", lambda: self.get("plain", Range="bytes=1000000-"))
        self.failure(412, "PreconditionFailed", lambda: self.get("plain", IfMatch='"other"'))

    def parts(self):
        whole, size = os.urandom(350_000), 100 * 1024
        names = {"Bucket": self.bucket, "Key": "in parts"}
        upload = self.client.create_multipart_upload(**names)["UploadId"]
        parts = []
        for number, at in enumerate(range(0, len(whole), size), 1):
            done = self.client.upload_part(
                **names, UploadId=upload, PartNumber=number, Body=whole[at:at + size])
            parts.append({"PartNumber": number, "ETag": done["ETag"]})
        self.client.complete_multipart_upload(
            **names, UploadId=upload, MultipartUpload={"Parts": parts})
        equal(self.get("in parts"), whole)

    def checksum(self):
        # The client checks the body against the checksum it is given.
        self.put("sum", ChecksumSHA256=base64.b64encode(
            hashlib.sha256(body_of("sum")).digest()).decode())
        got = self.client.get_object(Bucket=self.bucket, Key="sum", ChecksumMode="ENABLED")
        equal(got["Body"].read(), body_of("sum"))
        equal(got["ChecksumType"], "FULL_OBJECT")
        flip("sum", 3)
        got = self.client.get_object(Bucket=self.bucket, Key="sum", ChecksumMode="ENABLED")
        raises(botocore.exceptions.FlexibleChecksumError, lambda _: True, got["Body"].read)

    def delete(self):
        self.client.delete_object(Bucket=self.bucket, Key="plain")
        self.failure(404, "NoSuchKey", lambda: self.get("plain"))


def assume_role():
    """The official STS client's credentials, used over TLS by the official OSS client."""
    with tempfile.NamedTemporaryFile("w") as token:
        token.write("jwt")
        token.flush()
        issued = OIDCRoleArnCredentialsProvider(
            role_arn="acs:ram::1:role/r", oidc_provider_arn="acs:ram::1:oidc-provider/p",
            oidc_token_file_path=token.name, sts_endpoint=urlparse(TLS_ENDPOINT).netloc,
        ).get_credentials()
    use_session(issued, TLS_ENDPOINT)


def instance_role():
    use_session(EcsRamRoleCredentialsProvider().get_credentials(), ENDPOINT)


def use_session(issued, endpoint):
    settings = oss.config.load_default()
    settings.credentials_provider = oss.credentials.StaticCredentialsProvider(
        issued.get_access_key_id(), issued.get_access_key_secret(), issued.get_security_token())
    settings.region, settings.endpoint = REGION, endpoint
    client = oss.Client(settings)
    client.put_bucket(oss.PutBucketRequest(bucket="session-bucket"))
    client.put_object(oss.PutObjectRequest(bucket="session-bucket", key="k", body=b"x"))
    got = client.get_object(oss.GetObjectRequest(bucket="session-bucket", key="k"))
    equal(got.body.content, b"x")


def wrong_secret():
    client = V2("", "plain-bucket", secret="wrong")
    client.failure(403, "SignatureDoesNotMatch", lambda: client.get("k"))
    for auth in [oss2.Auth(ID, "wrong"), oss2.AuthV4(ID, "wrong")]:
        bucket = oss2.Bucket(auth, ENDPOINT, "plain-bucket", region=REGION)
        Old("", auth, "plain-bucket").failure(
            403, "SignatureDoesNotMatch", lambda: bucket.get_object("k"))


def unknown_key():
    auth = oss2.AuthV4("unknown", SECRET)
    old = Old("", auth, "plain-bucket")
    old.failure(403, "InvalidAccessKeyId", lambda: old.bucket.get_object("k"))


def skewed_clock():
    client = V2("", "clock-bucket")
    client.client.put_bucket(oss.PutBucketRequest(bucket="clock-bucket"))
    client.put("k")
    for ahead, refused in [(3600, True), (-3600, True), (600, False), (0, False)]:
        admin("PUT", "clock", {"ahead_s": ahead})
        if refused:
            client.failure(403, "RequestTimeTooSkewed", lambda: client.get("k"))
        else:
            equal(client.get("k"), body_of("k"))


def retried():
    client = V2("", "retry-bucket", retry_max_attempts=3)
    client.client.put_bucket(oss.PutBucketRequest(bucket="retry-bucket"))
    client.put("k")
    admin("POST", "faults", {"operation": "get_object", "key": "k", "times": 2, "action": {
        "status": {"status": 503, "code": "ServiceUnavailable"}}})
    equal(client.get("k"), body_of("k"))


def main():
    resolve_here()
    virtual = f"http://oss.localhost:{PORT}"
    V2("oss-v2", "v2-bucket").run()
    V2("oss-v2 virtual-host", "virtual-v2", endpoint=virtual).read_only()
    V2("oss-v2 cname", "cname-bucket", endpoint=f"http://data.localhost:{PORT}",
       use_cname=True).read_only()
    Old("oss2-v1", oss2.Auth(ID, SECRET), "old-bucket").run()
    provider = oss2.credentials.StaticCredentialsProvider(ID, SECRET)
    Old("oss2-v4", oss2.ProviderAuthV4(provider), "old-bucket-v4").run()
    Old("oss2-v4 virtual-host", oss2.ProviderAuthV4(provider), "virtual-old",
        endpoint=virtual).run()
    Old("oss2-v4 additional headers", SignsMore(provider), "additional").read_only()
    S3("boto3 path style", "s3-bucket", "path").run()
    S3("boto3 virtual-host", "s3-virtual", "virtual", f"http://s3.oss.localhost:{PORT}").run()
    check("credentials", "AssumeRoleWithOIDC over TLS", assume_role)
    check("credentials", "instance role", instance_role)
    check("oss-v2 and oss2", "SignatureDoesNotMatch with a wrong secret", wrong_secret)
    check("oss2", "InvalidAccessKeyId", unknown_key)
    check("oss-v2", "RequestTimeTooSkewed", skewed_clock)
    check("oss-v2", "retry after 503", retried)

    failed = results.count(False)
    print(f"{results.count(True)} passed, {failed} failed")
    sys.exit(1 if failed else 0)


main()
