# SPDX-License-Identifier: Apache-2.0
"""What is read: sources, tokenizer, chat, length index, ledger, packing, pipeline."""

from ring_jax.data.chat import CHAT_TEMPLATES as CHAT_TEMPLATES
from ring_jax.data.chat import Rendered as Rendered
from ring_jax.data.chat import Reply as Reply
from ring_jax.data.chat import parse_reply as parse_reply
from ring_jax.data.chat import prompt_text as prompt_text
from ring_jax.data.chat import render as render
from ring_jax.data.chat import render_prompt as render_prompt
from ring_jax.data.chat import render_rows as render_rows
from ring_jax.data.chat_template import ChatTemplate as ChatTemplate
from ring_jax.data.chat_template import read_chat_template as read_chat_template
from ring_jax.data.ledger import Ledger as Ledger
from ring_jax.data.length_index import LengthIndex as LengthIndex
from ring_jax.data.mixture_table import Change as Change
from ring_jax.data.pipeline import TrainBatches as TrainBatches
from ring_jax.data.pipeline import heldout_batches as heldout_batches
from ring_jax.data.pipeline import prepare as prepare
from ring_jax.data.prepared import PreparedData as PreparedData
from ring_jax.data.prepared import open_sources as open_sources
from ring_jax.data.schema import Message as Message
from ring_jax.data.schema import Row as Row
from ring_jax.data.schema import ToolCall as ToolCall
from ring_jax.data.sources import SourceRows as SourceRows
from ring_jax.data.stage_ledger import open_ledger as open_ledger
from ring_jax.data.template_check import TemplateReport as TemplateReport
from ring_jax.data.template_check import check_template as check_template
from ring_jax.data.template_check import template_report as template_report
from ring_jax.data.tokenizer import Tokenizer as Tokenizer
from ring_jax.data.windows import Windows as Windows
