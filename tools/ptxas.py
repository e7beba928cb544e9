#!/usr/bin/python3
"""What ptxas says of the kernels, as a Markdown table: registers, memory and spills of each.

  tools/ptxas.py --nvcc NVCC build/obj/gpu/cuda/*.ptxas   the table, from what `nvcc -Xptxas -v` printed for each file
  tools/ptxas.py --into docs/GPU.md build/cuda/ptxas.md   puts a table between the two marks in a document

A kernel has its name without parameters and namespaces: an unnamed namespace's is made from a sum of the file. A device
function that was not inlined has a stack and spills of its own, and no registers.
"""

import argparse
import re
import subprocess
from pathlib import Path

BEGIN, END = "<!-- ptxas: begin -->\n\n", "\n<!-- ptxas: end -->\n"
ARCHITECTURES = ("sm_80", "sm_90")
COLUMNS = {"registers": r"Used (\d+) registers", "shared, bytes": r"(\d+) bytes smem",
           "stack, bytes": r"(\d+) bytes stack frame",
           "spill stores, bytes": r"(\d+) bytes spill stores", "spill loads, bytes": r"(\d+) bytes spill loads"}


def parsed(text):
    """{architecture: {mangled name: {column: number}}}: what follows "Function properties for" a function is its own."""
    found, architecture, function = {}, None, None
    for line in text.splitlines():
        if begun := re.search(r"Compiling entry function '(\S+)' for '(\w+)'", line):
            function, architecture = begun.groups()
        elif begun := re.search(r"Function properties for (\S+)", line):
            function = begun[1]
        else:
            for column, pattern in COLUMNS.items():
                if number := re.search(pattern, line):
                    found.setdefault(architecture, {}).setdefault(function, {})[column] = int(number[1])
    return found


def short(mangled):
    """Their names as a reader of the source knows them."""
    names = subprocess.run(["c++filt", "--no-params", *mangled], capture_output=True, text=True, check=True).stdout
    return dict(zip(mangled, (re.sub(r"^(?:void )?(?:.*?::)*(?=\w+(?:<|$))", "", name) for name in names.splitlines())))


def rows(log):
    found = parsed(log.read_text(encoding="utf-8"))
    names = short(sorted(set().union(*found.values())))
    for mangled, name in sorted(names.items(), key=lambda item: item[1]):
        numbers = [found.get(architecture, {}).get(mangled, {}) for architecture in ARCHITECTURES]
        smem = [{"shared, bytes": 0, **one} if "registers" in one else one for one in numbers]
        cells = [" / ".join(str(one.get(column, "-")) for one in smem) for column in COLUMNS]
        yield f"| `{log.stem}.cu` | `{name}` | {' | '.join(cells)} |\n"


def table(logs, nvcc):
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release .*, V([\d.]+)", version)[1]
    head = f"| file | kernel | {' | '.join(COLUMNS)} |\n|---|---|{'---|' * len(COLUMNS)}\n"
    return (f"nvcc {release}; {' / '.join(ARCHITECTURES)}\n\n{head}"
            + "".join(row for log in sorted(logs) for row in rows(log)))


def between_marks(document):
    """(before, table, after) of a document's text."""
    before, begin, rest = document.partition(BEGIN)
    inside, end, after = rest.partition(END)
    assert begin and end, f"no marks {BEGIN.strip()} and {END.strip()}"
    return before + begin, inside, end + after


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--nvcc", help="the compiler that printed it")
    arguments.add_argument("--into", type=Path, help="the document to change")
    arguments.add_argument("files", nargs="+", type=Path)
    options = arguments.parse_args()
    if options.into:
        before, _, after = between_marks(options.into.read_text(encoding="utf-8"))
        options.into.write_text(before + options.files[0].read_text(encoding="utf-8") + after, encoding="utf-8")
    else:
        print(table(options.files, options.nvcc), end="")


if __name__ == "__main__":
    main()
