"""The data sets: what is served, made once from a seed and kept.

Bytes come from AES-CTR by openssl, so that nothing compresses and every machine has the same. The
checksums that a source states are computed while the files are written.
"""

import ctypes
import hashlib
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

SEED = 20250

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

# As the official tools upload: larger objects in parts, whose ETag is no MD5 of the whole.
PART = 64 * MIB

# Of the file system with slow names: what a call takes, and how many are served at once.
SLOW_MS = 2
SLOW_AT_ONCE = 32

# Changes with the layout below: data of another version are made anew.
VERSION = 1


@dataclass(frozen=True)
class Object:
    """An object as its source states it."""

    key: str
    size: int
    etag: str
    crc64: int


def _small(_: random.Random) -> list[int]:
    return [16 * KIB] * 10_000


def _mixed(rng: random.Random) -> list[int]:
    """Log-normal, the median 1 MiB and the mean twice that: sigma is sqrt(2 ln 2)."""
    drawn = [rng.lognormvariate(0.0, 1.1774) for _ in range(1000)]
    sizes = [int(size / sum(drawn) * 2 * GIB) for size in drawn]
    sizes[0] += 2 * GIB - sum(sizes)
    return sizes


def _large(_: random.Random) -> list[int]:
    return [GIB] * 4


SIZES: dict[str, Callable[[random.Random], list[int]]] = {
    "small": _small,
    "mixed": _mixed,
    "large": _large,
}


def _liblzma_crc64() -> Callable[[bytes, int], int]:
    # CRC-64/XZ is what OSS states; Debian's package manager itself needs this library
    function = ctypes.CDLL("liblzma.so.5").lzma_crc64
    function.restype = ctypes.c_uint64
    function.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint64]
    return lambda data, crc: function(data, len(data), crc)


_crc64 = _liblzma_crc64()


def _write(source: IO[bytes], path: Path, key: str, size: int) -> Object:
    path.parent.mkdir(parents=True, exist_ok=True)
    crc, parts = 0, []
    with path.open("wb") as file:
        for begin in range(0, size, PART):
            part = source.read(min(PART, size - begin))
            file.write(part)
            crc = _crc64(part, crc)
            parts.append(hashlib.md5(part))
    if len(parts) == 1:
        etag = parts[0].hexdigest()
    else:
        digests = b"".join(part.digest() for part in parts)
        etag = f"{hashlib.md5(digests).hexdigest()}-{len(parts)}"
    return Object(key, size, etag, crc)


def _make(name: str, directory: Path) -> Iterator[Object]:
    identity = hashlib.sha256(f"{SEED} {name}".encode()).hexdigest()
    sizes = SIZES[name](random.Random(identity))
    # a hundred directories where there are enough files
    key = "d{:02}/f{:04}" if len(sizes) > 100 else "f{1}"
    command = ["openssl", "enc", "-aes-128-ctr", "-K", identity[:32], "-iv", "0" * 32]
    with (
        open("/dev/zero", "rb") as zero,
        subprocess.Popen(
            [*command, "-bufsize", str(MIB)], stdin=zero, stdout=subprocess.PIPE
        ) as openssl,
    ):
        assert openssl.stdout
        for number, size in enumerate(sizes):
            name_ = key.format(number % 100, number)
            yield _write(openssl.stdout, directory / name_, name_, size)
        openssl.kill()


def objects(root: Path, name: str) -> list[Object]:
    """The objects of a data set in the order of their keys; `root/name` holds their bytes."""
    stated = root / f"{name}.tsv"
    title = f"version {VERSION} seed {SEED}"
    if not stated.exists() or stated.read_text().splitlines()[0] != title:
        print(f"making the data set {name} in {root / name} (seed {SEED})", flush=True)
        shutil.rmtree(root / name, ignore_errors=True)
        made = sorted(_make(name, root / name), key=lambda made: made.key)
        lines = [f"{o.key}\t{o.size}\t{o.etag}\t{o.crc64}" for o in made]
        # written last: a data set that was cut short has no list
        stated.write_text("\n".join([title, *lines]) + "\n")
    fields = (line.split("\t") for line in stated.read_text().splitlines()[1:])
    return [Object(key, int(size), etag, int(crc64)) for key, size, etag, crc64 in fields]
