"""The watch with a store and a clock of its own."""

import os
import signal
import time
from types import SimpleNamespace

import pytest

from shakegpt_jax import watch
from shakegpt_jax.watch import Watch

PATIENCE = 10


class Store(dict):
    """A key-value store like that of JAX's coordination service."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        assert allow_overwrite or key not in self
        self[key] = value

    def key_value_dir_get(self, prefix: str) -> list[tuple[str, str]]:
        return [item for item in self.items() if item[0].startswith(prefix)]


class Ended(BaseException):
    """The process has ended."""


@pytest.fixture
def watched(monkeypatch, capfd):
    """A watch of process 0 of 2 whose thread does not run, and what it has printed."""
    now = [0.0]

    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(watch.distributed, "global_state", SimpleNamespace(client=Store()))
    monkeypatch.setattr(watch.jax, "process_index", lambda: 0)
    monkeypatch.setattr(watch.jax, "process_count", lambda: 2)
    monkeypatch.setattr(watch.threading.Thread, "start", lambda self: None)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(os, "_exit", end)
    watching = Watch(PATIENCE)
    watching._libc.signal(signal.SIGABRT, None)  # pytest's own again

    def check(beat: str, seconds: float) -> str:
        now[0] += seconds
        watching._check("1", beat)
        return capfd.readouterr().err

    return watching, check, capfd


def test_a_process_that_shows_no_sign_is_lost(watched):
    _, check, capfd = watched
    check("1 0 0", 0)
    assert check("2 0 0", PATIENCE - 1) == ""
    assert check("2 0 0", PATIENCE - 1) == ""
    with pytest.raises(Ended):
        check("2 0 0", 2)
    assert "process 0: lost process 1: no sign of it for 10 s; run the" in capfd.readouterr().err


def test_a_process_that_stalls_is_reported_and_given_up(watched):
    watching, check, capfd = watched
    watching.progress = 5
    beats = iter(range(1, 1_000))
    errors = "".join(check(f"{next(beats)} 4 0", 1) for _ in range(10 * PATIENCE))
    assert errors == "process 0 has waited 21 s for process 1\n"
    with pytest.raises(Ended):
        check(f"{next(beats)} 4 0", 2)
    assert "process 1 has stalled: no progress for" in capfd.readouterr().err


def test_a_process_that_is_slow_or_ahead_is_not_given_up(watched):
    watching, check, _ = watched
    for progress in range(100):
        watching.progress = progress + 1
        assert check(f"{progress} {progress} 0", PATIENCE) == ""
    for beat in range(100):  # ahead: this process is the slow one
        assert check(f"{beat} 200 0", PATIENCE) == ""


def test_a_process_that_is_busy_is_waited_for(watched):
    watching, check, _ = watched
    watching.progress = 5
    for beat in range(30 * PATIENCE):
        assert check(f"{beat} 4 1", 1) == ""
