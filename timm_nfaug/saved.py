"""Augmentations on disk and on the Hugging Face Hub: a flow whose config holds the settings, too."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

from .autoencoder import autoencoder_for
from .card import PREVIEW_NAME
from .change import Change
from .config import SETTINGS
from .flows.model import ConditionalFlow
from .hub import LINEAR, Name, Picture, resolve, write_preview
from .moves import usual_modes


def settings_of(augment: Any) -> dict[str, Any]:
    """The settings of an `NFAugment` that are saved with its flow.

    >>> from timm_nfaug import NFAugment
    >>> settings_of(NFAugment.from_pretrained("conv_p4_tiny.digits", p=1.0))["p"]
    1.0
    """
    settings = {name: getattr(augment, name) for name in SETTINGS.values()}
    if augment.value_range is not None:  # what the modes are in units of
        ends = augment.value_range
        settings["value_range"] = [list(v) if isinstance(v, tuple) else v for v in ends]
    return settings


def settings_for_fit(flow: ConditionalFlow) -> dict[str, Any]:
    """What a flow was saved with and a fit to other images keeps: all but the range of its own.

    >>> settings_for_fit(ConditionalFlow.from_pretrained("conv_p4_tiny.digits"))
    {}
    """
    return {k: v for k, v in flow.config.augment.items() if k in SETTINGS.values()}


class SavedMixin:
    """Saves, loads and uploads an `NFAugment`.

    >>> from timm_nfaug import NFAugment
    >>> NFAugment.from_pretrained("conv_p4_tiny.digits", p=1.0).p
    1.0
    """

    change: Change
    _shown: tuple[Change, Path] | None = None  # the preview beside the files, and what it shows

    @classmethod
    def from_pretrained(
        cls, name: Name, revision: str | None = None, token=None, cache_dir=None,
        local_files_only: bool = False, **kwargs,
    ):  # fmt: skip
        """The augmentation saved under a name, or one with a flow of that name.

        Args:
            name: a directory, an id ``org/name[@revision]`` on the Hub or a bundled name; with the
                arguments after it as for `ConditionalFlow.from_pretrained`.
            **kwargs: as for the class. Those not given are as they were saved; where none were,
                the defaults, and as many modes as the flow stores, up to 32.
        """
        if name == LINEAR:
            raise ValueError(
                "linear has no weights of its own: NFAugment.from_data(loader) finds the "
                "eigen-images of your data"
            )
        directory = resolve(name, revision, token, cache_dir, local_files_only)
        flow = ConditionalFlow.from_pretrained(directory)
        settings = dict(flow.config.augment)
        if kwargs.get("value_range") is None:  # as it was saved, but for normalised floats
            kwargs.pop("value_range", None)
            if kwargs.get("mean") is not None:
                settings.pop("value_range", None)
        settings |= kwargs
        settings.setdefault("modes", usual_modes(flow))
        if flow.config.latent:  # looked for where the flow was
            how = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
            settings["autoencoder"] = autoencoder_for(
                flow.config.latent, settings.get("autoencoder"), **how
            )
        augment = cls(flow, **settings)  # type: ignore[call-arg]
        augment._shown = augment.change, directory / PREVIEW_NAME
        return augment

    def save_pretrained(
        self, directory: Name, name: str | None = None, preview: Picture | None = None
    ) -> Path:
        """Writes flow, settings and a card titled `name` that shows `preview`, a picture or its path.

        What belongs to your loader is not saved: mean, std, seed and strict.
        `ConditionalFlow.from_pretrained(directory)` loads the flow alone.

        >>> import tempfile
        >>> import timm_nfaug as nfa
        >>> augment = nfa.NFAugment.from_pretrained("conv_p4_tiny.digits", strength=0.25)
        >>> nfa.NFAugment.from_pretrained(augment.save_pretrained(tempfile.mkdtemp())).strength
        0.25

        Raises:
            TypeError: it has a `Change` of your own instead of a flow.
            OSError: a file could not be written; what was saved there before is whole.
        """
        flow = self._flow_to_save()
        if preview is not None:
            write_preview(Path(directory), preview)
        path = flow.save_pretrained(directory, name=name)
        self._shown = self.change, path / PREVIEW_NAME
        return path

    def push_to_hub(
        self, repo_id: str, private=False, revision: str | None = None,
        commit_message="Upload augmentation", token: str | bool | None = None,
        preview: Picture | None = None,
    ) -> str:  # fmt: skip
        """Uploads flow, settings and card, to a repository made if missing; returns the commit's URL.

        Arguments as for `ConditionalFlow.push_to_hub`; `preview` is by default the preview.png of the
        directory that this augmentation was loaded from or saved to.
        """
        if preview is None and self._shown and self._shown[0] is self.change:
            preview = self._shown[1] if self._shown[1].is_file() else None
        return self._flow_to_save().push_to_hub(
            repo_id, private, revision, commit_message, token, preview
        )

    def _flow_to_save(self) -> ConditionalFlow:
        """A flow that shares all with this one's, and whose config holds the settings."""
        flow = getattr(self.change, "flow", None)
        if not isinstance(flow, ConditionalFlow):
            raise TypeError(
                f"only an augmentation with a flow can be saved, this one has a "
                f"{type(self.change).__name__}: save the arguments that you make it from, or make "
                "one by NFAugment.from_data(loader) or NFAugment.from_pretrained(name)"
            )
        saved = copy.copy(flow)
        saved.config = dataclasses.replace(flow.config, augment=settings_of(self))
        if saved.config.latent:  # the side that is worked at, which may differ from that of the fit
            saved.config.latent = saved.config.latent | {"size": self.change.size[1]}
        return saved
