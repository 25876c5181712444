"""The source that is measured against: nginx, answering at once, late, by TLS, or not to all."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template

from . import data, listing

PORT = 9200

# What the port `delayed` makes of the network: a region away, and a connection's share of it.
FIRST_BYTE = 0.020
PER_CONNECTION = 100_000_000

# Requests a second that the port `limited` admits.
ADMITTED = 2000

# One worker: on two processors a second one made no peer faster by more than two runs differ. ETag
# is the stated one, which nginx's own If-Match does not know of, so that is compared here.
_CONFIGURATION = Template("""\
load_module modules/ndk_http_module.so;
load_module modules/ngx_http_lua_module.so;
user $user;
daemon off;
pid $run/nginx.pid;
error_log $run/error.log warn;
worker_processes 1;
worker_rlimit_nofile 65536;
events { worker_connections 16384; multi_accept on; }
http {
    access_log off;
    default_type application/octet-stream;
    sendfile on;
    tcp_nodelay on;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    open_file_cache max=20000 inactive=1d;
    open_file_cache_valid 1d;
    client_body_temp_path $run/body;
    proxy_temp_path $run/proxy;
    proxy_cache_path $run/pages levels=1:2 keys_zone=pages:8m inactive=1d use_temp_path=off;

    map_hash_max_size 65536;
    map_hash_bucket_size 128;
    map $$uri $$stated_etag { include $run/etag.map; }
    map $$uri $$stated_crc64 { include $run/crc64.map; }

    etag off;
    add_header ETag $$stated_etag;
    add_header x-oss-hash-crc64ecma $$stated_crc64;
    rewrite_by_lua_block {
        local wanted = ngx.var.http_if_match
        if wanted then
            if wanted ~= ngx.var.stated_etag then return ngx.exit(412) end
            ngx.req.clear_header("If-Match")
        end
    }

    limit_req_zone $$server_port zone=admitted:1m rate=${admitted}r/s;
    limit_req_status 503;
    log_format status $$status;

    server { listen 127.0.0.1:$plain backlog=4096; include $run/site.conf; }
    server {
        listen 127.0.0.1:$delayed backlog=4096;
        limit_rate $per_connection;
        # the rate is kept over pieces of this size
        sendfile_max_chunk 512k;
        access_by_lua_block { ngx.sleep($first_byte) }
        include $run/site.conf;
    }
    server {
        listen 127.0.0.1:$tls ssl backlog=4096;
        ssl_certificate $tls_dir/server.pem;
        ssl_certificate_key $tls_dir/server.key;
        ssl_protocols TLSv1.3;
        # one cipher, lest clients be compared by what they prefer
        ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
        include $run/site.conf;
    }
    server {
        listen 127.0.0.1:$limited backlog=4096;
        # a hundredth of a second's may come at once
        limit_req zone=admitted burst=20 nodelay;
        access_log $run/limited.log status;
        error_log /dev/null;
        error_page 503 @slower;
        location @slower {
            default_type application/xml;
            return 503 "<Error><Code>QpsLimitExceeded</Code></Error>";
        }
        include $run/site.conf;
    }
}
""")

_SITE = """\
root {root};
location / {{ }}
{buckets}
"""

_BUCKET = """\
location = /{name} {{ rewrite ^ /{name}/; }}
location = /{name}/ {{
    proxy_pass http://unix:{run}/listing.sock;
    proxy_cache pages;
    proxy_cache_key $request_uri;
    proxy_cache_valid 200 1d;
    proxy_cache_lock on;
}}
"""


@dataclass(frozen=True)
class Endpoints:
    """Where the source is, and what vouches for its name."""

    plain: str
    delayed: str
    tls: str
    limited: str
    ca: Path
    limited_log: Path


def _install() -> None:
    """nginx with Lua, from Debian."""
    modules = Path("/usr/lib/nginx/modules")
    if shutil.which("nginx") and (modules / "ngx_http_lua_module.so").exists():
        return
    packages = ["nginx-light", "libnginx-mod-http-lua", "openssl"]
    if os.geteuid() != 0:
        raise SystemExit(f"as root, please: apt-get install {' '.join(packages)}")
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], check=True, env=quiet)
    command = ["apt-get", "install", "-qq", "--no-install-recommends", *packages]
    subprocess.run(command, check=True, env=quiet, stdout=subprocess.DEVNULL)
    if Path("/run/systemd/system").exists():
        # one that we start is all that is wanted, not one that starts with the machine
        subprocess.run(["systemctl", "disable", "--now", "--quiet", "nginx"], check=True)


def _certificates(directory: Path) -> None:
    """An authority of our own, and the server's certificate by it."""
    if (directory / "server.pem").exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    extensions = "subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\n"
    (directory / "extensions").write_text(extensions)
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    sign = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "extensions"]
    for arguments in (
        ["req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "3650"]
        + ["-subj", "/CN=ossvp benchmark authority"],
        ["req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=127.0.0.1"],
        ["x509", "-req", "-in", "server.csr", *sign, "-out", "server.pem", "-days", "3650"],
    ):
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _ready(nginx: subprocess.Popen[bytes], run: Path) -> None:
    for _ in range(200):
        if (run / "nginx.pid").exists() and (run / "nginx.pid").read_text():
            return
        if nginx.poll() is not None:
            break
        time.sleep(0.05)
    raise SystemExit(f"nginx did not start: {(run / 'error.log').read_text()[-2000:]}")


@contextmanager
def serve(directory: Path, names: list[str], port: int | None) -> Iterator[Endpoints]:
    """Serves the data sets of these names on four ports from `port` on, or on free ones."""
    _install()
    plain, delayed, secure, limited = range(port, port + 4) if port else _free_ports(4)
    tls = directory / "tls"
    _certificates(tls)
    root = directory / "data"
    root.mkdir(parents=True, exist_ok=True)
    sets = {name: data.objects(root, name) for name in names}
    buckets = {name: listing.Bucket(objects) for name, objects in sets.items()}

    with tempfile.TemporaryDirectory(prefix="run-", dir=directory) as name:
        run = Path(name)
        run.chmod(0o755)
        stated = [(f"/{n}/{o.key}", o) for n, objects in sets.items() for o in objects]
        etags = (f"{path} '\"{o.etag}\"';\n" for path, o in stated)
        (run / "etag.map").write_text("".join(etags))
        (run / "crc64.map").write_text("".join(f"{path} {o.crc64};\n" for path, o in stated))
        locations = "".join(_BUCKET.format(name=name, run=run) for name in buckets)
        (run / "site.conf").write_text(_SITE.format(root=root, buckets=locations))
        configuration = _CONFIGURATION.substitute(
            user=pwd.getpwuid(os.geteuid()).pw_name,
            run=run,
            tls_dir=tls,
            plain=plain,
            delayed=delayed,
            tls=secure,
            limited=limited,
            first_byte=FIRST_BYTE,
            per_connection=PER_CONNECTION,
            admitted=ADMITTED,
        )
        (run / "nginx.conf").write_text(configuration)

        pages = listing.Server(run / "listing.sock", buckets)
        threading.Thread(target=pages.serve_forever, daemon=True).start()
        command = ["nginx", "-c", str(run / "nginx.conf"), "-e", str(run / "error.log")]
        nginx = subprocess.Popen(command)
        try:
            _ready(nginx, run)
            yield Endpoints(
                plain=f"http://127.0.0.1:{plain}",
                delayed=f"http://127.0.0.1:{delayed}",
                tls=f"https://127.0.0.1:{secure}",
                limited=f"http://127.0.0.1:{limited}",
                ca=tls / "ca.pem",
                limited_log=run / "limited.log",
            )
        finally:
            nginx.terminate()
            nginx.wait()
            pages.shutdown()
