"""The page without a server: its files, the npm package in them, and the options of the command."""

import base64
import hashlib
import importlib
import io
import json
import re
import signal
import sys
import tarfile
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
from support import ROOT
from support.file_server import Server, serving

from mobilesamv2 import build_sam
from mobilesamv2.app import onnxruntime_web, static
from mobilesamv2.app.onnxruntime_web import BACKENDS, VERSION, write_onnxruntime_web
from mobilesamv2.app.static import PAGE, PHOTOS, write_static_page
from mobilesamv2.cli.main import main
from mobilesamv2.export.graphs import Graph
from mobilesamv2.export.onnx import ENCODER_FILE, Exported
from mobilesamv2.models.sam import Sam

NAMES = [name for files in BACKENDS.values() for name in files.values()]


def package_bytes(names: list[str] = NAMES) -> bytes:
    """A package of npm with small files."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    return content.getvalue()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of ``npm pack``, which is taken for the real one."""
    path = tmp_path / "package.tgz"
    path.write_bytes(package_bytes())
    integrity = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    monkeypatch.setattr(onnxruntime_web, "INTEGRITY", f"sha512-{integrity}")
    return path


@pytest.fixture
def server(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The registry; nothing is in the user's cache, and downloads are allowed."""
    monkeypatch.setenv("MOBILESAMV2_DOWNLOAD", "1")
    monkeypatch.setattr(onnxruntime_web.platformdirs, "user_cache_dir", lambda name: str(tmp_path / "cache"))
    with serving(package.read_bytes()) as server:
        monkeypatch.setattr(onnxruntime_web, "URL", server.url.replace("weights.pt", "package.tgz"))
        yield server


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for the export, which takes long and has tests of its own; the browser's test runs it."""

    def write_graphs(sam: Sam, folder: Path) -> Exported:
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / "encoder.onnx", folder / "decoder.onnx"]
        for path in paths:
            path.write_bytes(b"graph of " + path.stem.encode())
        return Exported(paths, {})

    monkeypatch.setattr(static, "export_onnx", write_graphs)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.usefixtures("export")
def test_every_file_that_the_page_names_is_there(package: Path, tmp_path: Path) -> None:
    folder = tmp_path / "page"
    sam = build_sam("micro_conv")
    write_static_page(sam, folder, package)
    written = contents(folder)
    about = json.loads(written["model/model.json"])
    assert about["model"] == "micro_conv"
    assert about["image_size"] == sam.image_size
    assert about["pred_iou_thresh"] == sam.thresholds.pred_iou_thresh
    listed = [*about["graphs"].values(), *(file for files in about["onnxruntime"].values() for file in files.values())]
    assert {file["file"] for file in listed} == {
        "model/encoder.onnx",
        "model/decoder.onnx",
        *(f"onnxruntime/{name}" for name in NAMES),
    }
    for file in listed:
        assert file["nbytes"] == len(written[file["file"]]) > 0
    assert about["images"][0]["file"] == "images/scene.png"  # a miniature is weak on photographs, and says so
    assert "weak on photographs" in about["note"]
    assert {image["file"] for image in about["images"]} <= written.keys()
    assert len(about["images"]) == 3
    scripts = [text.decode() for name, text in written.items() if name.endswith((".js", ".html"))]
    named = {name for text in scripts for name in re.findall(r"""["'](?:\./)?([\w-]+\.(?:js|css))["']""", text)}
    assert named == {path.name for path in PAGE.iterdir()} - {"index.html"}

    write_static_page(sam, folder, package)
    assert contents(folder) == written


def test_the_keys_and_words_are_those_of_the_page_with_a_server() -> None:
    page = pytest.importorskip("mobilesamv2.app.page", reason="Gradio is not installed: pip install 'mobilesamv2[app]'")
    answers = importlib.import_module("mobilesamv2.app.answers")
    index, script = ((PAGE / name).read_text() for name in ("index.html", "page.js"))
    canvas = [(PHOTOS / name).read_text() for name in ("canvas.html", "canvas.js")]
    assert dict(re.findall(r"<dt>(.*?)</dt>\s*<dd>(.*?)</dd>", index)) == page.KEYS
    for label in ("+ Object", "&minus; Background", "&#9633; Box", "Undo", "Redo", "Clear"):
        assert f">{label}</" in index
        assert f">{label}</" in canvas[0]
    for title in page.DOWNLOADS:
        assert f">{title.replace(chr(0x2193), '&darr;')}</button>" in index
    assert f'HELP = "{answers.HELP}"' in script
    assert "Drag from one corner of the object to the opposite one." in script
    assert "Drag from one corner of the object to the opposite one." in canvas[1]


