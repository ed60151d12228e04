from pathlib import Path

import pytest

from ironworks.metald import doctor
from ironworks.metald.drivers.driver import Driver, DriverKind
from ironworks.metald.settings import MetaldSettings
from ironworks.runtime.clock import SystemClock
from ironworks.testkit.metald.vmm import MemoryDriver


async def test_a_host_tells_its_drivers_its_choice_and_its_capacity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drivers(*_: object, **__: object) -> dict[DriverKind, Driver]:
        return {DriverKind.FAKE: MemoryDriver(SystemClock())}

    monkeypatch.setattr(doctor, "make_drivers", drivers)
    settings = MetaldSettings(data_dir=tmp_path / "data", max_vms=7, driver=DriverKind.FAKE)
    found = await doctor.examine(settings)
    assert (found["driver"], found["ready"]) == ("fake", True)
    assert found["drivers"] == [
        {
            "kind": "fake",
            "available": True,
            "acceleration": "none",
            "version": "1",
            "sentence": "In memory.",
        }
    ]
    capacity = found["capacity"]
    assert isinstance(capacity, dict)
    assert capacity["vms"] == 7
