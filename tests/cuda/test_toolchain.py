"""The plug-in for GPUs as it is built, and what the program does with it where there is no GPU; where there is one, the
same commands are to compute on it. `make cuda` builds what this needs."""

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / os.environ.get("BUILD", "build")
ENGRAM, PLUGIN = BUILD / "engram", BUILD / "libengram_cuda.so"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("ENGRAM_")}
TEXTS = "".join(f"{text}\n" for text in ("a fast mail server", "a horse with stripes", "x " * 300))

sys.path.insert(0, str(ROOT / "tools"))
import ptxas  # noqa: E402


def run(*command, status=0, **how):
    done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, timeout=300,
                          check=False, **how)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def dynamic(file):
    return run("readelf", "-dW", file).stdout


def needed(file):
    return set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic(file)))


def gpus():
    """How many the driver shows; 0 without a driver."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


# ---- the file ----


def test_it_shows_one_symbol():
    shown = run("nm", "-D", "--defined-only", PLUGIN).stdout.splitlines()
    assert [line.split()[1:] for line in shown] == [["T", "engram_backend"]]


def test_it_needs_no_driver_to_be_loaded():
    """The CUDA runtime in it opens the driver when it is first called."""
    system = r"(libstdc\+\+|libgcc_s|libc|libm|libdl|librt|libpthread|ld-linux-.*)\.so\.\d+"
    others = {name for name in needed(PLUGIN) if not re.fullmatch(system, name)}
    assert others <= {"libcublasLt.so.13", "libcublas.so.13", "libnccl.so.2"}
    assert not [name for name in needed(ENGRAM) if re.search("cuda|cublas|nccl", name)]


def test_it_loads_and_has_the_programs_abi():
    header = (ROOT / "gpu" / "backend.h").read_text(encoding="utf-8")
    abi = int(re.search(r"^#define BACKEND_ABI (\d+)$", header, re.MULTILINE)[1])
    script = ("import ctypes, sys; f = ctypes.CDLL(sys.argv[1]).engram_backend; f.restype = ctypes.POINTER(ctypes.c_uint32);"
              "print(f()[0])")
    assert int(run(sys.executable, "-c", script, PLUGIN).stdout) == abi


def test_it_is_hard_to_bend():
    """As the binary (tests/docs/test_hardening.py)."""
    segments, relocations = run("readelf", "-lW", PLUGIN).stdout, dynamic(PLUGIN)
    assert re.search(r"^ +GNU_RELRO ", segments, re.MULTILINE) and "BIND_NOW" in relocations
    assert "TEXTREL" not in relocations
    assert re.search(r"^ +GNU_STACK( +0x\w+){5} RW +", segments, re.MULTILINE)
    assert not re.search(r"^ +LOAD( +0x\w+){5} RWE", segments, re.MULTILINE)
    assert "__stack_chk_fail" in run("nm", "-D", PLUGIN).stdout


def test_a_toolkit_that_is_there_is_left_alone():
    """A second call says nothing and writes nothing."""
    files = [BUILD / "cuda.mk", BUILD / "cuda" / ".pin"]
    before = [file.stat().st_mtime_ns for file in files if file.exists()]
    done = run("tools/cuda.sh")
    assert before == [file.stat().st_mtime_ns for file in files if file.exists()]
    assert done.stdout + done.stderr == "" and not [*BUILD.glob(".cuda.*")]


# ---- what its kernels use: docs/GPU.md ----


def cells(table):
    """[file, kernel, a number for each architecture in each column] of each row."""
    return [[cell.strip("` ") for cell in line.strip("|\n").split(" | ")]
            for line in table.splitlines() if line.startswith("| `")]


FRESH = (BUILD / "cuda" / "ptxas.md").read_text(encoding="utf-8")


def test_no_kernel_spills():
    assert len(cells(FRESH)) > 0
    assert not [row for row in cells(FRESH) if set(" ".join(row[-2:]).split()) != {"0", "/"}]


def test_every_kernel_is_compiled_for_every_device():
    assert not [row for row in cells(FRESH) if "-" in row[-3].split()]


def test_the_documents_table_is_the_fresh_one():
    """Another toolkit than the one that the document names gives other figures, of the same kernels."""
    _, documented, _ = ptxas.between_marks((ROOT / "docs" / "GPU.md").read_text(encoding="utf-8"))
    compiler, fresh_compiler = (text.partition("\n")[0] for text in (documented, FRESH))
    if compiler == fresh_compiler:
        assert documented == FRESH, "run `make cuda-docs`"
    else:
        assert [row[:2] for row in cells(documented)] == [row[:2] for row in cells(FRESH)], "run `make cuda-docs CUDA=fetch`"


# ---- the program with it ----


def encode(*arguments, program=ENGRAM, status=0):
    """(vectors [texts, dim], the lines that it logged)."""
    done = run(program, "encode", "--stdin", *arguments, input=TEXTS, status=status, env=ENVIRONMENT)
    return np.array([json.loads(line)["embedding"] for line in done.stdout.splitlines()]), done.stderr.splitlines()


def check_cpu_instead(program, vectors, *arguments):
    """`cuda` refuses with one line; `auto` says the same, once, and takes the CPU. Returns that reason."""
    none, refusal = encode("--device", "cuda", *arguments, program=program, status=1)
    assert len(none) == 0 and len(refusal) == 1
    why = refusal[0].removeprefix("engram encode: ")
    found, said = encode("--device", "auto", *arguments, program=program)
    assert np.array_equal(found, vectors)
    assert len(said) == 1 and why in said[0]
    return why


def check_gpu(program, vectors, *arguments):
    for device in ("cuda", "auto"):
        found, _ = encode("--device", device, *arguments, program=program)
        assert found.shape == vectors.shape and np.all(np.sum(found * vectors, axis=1) > 0.999)


@pytest.fixture(scope="module")
def vectors():
    found, said = encode("--device", "cpu")
    assert len(found) == 3 and not said
    return found


def test_the_version_names_the_device():
    done = run(ENGRAM, "--version", env=ENVIRONMENT)
    assert done.stderr == ""
    assert re.search(r"^device: cuda \(.*\)$" if gpus() else r"^device: cpu; \S.*$", done.stdout, re.MULTILINE)


def test_auto_and_cuda(vectors):
    if gpus():
        check_gpu(ENGRAM, vectors)
    else:
        why = check_cpu_instead(ENGRAM, vectors)
        assert "cannot be loaded" not in why and "ABI" not in why, "the plug-in's own line"


def test_devices_that_are_not_there(vectors):
    """Named by the user: refused whatever `device` is, where there is a driver to ask; without one, as above."""
    for device in ("cuda", "auto") if gpus() else ("cuda",):
        none, said = encode("--device", device, "--devices", "99", status=2 if gpus() else 1)
        assert len(none) == 0 and len(said) == 1


def test_without_its_libraries(vectors, tmp_path):
    """Of a fetched toolkit the plug-in finds them by its own place; an installed one's are the loader's to find."""
    fetched = "(RUNPATH)" in dynamic(PLUGIN)
    model = BUILD / "models" / "all-MiniLM-L6-v2"
    for file in (ENGRAM, PLUGIN):
        shutil.copy(file, tmp_path)
    if gpus() and not fetched:
        check_gpu(tmp_path / "engram", vectors, "--model", model)
    else:
        why = check_cpu_instead(tmp_path / "engram", vectors, "--model", model)
        assert ("cannot be loaded: lib" in why) == fetched


def test_installed(vectors, tmp_path):
    """`make install` brings the plug-in, and of a fetched toolkit its libraries; `make uninstall` leaves no file."""
    environment = {name: value for name, value in ENVIRONMENT.items() if name not in ("MAKEFLAGS", "MFLAGS", "CUDA_LIBS")}
    where = [f"DESTDIR={tmp_path}", "PREFIX=/usr"]
    run("make", "-s", "install", *where, env=environment)
    program, plugin = tmp_path / "usr/bin/engram", tmp_path / "usr/lib/engram/libengram_cuda.so"
    assert plugin.read_bytes() == PLUGIN.read_bytes()
    if gpus():
        check_gpu(program, vectors)
    else:
        assert "cannot be loaded" not in check_cpu_instead(program, vectors)
    run("make", "-s", "install", "CUDA_LIBS=no", *where, env=environment)
    assert [*plugin.parent.rglob("*")] == [plugin]
    run("make", "-s", "uninstall", *where, env=environment)
    assert not [path for path in tmp_path.rglob("*") if not path.is_dir()]
