"""Runs the modules of the page without a server in Node."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mobilesamv2.app.static import PAGE


def call_javascript(folder: Path, module: str, expression: str, **values: Any) -> Any:
    """Returns what an expression gives of a module's exports, ``page``, and of values that JSON holds, ``given``.

    Typed arrays come back as lists.
    """
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not installed: apt-get install nodejs")
    for path in PAGE.glob("*.js"):
        shutil.copy(path, folder)
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "given.json").write_text(json.dumps(values))
    (folder / "call.js").write_text(
        'import { readFileSync } from "node:fs";\n'
        f'import * as page from "./{module}";\n'
        'const given = JSON.parse(readFileSync("given.json"));\n'
        "const plain = (key, value) => (ArrayBuffer.isView(value) ? [...value] : value);\n"
        f"console.log(JSON.stringify({expression}, plain));\n"
    )
    done = subprocess.run([node, "call.js"], capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
