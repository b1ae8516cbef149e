"""Where images are moved, as flags say it: their pixels, or the latents of an autoencoder."""

from typing import Any

from ._utils.checks import check_choice
from ._utils.notices import NFAError
from .autoencoder import HOW, Autoencoder, load_autoencoder

SPACES = ("pixels", "latent")
SPACE_HELP = "where images are moved (default: pixels; latent where an autoencoder is named)"
AUTOENCODER_HELP = f"whose latents are moved: {HOW} (default: that of a saved flow)"


def chosen_autoencoder(
    space: str | None, name: Any, size: int | None = None, prefix: str = "--"
) -> Autoencoder | None:
    """The autoencoder that flags ask for, for modes of their own; None for pixels.

    >>> chosen_autoencoder("pixels", None) is None
    True

    Raises:
        ValueError, OSError, ImportError: the flags do not go together, or name no autoencoder.
    """
    if space is not None:
        check_choice(f"{prefix}space", space, SPACES)
    if space == "pixels" and name is not None:
        raise NFAError(f"{prefix}autoencoder is for {prefix}space latent: drop one of the two")
    if name is None:
        if space == "latent":
            raise NFAError(f"{prefix}space latent needs {prefix}autoencoder NAME: {HOW}")
        if size is not None:
            raise NFAError(
                f"{prefix}size is the side at which latents are made: add {prefix}autoencoder NAME, "
                f"or drop it"
            )
        return None
    return load_autoencoder(name)


def name_of(autoencoder: Autoencoder) -> str:
    """What an autoencoder is called: by what it was loaded, or its class.

    >>> class Identity:
    ...     def encode(self, x): return x
    ...     decode = encode
    >>> name_of(Autoencoder(Identity()))
    'Identity'
    """
    return autoencoder.name or type(autoencoder.module).__name__


def check_space(space: str | None, latent: Any, prefix: str = "--") -> None:
    """Refuses a space that is not the one of a flow, whose `FlowConfig.latent` this is.

    >>> check_space("pixels", {})
    """
    own = "latent" if latent else "pixels"
    if space not in (None, own):
        what = "latents of an autoencoder" if latent else "pixels"
        raise NFAError(f"the flow moves {what}, which is {prefix}space {own}, not {space}: drop it")
