from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from ironworks.builderd.tenants import Credential
from ironworks.builderd.vault import Vault
from ironworks.model.errors import DataLoss, FailedPrecondition


def stored(vault: Vault, tenant_id: str = "tnt_a", scope: str = "ghcr.io") -> Credential:
    secret = vault.encrypt(tenant_id, scope, "s3cret")
    return Credential(
        tenant_id=tenant_id, scope=scope, username="bot", secret=secret, updated_at_ns=1
    )


def test_what_is_stored_does_not_show_the_password(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "keys")
    credential = stored(vault)
    assert "s3cret" not in credential.secret
    assert vault.decrypt(credential) == "s3cret"
    assert Vault(tmp_path / "keys").decrypt(credential) == "s3cret"
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o600


def test_a_ciphertext_serves_its_own_row_only(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "keys")
    credential = stored(vault)
    for other in (
        replace(credential, tenant_id="tnt_b"),
        replace(credential, scope="docker.io"),
        replace(credential, secret=credential.secret[:-4] + "AAA="),
    ):
        with pytest.raises(DataLoss, match="cannot be decrypted"):
            vault.decrypt(other)


def test_a_new_key_above_the_old_one_takes_over(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    old = Vault(path)
    credential = stored(old)
    assert old.renewed(credential) == credential.secret
    path.write_bytes(Fernet.generate_key() + b"\n" + path.read_bytes())
    both = Vault(path)
    again = replace(credential, secret=both.renewed(credential))
    assert again.secret != credential.secret
    path.write_bytes(path.read_bytes().split()[0])
    alone = Vault(path)
    assert alone.decrypt(again) == "s3cret"
    with pytest.raises(DataLoss):
        alone.renewed(credential)


def test_keys_that_others_can_read_or_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    Vault(path)
    path.chmod(0o644)
    with pytest.raises(FailedPrecondition, match="read by others"):
        Vault(path)
    path.chmod(0o600)
    path.write_text("not a key")
    with pytest.raises(FailedPrecondition, match="something else than keys"):
        Vault(path)
    path.write_text("")
    with pytest.raises(FailedPrecondition, match="something else than keys"):
        Vault(path)
