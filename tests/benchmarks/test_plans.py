# SPDX-License-Identifier: Apache-2.0
"""The blocks that `benchmarks.plans` writes into the docs page."""

import pytest

from benchmarks.plans import PAGE, RECIPES, replaced


def test_a_block_is_replaced_and_nothing_else():
    page = "a\n<!-- plan: x -->\nold\n<!-- end: x -->\nb\n"
    once = replaced(page, "x", "new  \nlines")
    assert once == "a\n<!-- plan: x -->\n```\nnew\nlines\n```\n<!-- end: x -->\nb\n"
    assert replaced(once, "x", "new\nlines") == once


@pytest.mark.parametrize("name", RECIPES)
def test_the_page_has_a_block_for_each_recipe(name):
    assert "new" in replaced(PAGE.read_text("utf-8"), name, "new")


def test_a_page_without_the_block_is_an_error():
    with pytest.raises(ValueError, match="plan: y"):
        replaced("a page", "y", "text")
