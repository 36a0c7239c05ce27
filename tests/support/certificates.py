"""Certificates for tests, made by the openssl command."""

import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_CONF = """
[req]
distinguished_name = none
prompt = no
[none]
CN = none
"""


@dataclass(frozen=True)
class Signed:
    """The files of a certificate and its key."""

    cert: str
    key: str

    @property
    def both(self) -> str:
        """One file with key and certificate."""
        path = Path(self.cert).with_suffix(".both")
        if not path.exists():
            path.touch(0o600)
            path.write_text(Path(self.key).read_text() + Path(self.cert).read_text())
        return str(path)


class Authority:
    """Signs certificates; ``folder`` is for their files."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.folder = folder
        self.name = name
        self.root  # noqa: B018  # made at once

    @property
    def ca(self) -> str:
        """The file of its own certificate."""
        return self.root.cert

    @cached_property
    def root(self) -> Signed:
        """Its own certificate."""
        extensions = "basicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign,cRLSign\n"
        return self._make(self.name, f"/CN={self.name}", extensions, None)

    def sign(self, name: str, subject: str = "", alternative: str = "", days: int = 2) -> Signed:
        """Make a certificate in the files ``name``; ``subject`` is such as ``/CN=alice``."""
        extensions = "basicConstraints=CA:FALSE\n"
        if alternative:
            extensions += f"subjectAltName={alternative}\n"
        return self._make(name, subject or "/", extensions, self.root, days)

    def _make(
        self, name: str, subject: str, extensions: str, issuer: Signed | None, days: int = 2
    ) -> Signed:
        folder = self.folder
        conf, extra = folder / "openssl.conf", folder / f"{name}.ext"
        conf.write_text(_CONF)
        extra.write_text(extensions)
        made = Signed(str(folder / f"{name}.crt"), str(folder / f"{name}.key"))
        request = str(folder / f"{name}.csr")
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", made.key)
        Path(made.key).chmod(0o600)
        openssl("req", "-new", "-config", conf, "-key", made.key, "-subj", subject, "-out", request)
        signer = (
            ("-signkey", made.key)
            if issuer is None
            else ("-CA", issuer.cert, "-CAkey", issuer.key, "-CAcreateserial")
        )
        openssl(
            *("x509", "-req", "-in", request, "-days", days, "-extfile", extra, "-out", made.cert),
            *signer,
        )
        return made


def openssl(*words: object) -> None:
    """Run the openssl command."""
    done = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
