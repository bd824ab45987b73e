"""A run's result on the Hugging Face Hub: who uploads is known before the training, what is uploaded holds no path."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from data.errors import SettingsError, UploadError
from finetune.core.card import CARD_NAME, without_paths
from finetune.core.settings import LoopSettings
from pipelines import pixel_model, runs

STAGED = "hub"  # below the run's folder: what is uploaded, until it is
_RESULTS = ("*.safetensors", runs.PIPELINE_INDEX, runs.FACTS_NAME, pixel_model.FACTS_NAME)
_SHOWN = (CARD_NAME, "final.png", "final.json", "curves.png", "metrics.jsonl")
_VOCABULARIES = ("tokenizer.json", "vocab.json")  # whose words may look like paths
_FOLDERS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "pipeline", "samples")

S = TypeVar("S", bound=LoopSettings)


def with_repository(settings: S, run_dir: Path) -> S:
    """Return the settings with the whole id of the repository, owner/name, that the result will be uploaded to.

    Raises SettingsError where nobody is logged in, or who is may not write.
    """
    if is_offline_mode():
        raise SettingsError("--push_to_hub", "HF_HUB_OFFLINE is set. Unset it, or leave the option out.")
    asked = settings.hub_model_id or run_dir.name
    try:
        validate_repo_id(asked)
        who = _api(settings).whoami()
    except HFValidationError as error:
        raise SettingsError("--hub_model_id", f"found {asked!r}, which is no name of a repository. {error}") from error
    except LocalTokenNotFoundError as error:
        raise SettingsError(
            "--push_to_hub", "nobody is logged in. Run `hf auth login`, set HF_TOKEN, or leave the option out."
        ) from error
    except Exception as error:  # of the hub, of the connection, of the system
        raise SettingsError("--push_to_hub", _refusal(settings, error)) from error
    if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise SettingsError(
            "--push_to_hub", f"the token of {who['name']} may only read. Log in with one that may write: hf auth login"
        )
    return settings.model_copy(update={"hub_model_id": asked if "/" in asked else f"{who['name']}/{asked}"})


def create_repository(settings: LoopSettings) -> None:
    """Create the repository, where there is none yet. Raises SettingsError where it cannot be."""
    assert settings.hub_model_id is not None, "with_repository has named it"
    api, private = _api(settings), settings.hub_private_repo
    try:
        api.create_repo(settings.hub_model_id, private=private or None, exist_ok=True)
        is_public = private and not api.model_info(settings.hub_model_id).private
    except Exception as error:  # of the hub, of the connection, of the system
        raise SettingsError("--push_to_hub", _refusal(settings, error)) from error
    if is_public:
        raise SettingsError(
            "--hub_private_repo",
            f"{settings.hub_model_id} is there and public. Make it private, or choose another --hub_model_id.",
        )


def upload(settings: LoopSettings, run_dir: Path) -> str:
    """Upload the result of a finished run and return the address of its page.

    Raises UploadError, which says how to upload it again; the result in the run's folder stays as it is.
    """
    assert settings.hub_model_id is not None, "with_repository has named it"
    staged = run_dir / STAGED
    try:
        stage(run_dir, staged)
        _api(settings).upload_folder(
            repo_id=settings.hub_model_id, folder_path=staged, commit_message="End of training"
        )
    except Exception as error:  # of the hub, of the connection, of the system
        again = f"hf upload {settings.hub_model_id} {shlex.quote(str(staged))}"
        raise UploadError(
            str(run_dir),
            f"the result is saved, but not uploaded: {_refusal(settings, error)} Nothing has to be trained again: "
            f"{again}",
        ) from error
    shutil.rmtree(staged)
    return f"{_api(settings).endpoint}/{settings.hub_model_id}"


def stage(run_dir: Path, staged: Path) -> None:
    """Fill a folder with what of a run is for others: result, card and pictures, without paths of this machine.

    Files that hold none are linked, not copied. Checkpoints, records and settings stay where they are.
    """
    if staged.exists():
        shutil.rmtree(staged)
    files = [path for pattern in (*_RESULTS, *_SHOWN) for path in run_dir.glob(pattern)]
    files += [path for folder in _FOLDERS for path in (run_dir / folder).rglob("*")]
    for path in sorted(file for file in files if file.is_file()):
        target = staged / path.relative_to(run_dir)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not _stage_anew(path, target):
            _link(path, target)


def _stage_anew(path: Path, target: Path) -> bool:
    """Write a file without the places of this machine that it names; return False, and write nothing, for others."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        said = {key: _without_paths(value) for key, value in header.items()}
        if said != header:
            save_file(load_file(path), target, metadata=said)
        return said != header
    if path.suffix != ".json" or path.name in _VOCABULARIES:
        return False
    facts = json.loads(path.read_text(encoding="utf-8"))
    cleaned = without_paths(facts)
    if cleaned != facts:
        target.write_text(json.dumps(cleaned, indent=2), encoding="utf-8")
    return bool(cleaned != facts)


def _without_paths(entry: str) -> str:
    """Return an entry of a header, which may be JSON, without paths."""
    if not entry.startswith("{"):
        return str(without_paths(entry))
    facts = json.loads(entry)
    cleaned = without_paths(facts)
    return entry if cleaned == facts else json.dumps(cleaned, sort_keys=True)


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(path, target)


def _api(settings: LoopSettings) -> HfApi:
    return HfApi(token=settings.hub_token.get_secret_value() if settings.hub_token is not None else None)


def _refusal(settings: LoopSettings, error: Exception) -> str:
    found = (str(error) or type(error).__name__).partition("\n")[0].rstrip(".")
    endpoint = _api(settings).endpoint
    if isinstance(error, HfHubHTTPError):
        return f"{endpoint} refuses: {error.server_message or found}."
    return f"{endpoint} does not answer: {found}."
