"""Which device computes: the options `device` and `devices`, where the plug-in for CUDA is looked for, and what is said
where it cannot be used. The backend of tests/backend/apart/ has its name here: it has the devices 0 and 1, and
APART_ABSENT takes them away."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / os.environ.get("BUILD", "build")
TINY = ROOT / "tests/golden/tiny-bert"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("ENGRAM_")}
PLUGIN = "libengram_cuda.so"
ABSENT = {"APART_ABSENT": "1"}


@pytest.fixture
def program(tmp_path):
    (tmp_path / "bin").mkdir()
    return Path(shutil.copy(BUILD / "engram", tmp_path / "bin/engram"))


@pytest.fixture
def beside(program):
    return program.parent / PLUGIN


@pytest.fixture(scope="module")
def apart():
    done = subprocess.run(["make", "-s", "build/tests/libengram_apart.so"], cwd=ROOT, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr
    return ROOT / "build/tests/libengram_apart.so"


def run(program, *arguments, stdin="", **variables):
    return subprocess.run([program, *arguments, "--model", TINY], input=stdin, text=True, capture_output=True,
                          timeout=60, check=False, env={**ENVIRONMENT, **variables})


def version(program, *arguments, **variables):
    done = run(program, "--version", *arguments, **variables)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 2, (done.stdout, done.stderr)
    return done.stdout


def encode(program, *arguments, **variables):
    """One text's vector, and what was logged."""
    done = run(program, "encode", "--stdin", *arguments, stdin="a text\n", **variables)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["embedding"], done.stderr


def refused(program, *arguments, status, **variables):
    done = run(program, "encode", "--stdin", *arguments, stdin="a text\n", **variables)
    assert (done.returncode, done.stdout) == (status, "")
    return done.stderr


def test_without_a_plug_in(program):
    for device in ((), ("--device", "auto"), ("--device", "cpu")):
        assert re.fullmatch(r"engram \S+ \(librdkafka \S+, LMDB \S+, oneDNN \S+, model tiny-bert\)\ndevice: cpu\n",
                            version(program, *device))
        assert encode(program, *device)[1] == ""
    why = (f"device = cuda needs the plug-in {PLUGIN}, which is neither beside this program nor in ../lib/engram: "
           "`make cuda` builds it\n")
    assert refused(program, "--device", "cuda", status=1) == f"engram encode: {why}"
    assert version(program, "--device", "cuda").endswith(f"no backend, model tiny-bert)\ndevice: none; {why}")


@pytest.mark.parametrize("place", ["bin", "lib/engram"])
def test_with_one(program, apart, tmp_path, place):
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    shutil.copy(apart, tmp_path / place / PLUGIN)
    for device in ((), ("--device", "auto"), ("--device", "cuda")):
        said = version(program, *device)
        assert "plain loops, model tiny-bert)\ndevice: apart (1 x loops)\n" in said and "oneDNN" not in said
    assert version(program, "--devices", "1,0").endswith("device: apart (2 x loops)\n")
    assert version(program, "--device", "cpu").endswith("device: cpu\n")
    vector, log = encode(program, "--device", "cuda", "--compute", "f32")
    assert "backend apart" in log and "the CPU computes" not in log
    other, log = encode(program, "--device", "cpu", "--compute", "f32")
    assert log == ""
    assert max(abs(mine - its) for mine, its in zip(vector, other, strict=True)) < 1e-4


def test_the_one_beside_goes_first(program, apart, tmp_path, beside):
    shutil.copy(apart, beside)
    (tmp_path / "lib/engram").mkdir(parents=True)
    (tmp_path / "lib/engram" / PLUGIN).write_text("no library")
    assert version(program).endswith("device: apart (1 x loops)\n")


def test_a_number_that_no_device_has(program, apart, beside):
    shutil.copy(apart, beside)
    for device in ("auto", "cuda"):
        why = refused(program, "--device", device, "--devices", "0,7", status=2)
        assert why == "engram encode: there is no device 7: there are 0 and 1\n"
    assert version(program, "--devices", "7").endswith("device: none; there is no device 7: there are 0 and 1\n")
    log = encode(program, "--device", "cpu", "--devices", "7")[1]
    assert len(log.splitlines()) == 1 and "warn  devices is '7', to no effect: device is cpu" in log


def test_without_a_device(program, apart, beside):
    shutil.copy(apart, beside)
    why = "there is no device of this kind\n"
    log = encode(program, **ABSENT)[1]
    assert len(log.splitlines()) == 1 and log.endswith(f" info  the CPU computes: {why}")
    said = version(program, **ABSENT)
    assert said.endswith(f"tiny-bert)\ndevice: cpu; {why}") and "oneDNN" in said
    assert refused(program, "--device", "cuda", status=1, **ABSENT) == f"engram encode: {why}"
    assert encode(program, "--device", "cpu", **ABSENT)[1] == ""


def test_with_a_plug_in_that_cannot_be_loaded(program, beside, apart):
    """Cut short, it is as good as missing; of another version, it is a fault of the installation."""
    beside.write_bytes(apart.read_bytes()[:10])
    log = encode(program)[1]
    assert f" info  the CPU computes: the plug-in {beside} cannot be loaded: " in log
    assert f"the plug-in {beside} cannot be loaded: " in refused(program, "--device", "cuda", status=1)
    subprocess.run(["make", "-s", "build/tests/libengram_other_abi.so"], cwd=ROOT, check=True)
    shutil.copy(ROOT / "build/tests/libengram_other_abi.so", beside)
    log = encode(program)[1]
    assert f" warn  the CPU computes: the plug-in {beside} has ABI " in log
    assert f"the plug-in {beside} has ABI " in version(program)
