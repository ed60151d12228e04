"""Passwords of registries: encrypted in the database, and in no file.

Fernet (AES-128-CBC and HMAC-SHA-256) of `cryptography`. The keys are a file of their own, one a
line, the first encrypts. To change keys put a new line above the old one and restart builderd: what
is stored is encrypted again, and the old line can go.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from ironworks.builderd.tenants import Credential
from ironworks.model.errors import DataLoss, FailedPrecondition


class Vault:
    """Encrypts and decrypts passwords."""

    def __init__(self, path: Path) -> None:
        """Read the keys; make one if there are none yet. Blocks.

        Raises:
            FailedPrecondition: the file can be read by others, or has something else than keys.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _make_key(path)
        if path.stat().st_mode & 0o077:
            raise FailedPrecondition(
                f"The keys of credentials, {path}, can be read by others.",
                hint=f"chmod 600 {path}; if others had read it, change the passwords.",
            )
        try:
            keys = [Fernet(line) for line in path.read_bytes().split() if line]
            self._keys = MultiFernet(keys)
        except ValueError:
            raise FailedPrecondition(
                f"{path} has something else than keys.",
                hint="Each line must be 32 bytes in URL-safe base64; restore it from a backup.",
            ) from None
        self._first = keys[0]

    def encrypt(self, tenant_id: str, scope: str, password: str) -> str:
        """What is stored; it is of use for this tenant and scope only."""
        # In it, since one row's ciphertext must not serve in another row.
        text = json.dumps({"tenant": tenant_id, "scope": scope, "password": password})
        return self._first.encrypt(text.encode()).decode()

    def decrypt(self, credential: Credential) -> str:
        """The password.

        Raises:
            DataLoss: no key fits, or the row has another one's password.
        """
        try:
            text = self._keys.decrypt(credential.secret.encode())
        except InvalidToken:
            raise _lost(credential) from None
        value = cast("Mapping[str, str]", json.loads(text))
        if (value["tenant"], value["scope"]) != (credential.tenant_id, credential.scope):
            raise _lost(credential)
        return value["password"]

    def renewed(self, credential: Credential) -> str:
        """The ciphertext under the first key; the same text if it is so already.

        Raises:
            DataLoss: no key fits.
        """
        try:
            self._first.decrypt(credential.secret.encode())
        except InvalidToken:
            password = self.decrypt(credential)
            return self.encrypt(credential.tenant_id, credential.scope, password)
        return credential.secret


def _make_key(path: Path) -> None:
    """Make the file with a first key, whole; another builderd here may do so as well."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.") as file:
        file.write(Fernet.generate_key() + b"\n")
        file.flush()
        os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(file.name, path)


def _lost(credential: Credential) -> DataLoss:
    return DataLoss(
        f"The credential for {credential.scope} cannot be decrypted.",
        hint="Store it again with `iron registry login`.",
        context={"tenant": credential.tenant_id},
    )
