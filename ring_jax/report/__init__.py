# SPDX-License-Identifier: Apache-2.0
"""What a person sees: a run folder in, one self-contained HTML file out."""

from ring_jax.report.comparison import Comparison as Comparison
from ring_jax.report.comparison import Group as Group
from ring_jax.report.comparison import compare as compare
from ring_jax.report.comparison import compare_stages as compare_stages
from ring_jax.report.comparison import figures as figures
from ring_jax.report.curation import write_curation_report as write_curation_report
from ring_jax.report.data_page import write_data_page as write_data_page
from ring_jax.report.evaluation_page import (
    write_evaluation_page as write_evaluation_page,
)
from ring_jax.report.model_card import retained_sentence as retained_sentence
from ring_jax.report.model_card import write_model_card as write_model_card
from ring_jax.report.write import write_report as write_report
