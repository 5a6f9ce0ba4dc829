"""What every plan must hold: the fewest residents that keep a layer routable, whatever a token's scores.

Stands under the planners. A group of a group-limited family is unused, or holds `min_residents_per_group` at least:
fewer would take slots and answer nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from emoe.core.errors import BudgetError
from emoe.core.experts import BoolGrid, ExpertGrid, FloatGrid, RoutingRule

Order = npt.NDArray[np.int64]


def check_budget(num_slots: int, grid: ExpertGrid) -> None:
    """BudgetError when no plan of so many slots can be routable."""
    needed = grid.rule.min_residents * len(grid.moe_layers)
    if num_slots < needed:
        raise BudgetError(
            f"{num_slots} slots are too few: {len(grid.moe_layers)} layers need {grid.rule.min_residents} residents "
            f"each, {needed} in all ({needed * grid.expert_bytes} bytes); raise the expert memory"
        )


def routable_minimum(demand_LE: FloatGrid, rule: RoutingRule) -> BoolGrid:
    """In each row, the most demanded `rule.min_residents` experts that keep a layer routable."""
    per_group = rule.min_residents_per_group
    groups_LGE = demand_LE.reshape(len(demand_LE), rule.num_groups, -1)
    best = most_demanded(groups_LGE)[..., :per_group]
    covered_LG = np.take_along_axis(groups_LGE, best, axis=2).sum(axis=2)
    open_groups = most_demanded(covered_LG)[:, : rule.topk_groups, None]
    wanted = np.zeros_like(groups_LGE, dtype=np.bool_)
    wanted[np.arange(len(demand_LE))[:, None, None], open_groups, np.take_along_axis(best, open_groups, axis=1)] = True
    return wanted.reshape(demand_LE.shape)


def most_demanded(demand: npt.NDArray[np.float64]) -> Order:
    """Along the last axis: places from the most demanded on, equals in their order."""
    return np.asarray(np.argsort(-demand, axis=-1, kind="stable"))
