# SPDX-License-Identifier: Apache-2.0
"""One module for each figure that the docs quote; each ends in one JSON line."""
