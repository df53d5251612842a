"""The command line's help imports nothing that is slow to import."""

import json
import subprocess
import sys

import pytest
from support import ROOT

from mobilesamv2.cli.main import COMMANDS, HYDRA_COMMANDS
from mobilesamv2.cli.report import REPORTS

HEAVY = (
    "torch", "timm", "torchvision", "pytorch_lightning", "hydra", "omegaconf", "ultralytics", "matplotlib",
    "pycocotools", "wandb", "scipy", "gradio", "onnx", "onnxruntime", "cv2",
)  # fmt: skip

ALL_HELP = """
import contextlib, io, json, sys
from mobilesamv2.cli.main import main
imported, printed = {}, {}
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main([*words, "--help"])
    printed[" ".join(words)] = out.getvalue()
    imported[" ".join(words)] = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
print(json.dumps([imported, printed]))
"""


def test_help_imports_nothing_heavy() -> None:
    lines = [
        [],
        *([command.name] for command in COMMANDS if command.name not in HYDRA_COMMANDS),
        *(["report", name] for name in REPORTS),
    ]
    command = [sys.executable, "-c", ALL_HELP, json.dumps(lines), json.dumps(HEAVY)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    imported, printed = json.loads(done.stdout)
    assert imported == {" ".join(words): [] for words in lines}
    for words, text in printed.items():
        assert text.startswith(f"usage: mobilesamv2 {words}".rstrip())
    for name, _, line in COMMANDS:
        assert name in printed[""]
        assert line in " ".join(printed[""].split())


@pytest.mark.slow
def test_the_public_names_are_imported_on_first_use() -> None:
    code = (
        "import sys, mobilesamv2\n"
        "assert 'torch' not in sys.modules\n"
        "assert set(mobilesamv2.__all__) <= set(dir(mobilesamv2))\n"
        "from mobilesamv2 import SegAny, SegEvery, build_sam, list_models, load_pretrained, load_sam\n"
        "assert all(callable(getattr(mobilesamv2, name)) for name in mobilesamv2.__all__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_is_an_attribute_error() -> None:
    import mobilesamv2

    with pytest.raises(AttributeError, match="has no attribute 'SegNothing'"):
        _ = mobilesamv2.SegNothing
