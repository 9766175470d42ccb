"""What mergekit 0.1.5 has: the names of its methods and of their parameters."""

from __future__ import annotations

METHODS = frozenset(
    """
    arcee_fusion breadcrumbs breadcrumbs_ties dare_linear dare_ties della della_linear karcher linear
    model_stock multislerp nearswap nuslerp passthrough ram ramplus_tl sce slerp task_arithmetic ties
    """.split()
)
PARAMETERS = frozenset(
    """
    alpha density eps epsilon filter_wise gamma int8_mask lambda max_iter normalize normalize_weights
    nuslerp_flatten nuslerp_row_wise r rescale scale select_topk t tol weight
    """.split()
)
"""Of any of its methods: it takes those that a method does not know without a word, and recipes have them."""
REQUIRED = frozenset({"t"})
"""Those that are one for all models and have no default there."""
