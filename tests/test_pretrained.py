"""Models with their weights by one name."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mobilesamv2 import SegAny, SegEvery, build_sam, list_models, load_pretrained, push_to_hub, save_pretrained
from mobilesamv2.checkpoints import save_mobile_sam
from mobilesamv2.cli.main import main
from mobilesamv2.data.synthetic.render import render_scene
from mobilesamv2.model_zoo import MODEL_FILES, shipped_models
from mobilesamv2.pretrained import toy_note
from mobilesamv2.prompts import GridProposals


def same_weights(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    theirs = second.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in first.state_dict().items())


def test_the_shipped_weights_segment() -> None:
    assert shipped_models() == ["mini_conv"]
    assert not load_pretrained("mini_conv").training
    image = np.full((96, 128, 3), 40, dtype=np.uint8)
    image[20:70, 30:90] = (220, 60, 30)
    masks = SegEvery.from_pretrained("mini_conv", GridProposals(points_per_side=8))(image)
    assert len(masks) > 0
    assert masks.size == (96, 128)


def test_files_and_folders(tmp_path: Path) -> None:
    sam = build_sam("mini")
    path = save_pretrained(sam, tmp_path / "mine")
    assert path == tmp_path / "mine" / "model.safetensors"
    for name in (path, str(path), tmp_path / "mine"):
        assert same_weights(sam, load_pretrained(name))


def test_published_files_of_a_folder(tmp_path: Path) -> None:
    sam = build_sam("mobile_sam")
    save_mobile_sam(sam, tmp_path / "mobile_sam.pt")
    assert same_weights(sam, load_pretrained("mobile_sam", tmp_path))
    assert same_weights(sam, load_pretrained(tmp_path / "mobile_sam.pt"))
    mine = tmp_path / "mine.pt"
    with pytest.raises(FileNotFoundError, match=r"There is no weight file .*mine\.pt"):
        load_pretrained(mine)
    mine.write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"mine\.pt does not identify a model; load it with build_sam\(NAME, '.*mine\.pt'\)"
    ):
        load_pretrained(mine)
    with pytest.raises(
        FileNotFoundError, match=r"sam_vit_b_01ec64.pth.* or run: mobilesamv2 download sam_vit_b_01ec64.pth"
    ):
        load_pretrained("sam_vit_b", tmp_path)


def test_unknown_names() -> None:
    with pytest.raises(
        ValueError, match=r"There are no weights for 'mini'\. Available: mini_conv.*build_sam\('mini', file\)"
    ):
        load_pretrained("mini")
    with pytest.raises(ValueError, match=r"There are no weights for 'mini_con'\. Did you mean 'mini_conv'\?"):
        load_pretrained("mini_con")
    with pytest.raises(ValueError, match=r"There are no weights for 'sam9'.*owner/repository\.$"):
        load_pretrained("sam9")
    with pytest.raises(ValueError, match=r"for 'mobilesam'\. Did you mean 'mobile_sam'\? Available: mini_conv, "):
        load_pretrained("mobilesam")
    assert list_models(pretrained=True) == ["mini_conv", *MODEL_FILES]
    assert set(list_models(pretrained=True)) < set(list_models())


def test_a_miniature_is_called_one() -> None:
    assert toy_note(build_sam("mini_conv"), "w").startswith(
        "mini_conv ships with this package, was trained on synthetic"
    )
    assert toy_note(build_sam("mini"), "w").startswith("mini is a miniature model, with an input of 256 pixels")
    assert toy_note(build_sam("mini"), "w").endswith("with `mobilesamv2 download mobile_sam -o w`.")
    assert toy_note(build_sam("mobile_sam")) == ""


def test_folders_come_after_names_and_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini_conv").mkdir()
    assert load_pretrained("mini_conv").name == "mini_conv"
    with pytest.raises(FileNotFoundError, match=r"mini_conv/model\.safetensors"):
        load_pretrained(tmp_path / "mini_conv")
    with pytest.raises(ValueError, match="There are no weights for 'mini_conv/other'"):  # not requested from the Hub
        load_pretrained("mini_conv/other")


@pytest.mark.slow
def test_by_name_and_by_folder_are_the_same(tmp_path: Path) -> None:
    save_pretrained(load_pretrained("mini_conv"), tmp_path)
    scene = render_scene(0)[0]
    by_name, by_folder = (SegEvery.from_pretrained(name)(scene) for name in ("mini_conv", tmp_path))
    assert len(by_name) == len(by_folder) > 0
    segany = SegAny.from_pretrained("mini_conv")
    segany.set_image(scene)
    assert segany.predict(points=[[[9, 9]]]).masks.shape == (1, 3, *scene.shape[:2])


def test_pushing_uploads_weights_and_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's client with its requests replaced: what would be uploaded is what is pulled again."""
    from huggingface_hub import HfApi

    created: dict[str, object] = {}

    def upload(self: HfApi, *, folder_path: str, repo_id: str) -> str:
        for path in Path(folder_path).iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        return f"https://hub/{repo_id}"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **given: created.update(given, repo_id=repo_id))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    sam = build_sam("mini")
    assert push_to_hub(sam, "someone/small-sam", private=True, licence="Apache-2.0") == "https://hub/someone/small-sam"
    assert created == {"repo_id": "someone/small-sam", "private": True, "exist_ok": True}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "model.safetensors"]
    assert same_weights(sam, load_pretrained(tmp_path))
    assert 'SegAny.from_pretrained("someone/small-sam")' in (tmp_path / "README.md").read_text()


def test_the_table_of_models_lists_known_weights(capsys: pytest.CaptureFixture[str]) -> None:
    main(["models", "mini_conv", "mobile_sam", "mini"])
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split("   ")[-1] for line in lines] == ["in this package", "mobile_sam.pt", "-"]
