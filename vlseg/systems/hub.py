"""Checkpoints from the Hugging Face Hub. Where one cannot be had, one line says how to get it."""

from __future__ import annotations

from vlseg.types import VLSegError

WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


def download(
    repository: str,
    revision: str | None = None,
    model: str | None = None,
    gated: bool = False,
    option: str = "--model",
) -> str:
    """The local folder of a repository's files, fetched where they are not there yet; HF_HUB_OFFLINE is honoured.

    model, option: what the user named, and where, for the message. Raises VLSegError where it cannot be had, with the
    way to get it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    model = model or repository
    named = model if model == repository else f"{model}: {repository}"
    try:
        return snapshot_download(repository, revision=revision, allow_patterns=list(WANTED))
    except GatedRepoError as error:
        raise VLSegError(f"{option} {named}: {_how_to_open(repository)}") from error
    except RevisionNotFoundError as error:
        raise VLSegError(f"{option} {named}: has no revision {revision} on the Hub") from error
    except RepositoryNotFoundError as error:
        raise VLSegError(
            f"{option} {named}: no folder of that name, and no such model on the Hub (a private one needs HF_TOKEN)"
        ) from error
    except HFValidationError as error:
        raise VLSegError(f"{option} {named}: neither a folder nor a valid name on the Hub") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        folder = f"{model}=FOLDER" if model != repository else "a local folder"
        first = f"{_how_to_open(repository)}; " if gated else ""
        raise VLSegError(
            f"{option} {named}: no folder of that name, and the Hub cannot be reached ({type(error).__name__}); "
            f"{first}fetch it once with a network (hf download {repository}), or name {folder}"
        ) from error


def at_hand(repository: str, revision: str = "main") -> bool:
    """Whether the repository's config.json is in the local cache; no network."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repository, "config.json", revision=revision), str)


def _how_to_open(repository: str) -> str:
    return f"gated: accept its licence on the page of {repository} on the Hub, then set HF_TOKEN or run `hf auth login`"
