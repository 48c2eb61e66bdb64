# SPDX-License-Identifier: Apache-2.0
"""The one type that data hands to training: packed rows of tokens."""

import dataclasses

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Packed rows; every array is [B, T] and speaks of the token at its own position.

    The shift from token to next token happens in `objectives`, so that a weight or a
    class always means "this token", never "the token before it".
    """

    ids_BT: jax.Array
    """i32, token ids."""
    segments_BT: jax.Array
    """i32, 1, 2, ... for the documents of a row, 0 for padding."""
    positions_BT: jax.Array
    """i32, position inside the document."""
    classes_BT: jax.Array
    """i32, index into `config.TOKEN_CLASSES`."""
    sources_BT: jax.Array
    """i32, index of the source in the order of `config.data.sources`."""
    weights_BT: jax.Array
    """f32, loss weight of predicting this token; 0 on padding and on a first token."""
