"""What makes an attack harder, and nothing else would notice missing: how the binary was compiled and linked, and what the
sample unit takes away."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
OBJECTS = sorted((ROOT / "build" / "obj").rglob("*.o"))
X86_64 = subprocess.run(["gcc", "-dumpmachine"], capture_output=True, text=True, check=True).stdout.startswith("x86_64")


def run(*arguments):
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def readelf(*arguments):
    return run("readelf", "-W", *arguments)


def marked(file):
    """Control-flow enforcement (CET, x86-64's): indirect jumps land on marks, returns go through a shadow stack."""
    return not X86_64 or "IBT, SHSTK" in readelf("-n", file)


def check_hard_to_bend(binary):
    """How it is linked, and that stacks and the sizes of what the C library writes to are checked."""
    header, segments, dynamic = (readelf(flag, binary) for flag in ("-h", "-l", "-d"))
    assert re.search(r"Type: +DYN", header) and re.search(r"^ +INTERP ", segments, re.MULTILINE)
    flags = re.search(r"\(FLAGS_1\) +Flags: (.*)", dynamic)[1].split()
    assert {"NOW", "PIE"} <= set(flags)
    assert re.search(r"^ +GNU_RELRO ", segments, re.MULTILINE) and "BIND_NOW" in dynamic
    assert "TEXTREL" not in dynamic
    assert re.search(r"^ +GNU_STACK( +0x\w+){5} RW +", segments, re.MULTILINE)
    assert not re.search(r"^ +LOAD( +0x\w+){5} RWE", segments, re.MULTILINE)

    wanted = readelf("--dyn-syms", binary)
    assert "__stack_chk_fail" in wanted
    assert {"__snprintf_chk", "__vsnprintf_chk"} <= set(re.findall(r"__\w+_chk\b", wanted))


def test_it_is_hard_to_bend():
    """The binary; the image's is in tests/compose."""
    check_hard_to_bend("build/engram")


def test_its_control_flow_is_marked():
    """Every object of ours. The linker marks the whole only where the C library's start files are marked too: Debian 12's
    are not."""
    assert len(OBJECTS) > 100 and not [file for file in OBJECTS if not marked(file)]
    starts = [run("gcc", f"-print-file-name={name}").strip() for name in ("Scrt1.o", "crti.o", "crtn.o")]
    assert marked("build/engram") or not all(map(marked, starts))


@pytest.mark.parametrize("cflags", ["-O3", "-Os -D_FORTIFY_SOURCE=2", "-O0"])
def test_other_flags_keep_it(tmp_path, cflags):
    """CFLAGS of the user's own stand beside what hardens, and warn about nothing."""
    built = tmp_path / "obj" / "base" / "log.o"
    run("make", "-s", f"BUILD={tmp_path}", f"CFLAGS={cflags}", built)
    wanted = readelf("-s", built)
    assert "__stack_chk_fail" in wanted and ("__vsnprintf_chk" in wanted or cflags == "-O0")
    assert marked(built)


UNIT = ROOT / "deploy" / "engram.service"
SANDBOX = """
UMask=0077 StateDirectoryMode=0700 NoNewPrivileges=yes CapabilityBoundingSet= AmbientCapabilities= SystemCallArchitectures=native
SystemCallFilter=@system-service RestrictNamespaces=yes RestrictRealtime=yes RestrictSUIDSGID=yes LockPersonality=yes
RemoveIPC=yes PrivateDevices=yes PrivateTmp=yes PrivateUsers=yes DevicePolicy=closed ProcSubset=pid ProtectProc=invisible
ProtectClock=yes ProtectControlGroups=yes ProtectHome=yes ProtectHostname=yes ProtectKernelLogs=yes ProtectKernelModules=yes
ProtectKernelTunables=yes ProtectSystem=strict
"""


def test_the_unit_is_a_sandbox():
    lines = UNIT.read_text(encoding="utf-8").splitlines()
    assert "SystemCallFilter=~@privileged @resources" in lines
    assert not [line for line in SANDBOX.split() if line not in lines]
    assert not [line for line in lines if line.startswith("MemoryDenyWriteExecute=")], "oneDNN makes code as it runs"
    if shutil.which("systemd-analyze"):  # its verdict, in tenths, where there is one to ask
        run("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=29", UNIT)
