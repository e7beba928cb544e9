#!/usr/bin/python3
"""Turn the commands that make would run (`make -nB`, on stdin) into compile_commands.json, on stdout."""

import json
import os
import shlex
import sys

commands = [shlex.split(line) for line in sys.stdin if " -c " in line]
entries = [{"directory": os.getcwd(), "file": words[-1], "arguments": words} for words in commands]
json.dump(entries, sys.stdout, indent=1)
