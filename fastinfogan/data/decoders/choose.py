"""Who decodes a set's pictures."""

from fastinfogan.data.decoders.base import Decoder, DecoderName
from fastinfogan.data.decoders.pillow import PillowDecoder
from fastinfogan.data.image_set import EncodedImageSet
from fastinfogan.errors import InputError


def choose_decoder(
    name: DecoderName, source: EncodedImageSet, device: str, batch: int
) -> tuple[Decoder, str]:
    """Make the decoder that was asked for.

    Args:
        name: "auto" is DALI where it works, else Pillow.
        source: the set.
        device: where to decode if the decoder can: "cpu", "cuda" or "cuda:1".
        batch: how many pictures are usually wanted at once.

    Returns:
        The decoder, and why it is this one, in a few words.

    Raises:
        InputError: DALI was asked for by name and does not work.
    """
    if name == "pillow":
        return PillowDecoder(source), "asked for"
    from fastinfogan.data.decoders.dali import DaliDecoder  # not before it is wanted

    try:
        return DaliDecoder(source, device, batch), "works here" if name == "auto" else "asked for"
    except InputError as error:
        if name == "dali":
            raise
        return PillowDecoder(source), str(error)
