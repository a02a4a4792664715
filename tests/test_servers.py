"""The servers and processes that demo, comparison and tests start: each is stopped, whatever happens."""

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sandbox import servers


def test_a_process_that_is_born_as_ctrl_c_is_pressed_is_stopped_as_well(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    born: list[subprocess.Popen[bytes]] = []

    class PressedInBirth(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            born.append(self)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", PressedInBirth)
    with (
        pytest.raises(KeyboardInterrupt),
        servers.process("-c", "import time; time.sleep(60)", env={}, log=tmp_path / "log"),
    ):
        pytest.fail("The block was entered.")

    assert [child.poll() for child in born] == [-signal.SIGTERM]


def test_nohup_shields_from_the_terminal_that_is_closed() -> None:
    usual = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert servers.stop_signals() == [signal.SIGINT, signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, usual)

    assert signal.SIGHUP in servers.stop_signals()
