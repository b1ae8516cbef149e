"""Warnings about images that NFA leaves unchanged, and about fits with too few modes."""

from ._utils.notices import Notices
from .change import Change, FlowChange, LatentChange
from .moves import PCA

BROKEN = (
    "the change of {} of {} images is not finite, and they came back unchanged: images or the flow's "
    "weights are damaged, or overflow; load the flow anew, keep it in float32, or take another one"
)
MORE = (
    "give more images of each class, or take the modes of all images together: "
    'NFAugment.from_data(loader, labels="none")'
)
MORE_POOLED = "give more images, and different ones"  # where modes are of all images already


def say_unchanged(notices: Notices, change: Change, count: int, failed: int, still: int) -> None:
    """Warns that of `count` images some changes `failed` to be finite, or some classes lack modes.

    >>> say_unchanged(Notices(), None, 4, failed=0, still=0)
    """
    if failed:
        notices.say("not finite", BROKEN.format(failed, count), failed)
    if still:
        what = f"{still} of {count} images came back unchanged: {without_modes(change)}"
        notices.say("no modes", what, still)


def say_fitted(notices: Notices, change: Change) -> None:
    """Warns after a fit of classes that have no modes, or fewer than were asked for.

    >>> import timm_nfaug as nfa
    >>> say_fitted(Notices(), nfa.NFAugment.from_pretrained("conv_p4_tiny.digits").change)
    """
    if lacking := without_modes(change):
        notices.say("no modes", lacking, images=0)
    if isinstance(change, (FlowChange, LatentChange)) and isinstance(change.move, PCA):
        wanted, classes = change.move.modes, change.num_classes
        found = (change.flow.prior.mode_std[:, :wanted] != 0).sum(1)  # (K,)
        if len(few := found[(found > 0) & (found < wanted)]):
            fewest = f"{int(few.min())}, and moves along these"
            what = f"{len(few)} of {classes} classes have fewer than the {wanted} modes asked for"
            said = f"{what}: one has {fewest}; {MORE}"
            if classes == 1:
                said = f"{wanted} modes were asked for, it found {fewest}; {MORE_POOLED}"
            notices.say("few modes", f"{said}, or ask for fewer", images=0)


def without_modes(change: Change) -> str:
    """Names the classes that a change cannot move as they lack modes, and the remedy; or "".

    >>> import timm_nfaug as nfa
    >>> without_modes(nfa.NFAugment.to_fit(nfa.create_flow("linear")).change)[:41]
    'the images have no modes: give more image'
    """
    if not isinstance(change, (FlowChange, LatentChange)):
        return ""
    lacking = change.move.unmoved(change.flow).nonzero().flatten().tolist()
    if lacking and change.num_classes == 1:
        return f"the images have no modes: {MORE_POOLED}"
    names = dict(enumerate(change.flow.config.class_names))
    some = ", ".join(names.get(k, str(k)) for k in lacking[:4]) + ", ..." * (len(lacking) > 4)
    which = f"{len(lacking)} of {change.flow.prior.num_classes} classes ({some})"
    return f"{which} have no modes: {MORE}" if lacking else ""
