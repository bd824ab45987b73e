"""The upload of a result: who may is known before the training, what arrives holds no path, a failure loses nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from data.errors import SettingsError, UploadError
from finetune.core import hub
from finetune.core.settings import LoopSettings
from tests.finetune.test_run import _run as run_toy
from tests.hub_stand_in import HubStandIn, hub_stand_in

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """The Hub as this process knows it is a stand-in, and somebody is logged in there."""
    with hub_stand_in() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "good")
        yield found


def _export(folder: Path) -> list[str]:
    """Leave what a result may hold: an adapter whose header says where its base lies, a card, a pipeline's parts."""
    base = str(folder.parent / "models" / "sd15")
    header = {"filrouge": json.dumps({"base": base, "resolution_px": 64}), "lora_adapter_metadata": '{"unet.r": 4}'}
    save_file({"a": torch.arange(6.0)}, folder / "pytorch_lora_weights.safetensors", metadata=header)
    for name, content in {
        "README.md": "a card",
        "final.png": "a picture",
        "samples/step-000004.png": "a sheet",
        "unet/config.json": json.dumps({"_name_or_path": f"{base}/unet", "sample_size": 8}),
        "tokenizer/vocab.json": json.dumps({"/a/b": 1}),
        "logs/filrouge/hparams.yml": f"output_dir: {folder}",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return ["to use it"]


def test_the_result_arrives_whole_and_without_a_path(
    stand_in: HubStandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "a-run"
    run_toy(run, _export, push_to_hub=True, hub_private_repo=True)
    assert stand_in.repositories == {"ann/a-run": True}
    assert capsys.readouterr().out.endswith(f"uploaded to {stand_in.address}/ann/a-run\n")
    files = stand_in.files["ann/a-run"]
    assert set(files) == {
        *("README.md", "final.png", "samples/step-000004.png", "curves.png", "metrics.jsonl"),
        *("pytorch_lora_weights.safetensors", "unet/config.json", "tokenizer/vocab.json"),
    }
    assert not [name for name, content in files.items() if str(tmp_path).encode() in content]
    for name in ("README.md", "final.png", "curves.png", "metrics.jsonl", "tokenizer/vocab.json"):
        assert files[name] == (run / name).read_bytes(), name
    assert json.loads(files["unet/config.json"]) == {"_name_or_path": "unet", "sample_size": 8}
    weights = tmp_path / "pytorch_lora_weights.safetensors"
    weights.write_bytes(files[weights.name])
    assert torch.equal(load_file(weights)["a"], torch.arange(6.0))
    with safe_open(weights, "pt") as file:
        assert json.loads(file.metadata()["filrouge"]) == {"base": "sd15", "resolution_px": 64}
        assert file.metadata()["lora_adapter_metadata"] == '{"unet.r": 4}'
    assert not (run / hub.STAGED).exists()
    assert str(tmp_path) in (run / "settings.yaml").read_text()  # the run's own record stays as it is
    assert stand_in.asked.index("POST /api/repos/create") < stand_in.asked.index(
        "POST /api/models/ann/a-run/preupload/main"
    )


def test_a_hub_that_takes_nothing_loses_no_result(stand_in: HubStandIn, tmp_path: Path) -> None:
    run = tmp_path / "a run"
    stand_in.accepts = False
    with pytest.raises(
        UploadError, match=r"the result is saved, but not uploaded: .*The disk quota is used up"
    ) as told:
        run_toy(run, _export, push_to_hub=True, hub_model_id="team/weave")
    assert told.value.exit_code == 8
    status = json.loads((run / "status.json").read_text())
    assert (status["status"], status["last_durable_step"]) == ("done", 4)
    assert "not uploaded" in status["reason"]
    stand_in.accepts = True
    (command,) = re.findall(r"Nothing has to be trained again: (hf upload team/weave '.*')$", str(told.value))
    environment = {**os.environ, "HF_ENDPOINT": stand_in.address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "good"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    subprocess.run(["bash", "-c", command], env=environment, check=True, capture_output=True, timeout=120)
    assert stand_in.files["team/weave"]["final.png"] == b"a picture"
    assert not [content for content in stand_in.files["team/weave"].values() if str(tmp_path).encode() in content]


@pytest.mark.parametrize(
    ("token", "role", "offline", "options", "problem"),
    [
        (None, "write", False, {}, r"--push_to_hub: nobody is logged in\. Run `hf auth login`"),
        ("bad", "write", False, {}, r"--push_to_hub: http.* refuses: .*[Ii]nvalid"),
        (None, "write", False, {"hub_token": "bad"}, r"--push_to_hub: http.* refuses: .*[Ii]nvalid"),
        ("good", "read", False, {}, "the token of ann may only read"),
        ("good", "write", True, {}, "HF_HUB_OFFLINE is set"),
        ("good", "write", False, {"hub_model_id": "a b"}, "--hub_model_id: found 'a b', which is no name"),
        ("good", "write", False, {"hub_model_id": "ann/open", "hub_private_repo": True}, "is there and public"),
    ],
)
def test_what_would_stop_the_upload_is_told_before_the_training(
    token: str | None,
    role: str,
    offline: bool,
    options: dict[str, Any],
    problem: str,
    stand_in: HubStandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in.role = role
    stand_in.repositories["ann/open"] = False
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(SettingsError, match=problem):
        run_toy(tmp_path / "run", _export, push_to_hub=True, **options)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert stand_in.files == {}


@pytest.mark.usefixtures("stand_in")
def test_a_hub_that_does_not_answer_is_told_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SettingsError, match=r"--push_to_hub: http://127\.0\.0\.1:9 does not answer"):
        run_toy(tmp_path / "run", _export, push_to_hub=True)


def test_a_token_is_written_nowhere(stand_in: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    run_toy(tmp_path / "run", _export, push_to_hub=True, hub_token="good")
    assert "good" not in repr(LoopSettings(push_to_hub=True, hub_token="good"))
    assert "ann/run" in stand_in.files
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any(path.name == "settings.yaml" for path in written)
    assert not [path for path in written if b"good" in path.read_bytes()]


def test_a_dry_run_creates_no_repository(stand_in: HubStandIn, tmp_path: Path) -> None:
    run_toy(tmp_path / "run", _export, push_to_hub=True, dry_run=True)
    assert stand_in.asked == ["GET /api/whoami-v2"]
