# SPDX-License-Identifier: Apache-2.0
"""What a training step will cost on a pod that is not there."""
