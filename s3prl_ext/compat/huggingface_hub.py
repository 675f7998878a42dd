"""huggingface_hub: two classes that s3prl imports and that 1.0 removed."""

from __future__ import annotations

from types import ModuleType

from s3prl_ext.compat.shim import Shim
from s3prl_ext.errors import UsageError


class HfFolder:
    """The stored access token, by huggingface_hub's present functions."""

    @staticmethod
    def get_token() -> str | None:
        """Return the stored token."""
        from huggingface_hub import get_token

        return get_token()

    @staticmethod
    def save_token(token: str) -> None:
        """Store a token."""
        from huggingface_hub import login

        login(token=token)

    @staticmethod
    def delete_token() -> None:
        """Forget the stored token."""
        from huggingface_hub import logout

        logout()


class Repository:
    """Stand-in for the git-based repository class, which has no successor of the same use."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        raise UsageError(
            "pushing from s3prl to the Hugging Face Hub needs huggingface_hub below 1.0, which is not installed: "
            "leave out --push_to_hf_hub and upload the result folder with `hf upload`."
        )


def _adder(name: str, value: type):
    def add(module: ModuleType) -> None:
        setattr(module, name, value)

    return add


def _lacks(name: str):
    return lambda module: not hasattr(module, name)


SHIMS = tuple(
    Shim(
        name=f"huggingface_hub-{value.__name__}",
        module="huggingface_hub",
        needed=_lacks(value.__name__),
        apply=_adder(value.__name__, value),
        reason=f"s3prl's runner imports {value.__name__}, which huggingface_hub 1.0 removed",
        remove_when=f"s3prl no longer imports {value.__name__}",
    )
    for value in (HfFolder, Repository)
)
