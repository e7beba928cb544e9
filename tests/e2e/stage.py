"""Engram's binary as the end-to-end tests run it: one command to its end, or the stage beside a test.

Every process gets an environment without ENGRAM_* variables and dies with the test run, however that ends.
"""

import ctypes
import json
import os
import re
import signal
import subprocess
from pathlib import Path

from kafka import WAIT_S, wait_until

ROOT = Path(__file__).resolve().parent.parent.parent
ENGRAM = ROOT / "build" / "engram"
DEBTAGS = ROOT / "examples" / "debtags"
TINY = ["--model", ROOT / "tests" / "golden" / "tiny-bert"]  # for what no real model is needed for: starts in no time
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None)


def _die_with_parent():
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def environment(env=None):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ENGRAM_")}
    return {**clean, **(env or {})}


def engram(*arguments, stdin=None, env=None, timeout_s=WAIT_S, check=True, cwd=None):
    """Run one command to its end; returns subprocess's result with text. check: exit 0 is expected."""
    done = subprocess.run([ENGRAM, *map(str, arguments)], input=stdin or "", text=True, capture_output=True,
                          timeout=timeout_s, env=environment(env), cwd=cwd, check=False, preexec_fn=_die_with_parent)
    if check:
        assert done.returncode == 0, f"engram {' '.join(map(str, arguments))}: exit {done.returncode}\n{done.stderr}"
    return done


def built(*path):
    """A program in the build folder that `make all` leaves out."""
    target = Path("build", *path)
    done = subprocess.run(["make", "-s", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ROOT / target


def memory_stats(memory):
    """`memory stats --json` of a folder, also beside a running stage."""
    return json.loads(engram("memory", "stats", "--json", "--memory", memory).stdout)


class Stage:
    """`engram run` with the given flags; its log goes to a file in `folder`. Made by the fixture `stage`.
    Without a console, for several run on one machine, unless a test gives it a --port."""

    def __init__(self, flags, folder, memory, env=None, program=ENGRAM):
        self.flags = [str(flag) for flag in flags]
        self.memory = Path(memory)
        self.log_path = Path(folder) / f"stage-{len(list(Path(folder).glob('stage-*.log'))) + 1}.log"
        self._env = env
        self._program = program
        self._start()

    def _start(self):
        with open(self.log_path, "ab") as log:
            self._log_start = log.tell()
            self.process = subprocess.Popen(
                [self._program, "run", "--memory", self.memory, "--port", "0", *self.flags], stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, env=environment(self._env), preexec_fn=_die_with_parent)

    def restart(self, *more_flags):
        """The same again after an end, kill or stop; more_flags stay."""
        assert not self.running, "the stage still runs"
        self.flags += [str(flag) for flag in more_flags]
        self._start()
        return self

    # -- what it says --

    def log(self, whole=False):
        """What it wrote since its last start, or since its first."""
        with open(self.log_path, "rb") as log:
            log.seek(0 if whole else self._log_start)
            return log.read().decode("utf-8", "replace")

    def wait_for(self, pattern, timeout_s=WAIT_S):
        """Wait for a line of the log that matches the regular expression; returns the match."""
        compiled = re.compile(pattern, re.MULTILINE)

        def found():
            ended = not self.running  # asked first: what it wrote before its end counts
            match = compiled.search(self.log())
            assert match or not ended, f"the stage ended ({self.process.returncode}) without {pattern!r}:\n{self.log()}"
            return match

        return wait_until(found, lambda: f"{pattern!r} in\n{self.log()}", timeout_s)

    def wait_ready(self, timeout_s=WAIT_S):
        self.wait_for(r"\bready:", timeout_s)
        return self

    def stats(self):
        return memory_stats(self.memory)

    # -- how it ends --

    @property
    def running(self):
        return self.process.poll() is None

    def kill(self):
        """kill -9"""
        self.process.kill()
        self.process.wait()

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s=WAIT_S):
        """Its exit status, once it ends by itself or after terminate()."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the stage still runs after {timeout_s:g} s:\n{self.log()}") from None

    def stop(self, timeout_s=WAIT_S):
        """TERM, and a clean end (exit 0) in time."""
        self.terminate()
        status = self.wait(timeout_s)
        assert status == 0, f"exit {status}:\n{self.log()}"

    # -- what it costs --

    def cpu_s(self):
        """Seconds of CPU that it has used, user and system."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak_bytes(self):
        """The most memory that it has had resident (VmHWM)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024
