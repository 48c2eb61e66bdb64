# SPDX-License-Identifier: Apache-2.0
"""What is read: sources, tokenizer, chat rendering, mixture, packing, pipeline."""
