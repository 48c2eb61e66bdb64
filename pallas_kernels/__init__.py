# SPDX-License-Identifier: Apache-2.0
"""Kernels that stand alone: one folder an operation, each with its definition."""