def test_the_page_names_no_other_server() -> None:
    for path in PAGE.iterdir():
        assert set(re.findall(r"https?://[\w.]*", path.read_text())) <= {"http://localhost"}


def test_the_wheel_has_the_page_and_the_photos() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["mobilesamv2"]
    for path in (*PAGE.iterdir(), *PHOTOS.glob("*.jpg")):
        assert any(fnmatch(path.relative_to(ROOT / "mobilesamv2").as_posix(), pattern) for pattern in patterns)


@pytest.mark.usefixtures("export")
def test_a_folder_with_another_page_is_left_alone(package: Path, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("<h1>Mine</h1>")
    with pytest.raises(ValueError, match=r"index\.html is not a page of mobilesamv2, and would be replaced"):
        write_static_page(build_sam("micro_conv"), tmp_path / "site", package)
    assert contents(tmp_path / "site") == {"index.html": b"<h1>Mine</h1>"}


def test_a_page_that_fails_has_no_index(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(sam: Sam, folder: Path) -> Exported:
        raise ValueError("the graphs differ")

    monkeypatch.setattr(static, "export_onnx", fail)
    with pytest.raises(ValueError, match="the graphs differ"):
        write_static_page(build_sam("micro_conv"), tmp_path / "page", package)
    assert not (tmp_path / "page" / "index.html").exists()


@pytest.mark.usefixtures("export")
def test_what_an_interrupted_page_left_is_removed(package: Path, tmp_path: Path) -> None:
    folder = tmp_path / "page"
    left = [f"model/.ahrleycg.partial/{ENCODER_FILE}", f"onnxruntime/{'0' * 32}.partial", f"{'a' * 32}.partial"]
    for name in (*left, "mine.partial"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("half")
    write_static_page(build_sam("micro_conv"), folder, package)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.partial")} == {"mine.partial"}


@pytest.mark.parametrize(
    "command", [["app", "--static", "page", "--model", "mini_conv"], ["export", "mini_conv", "-o", "page"]]
)
def test_a_stopped_export_leaves_nothing(
    command: list[str], package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(static, "write_onnxruntime_web", lambda folder, source: None)
    begun: list[Path] = []

    def stop_amid(graph: Graph, path: Path, *more: object) -> None:
        path.write_bytes(b"half")
        begun.append(path)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("mobilesamv2.export.onnx.write_graph", stop_amid)
    before = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("it would have died"))
    try:
        with pytest.raises(SystemExit, match="143"):
            main(command)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [path.name for path in begun] == [ENCODER_FILE]
    assert contents(tmp_path / "page") == {}


def test_a_model_that_no_browser_holds(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "MAX_GRAPH_BYTES", 1000)
    with pytest.raises(ValueError, match=r"micro_conv has .* GB of weights, more than a browser loads"):
        write_static_page(build_sam("micro_conv"), tmp_path / "page", package)
    assert not (tmp_path / "page").exists()


def test_the_package_is_downloaded_once(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.to_lose = 1  # the connection is lost halfway, and the download goes on
    write_onnxruntime_web(tmp_path / "page")
    assert contents(tmp_path / "page") == {name: name.encode() for name in NAMES}
    assert f"downloading onnxruntime-web {VERSION} (33 MB, MIT, from {server.url.rpartition('/')[0]}" in (
        capsys.readouterr().err
    )
    monkeypatch.setenv("MOBILESAMV2_DOWNLOAD", "0")
    requests = len(server.requested)
    write_onnxruntime_web(tmp_path / "again")
    assert len(server.requested) == requests
    assert contents(tmp_path / "again") == contents(tmp_path / "page")


def test_another_package_is_refused_and_not_kept(server: Server, tmp_path: Path) -> None:
    server.content = package_bytes(NAMES[:1])
    with pytest.raises(
        ValueError, match=rf"must be the npm package onnxruntime-web {VERSION}, whose integrity is sha512"
    ):
        write_onnxruntime_web(tmp_path / "page")
    assert contents(tmp_path / "cache") == {}
    assert not (tmp_path / "page").exists()
    server.content = package_bytes()
    write_onnxruntime_web(tmp_path / "page")


def test_without_a_network(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    way_out = rf"npm pack onnxruntime-web@{VERSION}.*--onnxruntime FILE"
    server.missing = True
    with pytest.raises(ConnectionError, match=rf"HTTP status 404.*{way_out}"):
        write_onnxruntime_web(tmp_path / "page")
    monkeypatch.setenv("MOBILESAMV2_DOWNLOAD", "0")
    with pytest.raises(FileNotFoundError, match=rf"MOBILESAMV2_DOWNLOAD, CI or HF_HUB_OFFLINE forbids.*{way_out}"):
        write_onnxruntime_web(tmp_path / "page")


def test_without_the_extra_nothing_is_downloaded_or_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"not installed: onnxscript.*mobilesamv2\[export\]"):
        write_static_page(build_sam("micro_conv"), tmp_path / "page")
    assert server.requested == []
    assert not (tmp_path / "page").exists()
    monkeypatch.setattr("mobilesamv2.pretrained.find_or_download", None)  # of weights
    for command in (["app", "--static", "page", "--model", "mobile_sam"], ["export", "mobile_sam", "-o", "page"]):
        with pytest.raises(SystemExit, match=r"not installed: onnxscript.*mobilesamv2\[export\]"):
            main(command)


def test_a_folder_of_node_modules(tmp_path: Path) -> None:
    folder = tmp_path / "onnxruntime-web"
    (folder / "dist").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"onnxruntime-web .*, got no package.json with a name and a version"):
        write_onnxruntime_web(tmp_path / "page", folder)
    for content in ("[]", "{", '{"name": "onnxruntime-web"}'):
        (folder / "package.json").write_text(content)
        with pytest.raises(ValueError, match=r"got no package\.json with a name and a version"):
            write_onnxruntime_web(tmp_path / "page", folder)
    (folder / "package.json").write_text('{"name": "onnxruntime-web", "version": "1.2.3"}')
    with pytest.raises(
        ValueError, match=rf"must be the npm package onnxruntime-web {VERSION}, got onnxruntime-web 1\.2\.3"
    ):
        write_onnxruntime_web(tmp_path / "page", folder)
    (folder / "package.json").write_text(json.dumps({"name": "onnxruntime-web", "version": VERSION}))
    with pytest.raises(FileNotFoundError, match=rf"There is no dist/{NAMES[0]} in .*: the package is incomplete"):
        write_onnxruntime_web(tmp_path / "page", folder)
    for name in NAMES:
        (folder / "dist" / name).write_text(name)
    write_onnxruntime_web(tmp_path / "page", folder)
    assert contents(tmp_path / "page") == {name: name.encode() for name in NAMES}
    with pytest.raises(FileNotFoundError, match=r"There is no onnxruntime-web at .*nowhere"):
        write_onnxruntime_web(tmp_path / "page", tmp_path / "nowhere")


@pytest.mark.usefixtures("export")
def test_the_command(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "page"
    main(["app", "--static", str(folder), "--model", "mini_conv", "--onnxruntime", str(package)])
    said = capsys.readouterr().out
    assert f"written: {folder / 'index.html'} (" in said
    assert f"python -m http.server -d {folder}" in said
    assert json.loads((folder / "model" / "model.json").read_text())["model"] == "mini_conv"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--onnxruntime", "x.tgz"], "--onnxruntime requires --static"),
        (["--static", "page", "--port", "80"], "--port is of the page with a server, and excludes --static"),
        (["--static", "page", "--share"], "--share is of the page with a server"),
        (["--static", "page", "--value-range", "0", "9"], "--value-range is of the page with a server"),
        (["--static", "page", "--onnxruntime", "x.tgz"], "There is no onnxruntime-web at x.tgz"),
    ],
)
def test_options_that_contradict(
    options: list[str], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=error):
        main(["app", "--model", "mini_conv", *options])
    assert not (tmp_path / "page").exists()
