"""To and from the Hugging Face Hub; nothing goes there unless somebody asks for it."""

import re
from pathlib import Path

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike

_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# What a recogniser is loaded from; no pickles, no code.
_FILES = ("*.json", "*.safetensors", "tokens.model")


def local_folder(source: Pathlike) -> Path:
    """A folder as it is, or the downloaded copy of a model of the Hub (``user/name``).

    Raises:
        UserError: Neither of them, or it cannot be fetched.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    name = check_id(str(source), "neither a folder nor a model of the Hugging Face Hub")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=list(_FILES)))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"cannot get {name!r} from the Hugging Face Hub ({_reason(error)}): check the id and "
            "the network, or give a folder"
        ) from error


def check_id(name: str, otherwise: str = "no name of a model on the Hub") -> str:
    """Return ``user/name``.

    Raises:
        UserError: Something else; ``otherwise`` says what.
    """
    if not _ID.fullmatch(name):
        raise UserError(f"{name} is {otherwise} (user/name)")
    return name


def push(folder: Path, name: str, private: bool = False) -> None:
    """Upload a folder as the model ``user/name``, made if it does not exist.

    Raises:
        UserError: Not logged in, no permission, or no network.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=str(folder))
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        raise UserError(
            f"cannot upload to {name!r} ({_reason(error)}): log in with `hf auth login`; the "
            f"export is complete in {folder}"
        ) from error


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
