# SPDX-License-Identifier: Apache-2.0
"""The command `ring`: one file per verb, the only room where the others meet."""
