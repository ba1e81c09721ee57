"""Certificates for tests over TLS, made by openssl."""

from __future__ import annotations

import atexit
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest
from eventually import ENOUGH_S


@cache
def certificate(name: str = "localhost") -> Path:
    """A PEM file of a certificate that signs itself, for 127.0.0.1, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here that could make a certificate")
    folder = Path(tempfile.mkdtemp(prefix="lightning-async-certificate-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    key, chain = folder / "key.pem", folder / "chain.pem"
    words = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -addext subjectAltName=IP:127.0.0.1"
    names = ["-subj", f"/CN={name}", "-keyout", str(key), "-out", str(chain)]
    subprocess.run([*words.split(), *names], check=True, capture_output=True, timeout=ENOUGH_S)
    whole = folder / "both.pem"
    whole.write_text(chain.read_text() + key.read_text())
    return whole
