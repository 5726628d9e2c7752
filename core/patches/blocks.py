"""Choice of the blocks of a model that a method acts on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# (kind, number) as ComfyUI labels them: "input", "middle", "output" in a U-Net, "double", "single" in a transformer
Block = tuple[str, int]
Layer = tuple[Block, int]  # block and number of the transformer layer inside it

ALL = "all"
SKIP_FIRST_OUTPUT = "skip first output block"
CUSTOM = "custom"
CHOICES = [SKIP_FIRST_OUTPUT, ALL, CUSTOM]


def select(choice: str, custom: str, available: Sequence[Block], model_name: str) -> frozenset[Block]:
    """Turns the `blocks` and `custom_blocks` widgets into block labels.

    Args:
        choice: one of `CHOICES`.
        custom: names such as "input.4, output.3"; a bare kind ("output") means all of its blocks.
        available: the model's attention blocks in the order they run.
        model_name: for the message.

    Raises:
        ValueError: a name the model does not have, or no name at all.

    Note:
        RefDrop (arXiv 2405.17661) leaves out the first transformer after the middle block, which carries pose
        and layout. That is the first output block that has attention, whatever its number in the family.
        Transformers have no output blocks, so nothing is left out there.
    """
    if choice == ALL:
        return frozenset(available)
    if choice == SKIP_FIRST_OUTPUT:
        first = next((block for block in available if block[0] == "output"), None)
        return frozenset(available) - {first}
    names = _named(custom)
    if not names:
        raise ValueError(
            f"custom_blocks is empty, but blocks is set to '{CUSTOM}'. "
            f"Name at least one of this model's blocks: {_listed(available)}."
        )
    chosen = set[Block]()
    for name in names:
        matching = [block for block in available if name in (block[0], name_of(block))]
        if not matching:
            raise ValueError(
                f"custom_blocks names '{name}', which has no self-attention in this {model_name} model. "
                f"Its blocks are {_listed(available)}."
            )
        chosen.update(matching)
    return frozenset(chosen)


def select_layers(text: str, available: Sequence[Layer], model_name: str) -> frozenset[Layer]:
    """Turns a `layers` widget into transformer layers.

    Args:
        text: names such as "output.4, output.5.0"; a block means all of its layers, a side ("output") all of its
            blocks. Empty: the decoder's first six blocks with attention, whose tokens cover 2 or 4 latent cells in
            SD1.5, SD2 and SDXL: fine enough to locate a detail, deep enough to know what it is.
        available: the model's self-attention layers in the order they run.
        model_name: for the message.

    Raises:
        ValueError: a name the model does not have.
    """
    names = _named(text)
    if not names:
        decoder = dict.fromkeys(block for block, _ in available if block[0] == "output")
        names = [name_of(block) for block in list(decoder)[:6]]
    chosen = []
    for name in names:
        matching = [layer for layer in available if name in (layer[0][0], name_of(layer[0]), layer_name(layer))]
        if not matching:
            raise ValueError(
                f"layers names '{name}', which has no self-attention in this {model_name} model. "
                f"Its blocks are {_listed(block for block, _ in available)}."
            )
        chosen += matching
    return frozenset(chosen)


def layer_name(layer: Layer) -> str:
    """(("input", 4), 0) -> "input.4.0"."""
    return f"{name_of(layer[0])}.{layer[1]}"


def is_cross_attention(weight: str) -> bool:
    """Whether a weight of a U-Net, by its name in it, is one of a cross-attention's projections."""
    return ".attn2." in weight


def name_of(block: Block) -> str:
    """("input", 4) -> "input.4"."""
    return f"{block[0]}.{block[1]}"


def _named(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _listed(blocks: Iterable[Block]) -> str:
    return ", ".join(dict.fromkeys(map(name_of, blocks)))
